"""`kernelmux lab`, `status` and `stop`, installed from their wheels into a clean virtual environment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import nbformat
import pytest
from conftest import skip_or_fail
from harness.gateway import PEER, REPO
from harness.lab import Notebook
from harness.laptop import Laptop, RunningLab, WheelsMissing, install
from harness.notebooks import notebook
from harness.process import alive
from harness.restoring import Steps, close, expect_lines, expect_running, expect_whole, open_page
from harness.waiting import eventually
from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(PEER != "kernelmux", reason="the wheels contain kernelmux")

BOUNDED_LOG = REPO / "clients" / "kernelmux" / "kernelmux" / "bounded_log.py"


@pytest.fixture(scope="session")
def command(built: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command."""
    try:
        return install(tmp_path_factory.mktemp("laptop"))
    except WheelsMissing as error:
        skip_or_fail(str(error))
        raise


@pytest.fixture
def laptop(command: Path, make_home: Callable[[str], Path]) -> Iterator[Laptop]:
    laptop = Laptop(command, make_home("laptop"))
    yield laptop
    laptop.close()


def test_the_wheel_has_the_program_and_its_platform(command: Path) -> None:
    (wheel,) = (command.parents[2] / "wheels").glob("kernelmux-*.whl")
    assert re.search(r"-py3-none-(manylinux_\d+_\d+_\w+|linux_\w+|macosx_\w+)\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        program = archive.getinfo("kernelmux/bin/kernelmux-gateway")
    assert (program.external_attr >> 16) & 0o111 == 0o111


def test_notebooks_are_restored_after_the_terminal_was_closed(laptop: Laptop) -> None:
    terminal, inner = os.openpty()
    lab = laptop.lab(terminal=Path(os.ttyname(inner)))
    os.close(inner)
    kernel_id = lab.open_notebook("work.ipynb")
    kernel_pid = int(lab.run(kernel_id, "import os; value = 6 * 7; print(os.getpid())"))
    with lab.kernel(kernel_id) as kernel:
        msg_id = kernel.execute("print(f'the answer is {value}')")
        kernel.finish(msg_id)
    gateway_pid = laptop.gateway_pid

    # The system sends SIGHUP to the terminal's session.
    os.close(terminal)
    lab.process.wait(60)
    assert alive(gateway_pid) and alive(kernel_pid)
    assert laptop.kernels() == [kernel_id]

    for number in (signal.SIGINT, signal.SIGTERM):
        lab = laptop.lab()
        (session,) = lab.get("api/sessions")
        assert (session["path"], session["kernel"]["id"]) == ("work.ipynb", kernel_id)
        execution = lab.get(f"kernelmux/api/kernels/{kernel_id}/executions/{msg_id}")
        assert execution["status"] == "ok"
        assert "the answer is 42" in str(execution["outputs"])
        assert lab.run(kernel_id, "print(value)").strip() == "42"
        assert lab.process.stop(number, 120) == 0, lab.process.output
        assert laptop.gateway_pid == gateway_pid and alive(gateway_pid) and alive(kernel_pid)


# JupyterLab settings that tests with a page need.
PAGE = ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]


def test_a_running_cell_is_restored_in_the_page_after_the_terminal_was_closed(
    laptop: Laptop, page: Page, steps: Steps
) -> None:
    book = notebook(steps.lines(3), "print('next', 6 * 7)")
    nbformat.write(book, laptop.files / "work.ipynb")
    terminal, inner = os.openpty()
    lab = laptop.lab(*PAGE, terminal=Path(os.ttyname(inner)))
    os.close(inner)
    tab = page.context.new_page()
    opened = Notebook(tab, lab, "work")
    opened.load()
    opened.remember()
    opened.start(0)
    steps.wait_at(3)
    close(tab)
    os.close(terminal)
    lab.process.wait(60)

    lab = laptop.lab(*PAGE)
    again = open_page(page, lab, "work")
    assert again.kernel_id() == opened.known_kernel
    expect_running(again, 0)
    expect_lines(again, 0, 3)
    steps.open(3)
    expect_whole(again, 0, 1)
    assert steps.ran() == 1
    again.run(1)
    again.wait_text(1, "next 42")


