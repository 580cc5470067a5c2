"""An unmodified JupyterLab loses no output when a connection is lost: each cell ends with its complete output.

browser - (proxy) - jupyter_server - (proxy) - gateway - kernel. The tests compare an interrupted cell with the same
code run undisturbed in the same notebook, and with the gateway's record of the execution.
"""

from __future__ import annotations

import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.reconnecting import log_of
from harness.executions import latest_of_cell
from harness.gateway import Gateway, free_port
from harness.lab import Lab, Notebook
from harness.process import family, kill, pids_mentioning
from harness.proxy import Proxy
from harness.waiting import eventually
from playwright.sync_api import Browser, Page, expect

# Prints and creates a file to show that the cell waits at a gate, and waits until the test opens the gate.
GATE = """
import pathlib, sys, time
def gate(name):
    print("[at", name + "]", flush=True)
    pathlib.Path({directory!r}, "at-" + name).touch()
    while not pathlib.Path({directory!r}, name).exists():
        time.sleep(0.02)
"""

PROGRESS = """
from IPython.display import display
shown = display("not yet", display_id=True)
for line in range(100):
    if line in (10, 60):
        gate(f"line-{line}")
    for part in (0, 35, 70, 100):
        print(f"\\rline {line:2}: {part:3} %", end="", flush=True)
    print(flush=True)
    if line % 25 == 0:
        print("careful", line, file=sys.stderr, flush=True)
shown.update("done")
{"lines": 100}
"""
GATES = ("line-10", "line-60")
LAST = "{'lines': 100}"


def gated(directory: Path, code: str) -> str:
    return GATE.format(directory=str(directory)) + code


def open_gates(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).touch()


def normalized(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs in one form, without the fields that differ between two runs of the same code."""

    def text(value: Any) -> Any:
        return "".join(value) if isinstance(value, list) else value

    result = []
    for output in outputs:
        output = {k: v for k, v in output.items() if k not in ("execution_count", "transient")}
        if "text" in output:
            output["text"] = text(output["text"])
        if "data" in output:
            output["data"] = {k: text(v) for k, v in output["data"].items()}
        result.append(output)
    return result


def expect_undisturbed(
    gateway: Gateway, notebook: Notebook, kernel_id: str, last: str = LAST
) -> None:
    """Checks cell 0 against cell 1, which has the same code and runs undisturbed; `last` is its last output."""
    notebook.finished(0, timeout=90)
    expect(notebook.prompt(0)).to_have_text("[1]:")
    # The prompt of cell 0 may change before its last outputs arrive. Those of cell 1 follow on the same connection.
    notebook.run(1, 60)
    notebook.wait_text(1, last)
    expect(notebook.prompt(1)).to_have_text("[2]:")
    recorded = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))
    assert recorded["execution_count"] == 1
    assert recorded["status"] == "ok"
    assert normalized(notebook.outputs(0)) == normalized(notebook.outputs(1))
    assert normalized(notebook.outputs(0)) == normalized(recorded["outputs"])
    counts = [o["execution_count"] for o in notebook.outputs(0) if "execution_count" in o]
    assert counts in ([], [1])
    assert notebook.text(0) == notebook.text(1)
    expect(notebook.cell(0).locator(".jp-Stdin")).to_have_count(0)


class Asleep:
    """A laptop that sleeps during a cell: all processes of its browser are suspended with SIGSTOP."""

    SECONDS = 60

    def __init__(
        self, launch_browser: Callable[..., Browser], lab: Lab, gateway: Gateway, directory: Path
    ) -> None:
        mark = f"--e2e-asleep={uuid.uuid4().hex}"
        self.browser = launch_browser(mark)
        self.notebook = None
        self.stopped: list[int] = []
        code = gated(directory, PROGRESS)
        self.notebook = lab.open(self.browser.new_page(), "asleep", [code, code])
        self.kernel_id = self.notebook.kernel_id()
        self.notebook.start(0)
        self.notebook.wait_text(0, "[at line-10]")
        for pid in pids_mentioning(mark):
            self.stopped += family(pid)
        assert len(self.stopped) > 1, "not all processes of the browser were found"
        for pid in self.stopped:
            kill(pid, signal.SIGSTOP)
        self.since = time.monotonic()
        open_gates(directory, *GATES)
        gateway.wait_state(self.kernel_id, "idle", 60)

    def slept(self) -> bool:
        return time.monotonic() - self.since >= self.SECONDS

    def wake(self) -> None:
        for pid in self.stopped:
            kill(pid, signal.SIGCONT)
        self.stopped.clear()

    def close(self) -> None:
        self.wake()
        self.browser.close()


@pytest.fixture(scope="module", autouse=True)
def asleep(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asleep | None]:
    """Suspends a browser while the other tests run, if the slow test is selected."""
    wanted = any("asleep" in item.fixturenames and "slow" in item.keywords for item in request.session.items)
    if not wanted:
        yield None
        return
    directory = tmp_path_factory.mktemp("asleep")
    launch, lab, gateway = map(request.getfixturevalue, ("launch_browser", "lab", "gateway"))
    asleep = Asleep(launch, lab, gateway, directory)
    yield asleep
    asleep.close()


@pytest.fixture
def browser_proxy(lab: Lab, make_proxy: Callable[[int], Proxy]) -> Proxy:
    """A proxy between the browser and JupyterLab's server."""
    return make_proxy(lab.port)


def open_through(proxy: Proxy, lab: Lab, page: Page, name: str, cells: list[str]) -> Notebook:
    lab.write_notebook(name, cells)
    notebook = Notebook(page, lab, name, url=f"http://127.0.0.1:{proxy.port}")
    notebook.load()
    return notebook


def lose(proxy: Proxy, how: str) -> None:
    """Breaks or silences the proxy's connections."""
    if how in ("silent", "half-open"):
        proxy.silence()
    else:
        proxy.hold(reset=how == "reset")


@pytest.mark.parametrize(
    ("hops", "how"),
    [
        ("browser", "reset"),
        ("browser", "silent"),
        ("browser", "half-open"),
        ("gateway", "fin"),
        ("gateway", "silent"),
        ("gateway", "half-open"),
        ("both", "reset"),
        ("both", "silent"),
    ],
)
def test_a_cell_is_complete_after_lost_connections(
    lab: Lab,
    page: Page,
    gateway: Gateway,
    gateway_proxy: Proxy,
    browser_proxy: Proxy,
    tmp_path: Path,
    hops: str,
    how: str,
) -> None:
    code = gated(tmp_path, PROGRESS)
    notebook = open_through(browser_proxy, lab, page, f"lost-{hops}-{how}", [code, code])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "[at line-10]")
    proxies = {"browser": [browser_proxy], "gateway": [gateway_proxy]}.get(
        hops, [browser_proxy, gateway_proxy]
    )
    try:
        for proxy in proxies:
            lose(proxy, how)
        open_gates(tmp_path, *GATES)
        # The cell prints everything while the connection is down.
        gateway.wait_state(kernel_id, "idle", 60)
    finally:
        for proxy in reversed(proxies):
            proxy.heal(reset_target=how != "half-open")
    expect_undisturbed(gateway, notebook, kernel_id)


