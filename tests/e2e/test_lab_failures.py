"""What kernelmux-lab restores after a gateway, a notebook server or a connection failed.

The numbers of the scenarios refer to clients/lab/README.md.
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateway import Gateway, free_port
from harness.lab import Lab, Notebook
from harness.proxy import Proxy
from harness.restoring import (
    Steps,
    close,
    expect_lines,
    expect_running,
    expect_whole,
    open_page,
    run_and_close,
    wait_ended,
)
from harness.waiting import eventually
from playwright.sync_api import Page, expect


@pytest.fixture(scope="module")
def gateway(built: None, make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    """A gateway that tests may restart. It keeps its port."""
    gateway = Gateway(make_home("gw-fails"), port=free_port()).start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def lab(
    gateway: Gateway, gateway_proxy: Proxy, make_home: Callable[[str], Path], lab_extension: Path
) -> Iterator[Lab]:
    """A JupyterLab that tests may restart."""
    url = f"http://127.0.0.1:{gateway_proxy.port}"
    lab = Lab(make_home("lab-fails"), url, gateway.token, extension=lab_extension)
    yield lab
    lab.close()


# Scenario 25
def test_the_remaining_outputs_of_a_trimmed_log_are_shown_with_notices(
    start_gateway: Callable[..., Gateway],
    make_home: Callable[[str], Path],
    lab_extension: Path,
    page: Page,
    steps: Steps,
) -> None:
    gateway = start_gateway("--log-max-mib", "16")
    lab = Lab(make_home("lab-trimmed"), gateway.url, gateway.token, extension=lab_extension)
    try:
        # 100 MB, several times the log's size.
        count = 400
        code = (
            "from IPython.display import display\n"
            "display({'application/x-e2e': 'x', 'text/plain': 'the first'}, raw=True)\n"
            f"for number in range({count}):\n"
            "    display({'application/x-e2e': 'x' * (1 << 18), 'text/plain': f'output {number};'}, raw=True)\n"
            "gate('end')\n"
            "print('the last')\n"
        )
        run_and_close(lab, page, "trimmed", [steps.code(code)], steps, at="end")
        [kernel] = gateway.rest("GET", "api/kernels").json()

        def is_recorded() -> bool:
            log = gateway.rest("GET", f"api/kernels/{kernel['id']}/log?follow=false").text
            return f"output {count - 1};" in log

        eventually(is_recorded, "the gateway has recorded everything", 120)
        notebook = open_page(page, lab, "trimmed")
        expect_running(notebook, 0)
        notebook.wait_text(0, "is missing here", 60)
        steps.open("end")
        expect(notebook.prompt(0)).to_have_text("[1]:", timeout=60_000)
        *outputs, last = notebook.outputs(0)
        assert last["text"] == "the last\n"
        shown: list[int | None] = []
        for output in outputs:
            if "text" in output:
                assert "is missing here" in output["text"]
                shown.append(None)
            else:
                shown.append(int(re.sub(r"\D", "", output["data"]["text/plain"])))
        # There is a notice (None) wherever outputs are missing, and nowhere else.
        for before, after in itertools.pairwise([-1, *shown, count]):
            assert before is None or after is None or after == before + 1, shown
    finally:
        lab.close()


# Scenario 30
@pytest.mark.parametrize("open_", [False, True], ids=["closed", "open"])
def test_a_cell_goes_on_after_the_gateway_was_killed(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps, open_: bool
) -> None:
    name = f"killed-{open_}"
    run_and_close(lab, page, name, [steps.lines(3), "print('next', 6 * 7)"], steps)
    if open_:
        notebook = open_page(page, lab, name)
        expect_running(notebook, 0)
        expect_lines(notebook, 0, 3)
    gateway.stop(signal.SIGKILL)
    gateway.start()
    if not open_:
        notebook = open_page(page, lab, name)
        expect_running(notebook, 0)
    steps.open(3)
    # The agent recorded what the kernel printed while the gateway was gone.
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1
    notebook.run(1)
    notebook.wait_text(1, "next 42")


# Scenario 31
def test_a_replay_that_is_cut_twenty_times_is_complete(
    lab: Lab,
    page: Page,
    gateway: Gateway,
    gateway_proxy: Proxy,
    make_proxy: Callable[[int], Proxy],
    steps: Steps,
) -> None:
    cells = [steps.lines(3), *[f"for n in range(50):\n    print('cell {i} line', n)" for i in range(1, 40)]]
    cells.append(steps.code("print('waits')\ngate('end')\nprint('goes on')"))
    closed = run_and_close(lab, page, "cut", cells, steps, run="all")
    steps.open(3)
    steps.wait_at("end")
    browser_proxy = make_proxy(lab.port)
    notebook = Notebook(page, lab, "cut", url=f"http://127.0.0.1:{browser_proxy.port}")
    notebook.goto()
    for number in range(20):
        proxy = gateway_proxy if number % 2 else browser_proxy
        eventually(lambda proxy=proxy: proxy.connections() > 0, "a connection is open")
        proxy.hold()
        proxy.heal()
    steps.open("end")
    wait_ended(gateway, closed, 40)
    expect(notebook.prompt(40)).to_have_text("[41]:", timeout=90_000)

    def texts() -> list[list[str]]:
        return [[output["text"] for output in notebook.outputs(index)] for index in range(41)]

    lines = [f"line {n};\n" for n in range(60)]
    cells = [lines, *[[f"cell {i} line {n}\n" for n in range(50)] for i in range(1, 40)], ["waits\n", "goes on\n"]]
    expected = [["".join(cell)] for cell in cells]
    # The gateway repeats a replay that may not have arrived, so a cell may be filled a second time.
    eventually(lambda: texts() == expected, "all cells are complete")
    for index in range(41):
        expect(notebook.prompt(index)).to_have_text(f"[{index + 1}]:")


# Scenario 32
@pytest.mark.parametrize("open_", [False, True], ids=["closed", "open"])
def test_a_restarted_notebook_server_finds_its_kernels(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps, open_: bool
) -> None:
    name = f"server-{open_}"
    closed = run_and_close(lab, page, name, [steps.lines(3), "print('next', 6 * 7)"], steps)
    if open_:
        notebook = open_page(page, lab, name)
        expect_running(notebook, 0)
        # JupyterLab reports the lost server in a dialog, possibly several times, and may close the dialog at any time.
        close_button = ".jp-Dialog button.jp-mod-reject"
        page.add_locator_handler(
            page.locator(close_button).first,
            lambda: page.evaluate("button => document.querySelector(button)?.click()", close_button),
            no_wait_after=True,
        )
    # A normal exit, which without kernelmux-lab shuts down all kernels.
    lab.process.stop(signal.SIGTERM)
    assert gateway.model(closed.known_kernel) is not None
    lab.start()
    if not open_:
        notebook = open_page(page, lab, name)
        expect_running(notebook, 0)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    assert notebook.kernel_id() == closed.known_kernel
    assert steps.ran() == 1
    notebook.run(1)
    notebook.wait_text(1, "next 42")


class Sent:
    """The addresses that a page requests, and the messages that it sends on WebSockets."""

    def __init__(self, page: Page) -> None:
        self.texts: list[str] = []
        page.on("request", lambda request: self.texts.append(request.url))
        page.on("websocket", lambda socket: socket.on("framesent", lambda data: self.texts.append(str(data))))

    def of_kernelmux(self) -> list[str]:
        """The texts that only kernelmux-lab sends. The prebuilt extension's files are always loaded."""
        return [text for text in self.texts if re.search(r'"kernelmux"|/kernelmux/(?!lab/static/)', text)]

    def has(self, msg_type: str) -> bool:
        return any(msg_type in text for text in self.texts)