def test_two_jupyterlabs_share_one_gateway(laptop: Laptop) -> None:
    processes = [laptop.start_lab() for _ in range(2)]
    first, second = (RunningLab(process) for process in processes)
    kernel_id = first.open_notebook("shared.ipynb")
    assert laptop.kernels() == [kernel_id]
    assert len(laptop.gateway_pids()) == 1
    assert "running JupyterLabs: 2" in laptop.run("status").stdout
    first.process.stop(signal.SIGTERM, 120)
    # The gateway still serves the second JupyterLab after the first one has ended.
    other = second.open_notebook("other.ipynb")
    assert sorted(laptop.kernels()) == sorted([kernel_id, other])


def test_a_killed_gateway_is_started_again_with_its_kernels(laptop: Laptop) -> None:
    lab = laptop.lab()
    kernel_id = lab.open_notebook("work.ipynb")
    lab.run(kernel_id, "value = 1")
    before, token = laptop.state, laptop.token
    laptop.kill_gateway()
    status = laptop.run("status")
    assert status.returncode == 1 and "may have left kernels" in status.stdout

    laptop.start_gateway()
    assert laptop.kernels() == [kernel_id]
    assert laptop.state["port"] == before["port"]
    assert laptop.state["pid"] != before["pid"]
    assert laptop.token != token
    # The JupyterLab from before reconnects, with the new token.
    assert lab.run(kernel_id, "print(value)").strip() == "1"


def test_an_interrupted_start_is_continued(laptop: Laptop) -> None:
    process = laptop.start_lab()
    state = laptop.data_dir / "laptop" / "gateway.json"
    eventually(state.exists, "the gateway is started")
    assert process.stop(signal.SIGINT, 120) != -signal.SIGKILL
    laptop.start_gateway()
    assert laptop.state["pid"] == laptop.gateway_pid
    assert laptop.kernels() == []


def test_stop_ends_kernels_that_a_killed_gateway_left(laptop: Laptop) -> None:
    laptop.start_gateway()
    kernel_id = laptop.start_kernel()
    laptop.kill_gateway()
    assert laptop.kernel_pids()
    stopped = laptop.run("stop", "--yes")
    assert stopped.returncode == 0 and kernel_id in stopped.stdout, stopped
    laptop.wait_no_process()


class Impostor(BaseHTTPRequestHandler):
    """Accepts every request, and remembers its headers."""

    received: list[str] = []

    def do_GET(self) -> None:
        self.received.append(str(self.headers))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *args: object) -> None:
        pass


def test_a_program_at_the_gateways_old_port_is_not_mistaken_for_the_gateway(laptop: Laptop) -> None:
    laptop.start_gateway()
    kernel_id = laptop.start_kernel()
    before = laptop.state
    laptop.kill_gateway()
    # A process id from before a restart of the machine may belong to another process.
    (laptop.data_dir / "gateway.lock").write_text(f"{os.getpid()}\n")
    server = HTTPServer(("127.0.0.1", before["port"]), Impostor)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert laptop.run("status").returncode == 1
        laptop.start_gateway()
        assert laptop.state["port"] != before["port"]
        assert laptop.kernels() == [kernel_id]
    finally:
        server.shutdown()
        server.server_close()
    assert not Impostor.received


def test_stop_lists_the_kernels_and_ends_everything(laptop: Laptop) -> None:
    lab = laptop.lab()
    kernel_id = lab.open_notebook("work.ipynb")
    with lab.kernel(kernel_id) as kernel:
        kernel.execute("import time; time.sleep(1000)")
        busy = rf"python3 +{kernel_id} +busy +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\n"
        eventually(lambda: re.search(busy, laptop.run("status").stdout), "status shows a busy kernel")

    refused = laptop.run("stop")
    assert refused.returncode == 1 and "--yes" in refused.stderr
    assert re.search(busy, refused.stdout)
    assert laptop.kernels() == [kernel_id]

    stopped = laptop.run("stop", "--yes")
    assert stopped.returncode == 0, stopped
    assert "Ended: 1 kernel, the gateway, 1 JupyterLab." in stopped.stdout
    assert lab.process.wait(30) == 0
    laptop.wait_no_process()
    assert not (laptop.data_dir / "laptop" / "token").exists()
    assert laptop.run("stop").stdout == "Nothing is running.\n"
    assert laptop.run("status").returncode == 1