def test_a_reconnected_browser_keeps_its_session(
    lab: Lab, page: Page, gateway: Gateway, browser_proxy: Proxy, tmp_path: Path
) -> None:
    # jupyter_server keeps its gateway connection for the lost browser for 90 s, and reopens it whenever the gateway
    # closes it. The old and the new connection must not keep replacing each other.
    code = gated(tmp_path, PROGRESS)
    notebook = open_through(browser_proxy, lab, page, "came-back", [code, code, "6 * 7"])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "[at line-10]")
    lost = lab.process.output.count(f"Lost connection to Gateway: {kernel_id}")
    browser_proxy.silence()
    open_gates(tmp_path, *GATES)
    gateway.wait_state(kernel_id, "idle", 60)
    browser_proxy.heal(reset_target=False)
    expect_undisturbed(gateway, notebook, kernel_id)
    for count in range(3, 13):
        notebook.run(2)
        expect(notebook.prompt(2)).to_have_text(f"[{count}]:")
        notebook.wait_text(2, "42")
    assert lab.process.output.count(f"Lost connection to Gateway: {kernel_id}") == lost


# The cell's output is discarded: replies and output use different sockets, so the reply could overtake it.
PAGE = """
import contextlib, io
from IPython.core.page import page
page("shown by the pager")
with contextlib.redirect_stdout(io.StringIO()):
    gate("go")
"""


def test_pager_output_of_a_replayed_reply_is_shown_once(
    lab: Lab, page: Page, gateway: Gateway, browser_proxy: Proxy, tmp_path: Path
) -> None:
    code = gated(tmp_path, PAGE)
    notebook = open_through(browser_proxy, lab, page, "pager", [code, code])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    eventually((tmp_path / "at-go").exists, "the cell waits")
    open_gates(tmp_path, "go")
    notebook.wait_text(0, "shown by the pager")
    # The reply has arrived. After the cut, it is replayed.
    browser_proxy.hold()
    browser_proxy.heal()
    expect_undisturbed(gateway, notebook, kernel_id, "shown by the pager")