# Scenario 33
@pytest.mark.parametrize("server_extension", [False, True], ids=["no server extension", "no gateway"])
def test_without_a_server_extension_or_a_gateway_nothing_changes(
    gateway: Gateway,
    make_home: Callable[[str], Path],
    lab_extension: Path,
    page: Page,
    steps: Steps,
    server_extension: bool,
) -> None:
    url, token = (None, None) if server_extension else (gateway.url, gateway.token)
    lab = Lab(make_home("lab-other"), url, token, extension=lab_extension, server_extension=server_extension)
    try:
        sent = Sent(page)
        notebook = lab.open(page, "other", [steps.lines(3), "print('next', 6 * 7)"])
        notebook.start(0)
        steps.wait_at(3)
        steps.open(3)
        expect_whole(notebook, 0, 1)
        assert "kernelmux" not in notebook.metadata(0)
        notebook.run(1)
        notebook.wait_text(1, "next 42")
        notebook.save()
        notebook.reload()
        expect_lines(notebook, 0, 60)
        assert sent.has("execute_request")
        assert not sent.of_kernelmux()
        close(page)
    finally:
        lab.close()


# Jupyter Kernel Gateway loses a kernel's first messages at times, and JupyterLab then waits for them before it runs a
# cell. So this test does not depend on the kernel.
def test_with_another_gateway_nothing_is_sent(make_home: Callable[[str], Path], lab_extension: Path, page: Page) -> None:
    gateway = Gateway(make_home("gw-other"), peer="kernel-gateway").start()
    lab = Lab(make_home("lab-other"), gateway.url.rstrip("/"), gateway.token, extension=lab_extension)
    try:
        sent = Sent(page)
        lab.write_notebook("other", ["6 * 7"])
        notebook = open_page(page, lab, "other")
        notebook.start(0)
        notebook.save()
        notebook.reload()
        assert "kernelmux" not in notebook.metadata(0)
        assert sent.has("kernel_info_request")
        assert not sent.of_kernelmux()
        close(page)
    finally:
        lab.close()
        gateway.close()