@pytest.fixture(scope="module")
def running(command: Path, make_home: Callable[[str], Path]) -> Iterator[tuple[Laptop, RunningLab, str]]:
    """A laptop, its JupyterLab with debug logging, and a kernel, for tests that change none of them."""
    laptop = Laptop(command, make_home("laptop"))
    laptop.environment["OF_THE_USER"] = "passed on"
    lab = laptop.lab("--debug")
    yield laptop, lab, lab.open_notebook("work.ipynb")
    laptop.close()


def test_the_token_is_in_no_command_line_environment_or_log(running: tuple[Laptop, RunningLab, str]) -> None:
    laptop, lab, kernel_id = running
    token = laptop.token
    assert len(token) == 64
    assert token not in lab.run(kernel_id, "import os; print(dict(os.environ))")
    pids = laptop.pids()
    assert len(pids) >= 4
    for pid in pids:
        for file in ("cmdline", "environ"):
            with contextlib.suppress(PermissionError):
                assert token.encode() not in Path(f"/proc/{pid}/{file}").read_bytes(), (pid, file)
    assert "GatewayKernelManager started kernel" in lab.process.output
    assert token not in lab.process.output
    with_token = [path for path in laptop.home.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert with_token == [laptop.data_dir / "laptop" / "token"]


def test_only_the_user_can_read_the_files(running: tuple[Laptop, RunningLab, str]) -> None:
    laptop, _, _ = running
    folder = laptop.data_dir / "laptop"
    for path in (laptop.data_dir, folder, *folder.rglob("*")):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path


def test_kernels_have_the_installed_python_and_the_users_environment(running: tuple[Laptop, RunningLab, str]) -> None:
    laptop, lab, kernel_id = running
    code = "import os, sys; print(sys.prefix, os.environ['OF_THE_USER'], os.getcwd(), sep='|')"
    expected = [str(laptop.command.parents[1]), "passed on", str(laptop.files)]
    assert lab.run(kernel_id, code).strip().split("|") == expected


def test_a_gateway_that_was_started_in_another_way_is_reported(running: tuple[Laptop, RunningLab, str]) -> None:
    laptop, _, _ = running
    # Simulates that this gateway was started after the gateway in the state file had ended.
    state = laptop.data_dir / "laptop" / "gateway.json"
    text, pid = state.read_text(), laptop.gateway_pid
    state.write_text(text.replace(f'"pid": {pid}', '"pid": 1'))
    try:
        for arguments in (["status"], ["lab", "--no-browser"], ["stop", "--yes"]):
            refused = laptop.run(*arguments)
            assert refused.returncode == 1
            assert f"a gateway that `kernelmux lab` did not start, process {pid}" in refused.stderr
    finally:
        state.write_text(text)
    assert alive(pid)


def test_the_gateways_program_can_be_run(laptop: Laptop) -> None:
    shown = laptop.run("gateway", "--help")
    assert shown.returncode == 0 and "--data-dir" in shown.stdout
    failed = laptop.run("gateway", "--no-such-flag")
    assert failed.returncode == 2 and "--no-such-flag" in failed.stderr


def test_the_cause_of_a_failed_start_of_the_gateway_is_reported(laptop: Laptop) -> None:
    laptop.environment["KERNELMUX_LOG"] = "not=a=filter"
    failed = laptop.run("lab", "--no-browser", "--allow-root")
    assert failed.returncode == 1
    assert "the gateway does not start" in failed.stderr and "not=a=filter" in failed.stderr
    laptop.wait_no_process()


def test_the_log_has_a_bounded_size(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    lines = "".join(f"line {number}\n" for number in range(100_000))
    subprocess.run([sys.executable, BOUNDED_LOG, log, "100000"], input=lines, text=True, check=True)
    former = tmp_path / "gateway.log.1"
    assert sorted(tmp_path.iterdir()) == [log, former]
    assert log.stat().st_size <= 100_000 and former.stat().st_size <= 100_000
    kept = former.read_text() + log.read_text()
    assert lines.endswith(kept) and len(kept) > 100_000
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_written_does_not_block_the_gateway(tmp_path: Path) -> None:
    written = subprocess.run(
        [sys.executable, BOUNDED_LOG, tmp_path / "missing" / "gateway.log", "1000"], input="x" * 1_000_000, text=True
    )
    assert written.returncode == 0