QUESTION = """
print("before")
gate("ask")
answer = input("Who? ")
gate("answered")
print("Hello", answer)
"""


@pytest.mark.parametrize("cut", ["before the question", "at the question", "after the answer"])
def test_an_input_request_survives_a_cut(
    lab: Lab, page: Page, gateway: Gateway, browser_proxy: Proxy, tmp_path: Path, cut: str
) -> None:
    notebook = open_through(
        browser_proxy, lab, page, f"question-{cut.split()[0]}", [gated(tmp_path, QUESTION), "answer"]
    )
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "[at ask]")
    field = notebook.cell(0).locator(".jp-Stdin-input")

    def waits_for_input() -> bool:
        return latest_of_cell(gateway, kernel_id, notebook.cell_id(0))["input_request"] is not None

    if cut == "before the question":
        browser_proxy.hold()
        open_gates(tmp_path, "ask")
        eventually(waits_for_input, "the gateway has the input request")
        browser_proxy.heal()
    else:
        open_gates(tmp_path, "ask")
        expect(field).to_be_visible(timeout=30_000)
    if cut == "at the question":
        eventually(waits_for_input, "the gateway has the input request")
        first = field.element_handle()
        browser_proxy.hold()
        browser_proxy.heal()
        page.wait_for_function("field => !field.isConnected", arg=first, timeout=60_000)
    expect(field).to_be_visible(timeout=30_000)
    expect(field).to_have_count(1)
    field.fill("Ada")
    field.press("Enter")
    # The input request may be replayed before the answer reaches the gateway. The answer counts once.
    notebook.wait_text(0, "[at answered]")
    if cut == "after the answer":
        browser_proxy.hold()
    open_gates(tmp_path, "answered")
    gateway.wait_state(kernel_id, "idle", 60)
    browser_proxy.heal()
    notebook.wait_text(0, "Hello Ada")
    notebook.finished(0)
    expect(field).to_have_count(0)
    # The next cell runs, and no input request is shown again.
    notebook.run(1)
    notebook.wait_text(1, "'Ada'")
    expect(field).to_have_count(0)
    recorded = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))
    assert recorded["input_request"] is None
    shown = "".join(o["text"] for o in notebook.outputs(0))
    assert [shown.count(t) for t in ("before", "[at ask]", "[at answered]", "Hello Ada")] == [1] * 4


LARGE = """
print("before")
gate("large")
display({"application/x-e2e": "x" * (11 << 20), "text/plain": "large"}, raw=True)
gate("after")
print("after the large one")
"""
NOTICE = "An output of 11 MiB is not shown"


def test_an_output_too_large_for_jupyter_server_is_replaced_by_a_notice(
    lab: Lab, page: Page, gateway: Gateway, gateway_proxy: Proxy, tmp_path: Path
) -> None:
    code = "from IPython.display import display\n" + gated(tmp_path, LARGE)
    notebook = lab.open(page, "too-large", [code, code])
    kernel_id = notebook.kernel_id()
    lost = lab.process.output.count(f"Lost connection to Gateway: {kernel_id}")
    notebook.start(0)
    notebook.wait_text(0, "[at large]")
    # The large output is recorded while the connection is down, and replayed after a second cut.
    gateway_proxy.hold()
    open_gates(tmp_path, "large")
    eventually(
        lambda: len(latest_of_cell(gateway, kernel_id, notebook.cell_id(0))["outputs"]) > 1,
        "the large output is recorded",
    )
    gateway_proxy.heal()
    notebook.wait_text(0, "[at after]", 60)
    gateway_proxy.hold()
    gateway_proxy.heal()
    open_gates(tmp_path, "after")
    notebook.wait_text(0, "after the large one", 60)
    notebook.finished(0)
    notebook.run(1, 60)
    notebook.wait_text(1, "after the large one")
    for cell in (0, 1):
        shown = notebook.text(cell)
        assert shown.count(NOTICE) == 1, shown
        assert [shown.count(t) for t in ("before", "after the large one")] == [1, 1]
    assert normalized(notebook.outputs(0)) == normalized(notebook.outputs(1))
    # Only the two cuts broke the connection, not the large output.
    assert lab.process.output.count(f"Lost connection to Gateway: {kernel_id}") == lost + 2
    kept = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))["outputs"]
    assert [len(o["data"]["application/x-e2e"]) for o in kept if "data" in o] == [11 << 20]


def test_displays_and_widgets_changed_during_a_cut_are_updated(
    lab: Lab, page: Page, gateway: Gateway, browser_proxy: Proxy, tmp_path: Path
) -> None:
    make = (
        "import ipywidgets as w\nfrom IPython.display import display\n"
        "shown = display('display: old', display_id=True)\n"
        "label = w.Label('label: old')\ndisplay(label)"
    )
    change = gated(
        tmp_path,
        "gate('change')\nshown.update('display: new')\nlabel.value = 'label: new'\n"
        "display(label)\nother = w.Label('other: made')\ndisplay(other)\nprint('changed')",
    )
    notebook = open_through(
        browser_proxy,
        lab,
        page,
        "displays",
        [make, change, "shown.update('display: last')\nlabel.value = 'label: last'"],
    )
    kernel_id = notebook.kernel_id()
    notebook.run(0)
    expect(notebook.cell(0)).to_contain_text("label: old", timeout=30_000)
    notebook.start(1)
    notebook.wait_text(1, "[at change]")
    browser_proxy.hold()
    open_gates(tmp_path, "change")
    gateway.wait_state(kernel_id, "idle", 60)
    browser_proxy.heal()
    notebook.finished(1, timeout=60)
    expect(notebook.output(1).filter(has_text="other: made")).to_have_count(1)
    for cell in (0, 1):
        expect(notebook.cell(cell)).to_contain_text("label: new")
    expect(notebook.cell(0)).to_contain_text("display: new")
    assert "old" not in notebook.text(0)
    notebook.run(2)
    for cell in (0, 1):
        expect(notebook.cell(cell)).to_contain_text("label: last")
    expect(notebook.cell(0)).to_contain_text("display: last")
    assert notebook.text(0).count("display:") == 1
    assert notebook.text(1).count("changed") == 1
    recorded = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))
    assert normalized(recorded["outputs"]) == normalized(notebook.outputs(0))


def test_a_page_reloaded_during_a_cell_finds_its_execution(
    lab: Lab, page: Page, gateway: Gateway, tmp_path: Path
) -> None:
    code = gated(tmp_path, PROGRESS)
    notebook = lab.open(page, "reloaded", [code, code])
    kernel_id = notebook.kernel_id()
    cell_id = notebook.cell_id(0)
    notebook.start(0)
    notebook.wait_text(0, "[at line-10]")
    notebook.reload()
    assert notebook.kernel_id() == kernel_id
    assert notebook.cell_id(0) == cell_id
    running = latest_of_cell(gateway, kernel_id, cell_id)
    assert running["status"] == "running"
    assert "line  9: 100 %" in str(running["outputs"])
    open_gates(tmp_path, *GATES)
    gateway.wait_state(kernel_id, "idle", 60)
    notebook.wait_status("idle", 60)
    notebook.run(1, 60)
    notebook.wait_text(1, LAST)
    recorded = latest_of_cell(gateway, kernel_id, cell_id)
    assert (recorded["status"], recorded["execution_count"]) == ("ok", 1)
    assert normalized(recorded["outputs"]) == normalized(notebook.outputs(1))


@pytest.fixture(scope="module")
def pair(
    built: None, make_home: Callable[[str], Path]
) -> Iterator[tuple[Gateway, Lab]]:
    """A gateway and a JupyterLab that tests may restart."""
    gateway = Gateway(make_home("gw-ends"), port=free_port()).start()
    lab = Lab(make_home("lab-ends"), gateway.url, gateway.token)
    yield gateway, lab
    lab.close()
    gateway.close()


def test_a_cell_is_complete_after_a_restart_of_jupyter_server(
    pair: tuple[Gateway, Lab], page: Page, make_proxy: Callable[[int], Proxy], tmp_path: Path
) -> None:
    gateway, lab = pair
    proxy = make_proxy(lab.port)
    code = gated(tmp_path, PROGRESS)
    notebook = open_through(proxy, lab, page, "server-restarted", [code, code])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "[at line-10]")
    # A restarted jupyter_server does not know its former kernels, and the page drops a kernel that its server does not
    # know. So the page must not reach the server before the server has adopted the kernel.
    proxy.hold()
    lab.kill()
    open_gates(tmp_path, *GATES)
    gateway.wait_state(kernel_id, "idle", 60)
    lab.start()
    lab.adopt(kernel_id)
    proxy.heal()
    expect_undisturbed(gateway, notebook, kernel_id)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_restarted_gateway_resumes_a_running_cell(
    pair: tuple[Gateway, Lab], page: Page, tmp_path: Path, number: signal.Signals
) -> None:
    gateway, lab = pair
    code = gated(tmp_path, PROGRESS)
    notebook = lab.open(page, f"gateway-{number.name}", [code, code])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "[at line-10]")
    gateway.stop(number)
    # The kernel's agent records this output.
    open_gates(tmp_path, "line-10")
    eventually((tmp_path / "at-line-60").exists, "the cell continues")
    gateway.start()
    open_gates(tmp_path, "line-60")
    notebook.finished(0, timeout=90)
    expect(notebook.prompt(0)).to_have_text("[1]:")
    notebook.run(1, 60)
    notebook.wait_text(1, LAST)
    expect(notebook.prompt(1)).to_have_text("[2]:")
    lines = [int(n) for n in re.findall(r"line +(\d+): 100 %", notebook.text(0))]
    assert lines == list(range(100))
    assert notebook.text(0).count(LAST) == 1
    recorded = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))
    assert (recorded["status"], recorded["execution_count"]) == ("ok", 1)
    assert recorded["complete"] is True
    assert normalized(recorded["outputs"]) == normalized(notebook.outputs(0))
    again = latest_of_cell(gateway, kernel_id, notebook.cell_id(1))
    assert again["complete"] is True
    assert normalized(again["outputs"]) == normalized(notebook.outputs(1))


@pytest.mark.parametrize("agent", ["off", "auto"])
def test_cells_that_end_without_a_gateway(
    built: None, make_home: Callable[[str], Path], page: Page, tmp_path: Path, agent: str
) -> None:
    gateway = Gateway(make_home("gw-ended"), "--agent", agent, port=free_port()).start()
    lab = Lab(make_home("lab-ended"), gateway.url, gateway.token)
    try:
        cells_end_without_a_gateway(gateway, lab, page, tmp_path, complete=agent == "auto")
    finally:
        lab.close()
        gateway.close()


def cells_end_without_a_gateway(gateway: Gateway, lab: Lab, page: Page, tmp_path: Path, complete: bool) -> None:
    code = gated(tmp_path, "print('before', flush=True)\ngate('cut')\nprint('after')")
    marks = f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'second').touch()"
    notebook = lab.open(page, "ended-without-gateway", [code, marks, "print('next', 6 * 7)"])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "[at cut]")
    notebook.start(1)
    logged = f"api/kernels/{kernel_id}/executions?cellId={notebook.cell_id(1)}"
    eventually(lambda: gateway.rest("GET", logged).json()["executions"], "the second cell is logged")
    # A request is logged before it is sent, and requests of a channel are sent in order. So once a later one is logged,
    # the second cell has been sent.
    with gateway.socket(kernel_id) as client:
        later = client.request("history_request", {"hist_access_type": "tail", "n": 1, "raw": True, "output": False})

        def later_is_logged() -> bool:
            return later in [msg_id for _, msg_id in log_of(gateway, kernel_id)]

        eventually(later_is_logged, "the later request is logged")
    gateway.stop(signal.SIGKILL)
    open_gates(tmp_path, "cut")
    # The second cell runs after the reply to the first.
    eventually((tmp_path / "second").exists, "both cells have run")
    gateway.start()
    if complete:
        for cell, prompt in ((0, "[1]:"), (1, "[2]:")):
            expect(notebook.prompt(cell)).to_have_text(prompt, timeout=90_000)
        notebook.wait_text(0, "after")
        recorded = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))
        assert (recorded["status"], recorded["complete"]) == ("ok", True)
        assert normalized(recorded["outputs"]) == normalized(notebook.outputs(0))
        return
    # Both cells end and show that output may be missing.
    for cell, prompt in ((0, "[1]:"), (1, "[ ]:")):
        notebook.wait_text(cell, "some of its output may be missing", 90)
        expect(notebook.prompt(cell)).to_have_text(prompt)
    assert "before" in notebook.text(0)
    assert "after" not in notebook.text(0)
    recorded = latest_of_cell(gateway, kernel_id, notebook.cell_id(0))
    assert (recorded["status"], recorded["complete"]) == ("lost", False)
    assert normalized(recorded["outputs"]) == normalized(notebook.outputs(0))
    notebook.run(2, 60)
    notebook.wait_text(2, "next 42")
    expect(notebook.prompt(2)).to_have_text("[3]:")


@pytest.mark.slow
def test_a_cell_is_complete_after_a_minute_of_suspend(asleep: Asleep, gateway: Gateway) -> None:
    eventually(asleep.slept, "a minute is over", Asleep.SECONDS + 10)
    asleep.wake()
    expect_undisturbed(gateway, asleep.notebook, asleep.kernel_id)
