"""An unmodified JupyterLab in Chromium with kernels in pods of a real cluster.

browser - (proxy) - jupyter_server - (proxy) - gateway - (proxy) - API server - pod. The gateway has only the rights of
its Role and port-forwarding. `make test-k8s` starts a cluster and runs these tests on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from conftest import skip_or_fail
from harness.cluster import why_no_cluster
from harness.reconnecting import entries_of
from harness.executions import latest_of_cell
from harness.gated import expect_complete, gated
from harness.gateway import Gateway
from harness.lab import Lab, Notebook
from harness.pods import KernelNamespace, kernel_namespace
from harness.proxy import Proxy
from harness.waiting import eventually
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.kubernetes

# The cells of a notebook shared by tests that neither end its kernel nor depend on its state.
SHARED = {
    "execute": "import socket\nprint('printed in', socket.gethostname())\n6 * 7",
    "input": "name = input('Who? ')\nprint('Hello', name)",
    "loop": "import time\nprint('on')\nwhile True:\n    time.sleep(0.05)",
    "set": "kept = 1\nprint('set')",
    "kept": "print('kept', kept)",
    "widget": "import ipywidgets as w\n"
    "box = w.Text(value='old', continuous_update=False)\n"
    "label = w.Label('untouched')\n"
    "box.observe(lambda c: setattr(label, 'value', 'kernel saw ' + c.new), 'value')\n"
    "w.VBox([box, label])",
    "value": "print(box.value)",
}
CELL = {name: index for index, name in enumerate(SHARED)}
# Long enough for the page to run the cell before the kernel is culled.
IDLE_SECONDS = 20
OUT_OF_MEMORY = "killed because it ran out of memory"


@pytest.fixture(scope="module")
def namespace(make_home: Callable[[str], Path]) -> Iterator[KernelNamespace]:
    if reason := why_no_cluster():
        skip_or_fail(reason)
    with kernel_namespace(make_home("cluster")) as namespace:
        namespace.install("python3")
        namespace.install("culled", cull_idle_timeout=IDLE_SECONDS, cull_connected=True)
        namespace.install("small", memory="256Mi")
        yield namespace


@pytest.fixture(scope="module")
def gateway(built: None, namespace: KernelNamespace, make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    gateway = Gateway(
        make_home("gw"), "--kubernetes-namespace", namespace.name, "--cull-interval", "1", env=namespace.environment
    )
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def shared_notebook(lab: Lab) -> None:
    lab.write_notebook("shared", list(SHARED.values()))


@pytest.fixture
def shared(lab: Lab, shared_notebook: None, page: Page) -> Notebook:
    notebook = Notebook(page, lab, "shared")
    notebook.load()
    return notebook


def ends_of(gateway: Gateway, kernel_id: str) -> list[dict[str, Any]]:
    """The status messages in the kernel's log that report a restart or a death."""
    contents = [entry["content"] for entry in entries_of(gateway, kernel_id)]
    return [content for content in contents if content.get("execution_state") in ("restarting", "dead")]


def test_execute(shared: Notebook) -> None:
    shared.run(CELL["execute"])
    shared.wait_text(CELL["execute"], "42")
    shared.wait_text(CELL["execute"], f"printed in kernel-{shared.kernel_id()}")


def test_input_answered_in_the_page(shared: Notebook) -> None:
    index = CELL["input"]
    shared.start(index)
    field = shared.cell(index).locator(".jp-Stdin-input")
    expect(field).to_be_visible(timeout=30_000)
    field.fill("Ada")
    field.press("Enter")
    shared.wait_text(index, "Hello Ada")
    shared.finished(index)


def test_interrupt(shared: Notebook) -> None:
    shared.start(CELL["loop"])
    shared.wait_text(CELL["loop"], "on")
    shared.wait_status("busy")
    shared.panel.locator("[data-command='notebook:interrupt-kernel']").first.click()
    shared.wait_text(CELL["loop"], "KeyboardInterrupt")
    shared.run(CELL["execute"])
    shared.wait_text(CELL["execute"], "42")


def test_widget_changes_reach_the_kernel_and_return(shared: Notebook) -> None:
    index = CELL["widget"]
    shared.run(index)
    field = shared.cell(index).locator("input[type=text]").first
    expect(field).to_have_value("old", timeout=30_000)
    field.fill("new")
    field.press("Enter")
    expect(shared.cell(index)).to_contain_text("kernel saw new", timeout=30_000)
    shared.run(CELL["value"])
    shared.wait_text(CELL["value"], "new")


def test_restart(shared: Notebook, namespace: KernelNamespace) -> None:
    def pod() -> str:
        return namespace.kubectl("get", "pod", f"kernel-{kernel_id}", "--output=jsonpath={.metadata.uid}")

    shared.run(CELL["set"])
    kernel_id = shared.kernel_id()
    before = pod()
    shared.restart()
    assert pod() != before
    shared.start(CELL["kept"])
    shared.wait_text(CELL["kept"], "NameError")
    # The execution count starts again; the kernel's id stays.
    expect(shared.prompt(CELL["kept"])).to_have_text("[1]:")
    assert shared.kernel_id() == kernel_id


@pytest.mark.parametrize(("hop", "how"), [("browser", "reset"), ("gateway", "fin"), ("gateway", "silent")])
def test_a_cell_is_complete_after_a_lost_connection(
    lab: Lab,
    page: Page,
    namespace: KernelNamespace,
    gateway: Gateway,
    gateway_proxy: Proxy,
    make_proxy: Callable[[int], Proxy],
    hop: str,
    how: str,
) -> None:
    gate = PurePosixPath(f"/tmp/{hop}-{how}")
    browser_proxy = make_proxy(lab.port)
    lab.write_notebook(f"lost-{hop}-{how}", [gated(gate), "print('next', 6 * 7)"])
    notebook = Notebook(page, lab, f"lost-{hop}-{how}", url=f"http://127.0.0.1:{browser_proxy.port}")
    notebook.load()
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "first line")
    gateway.wait_state(kernel_id, "busy")
    proxy = browser_proxy if hop == "browser" else gateway_proxy
    try:
        if how == "silent":
            proxy.silence()
        else:
            proxy.hold(reset=how == "reset")
        namespace.run(kernel_id, f"touch {gate}")
        # The cell prints everything while the connection is down.
        gateway.wait_state(kernel_id, "idle")
    finally:
        proxy.heal()
    expect_complete(notebook, 0)
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_a_lost_connection_to_the_pod_marks_the_execution_incomplete(
    lab: Lab, page: Page, namespace: KernelNamespace, gateway: Gateway
) -> None:
    gate = PurePosixPath("/tmp/pod")
    notebook = lab.open(page, "lost-pod", [gated(gate), "print('next', 6 * 7)"])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "first line")
    assert gateway.process is not None
    namespace.api.cut()
    gateway.process.wait_for_line(rf"{kernel_id}.* the connection to the kernel is lost.*channel=iopub")
    namespace.api.heal()
    gateway.process.wait_for_line(rf"{kernel_id}.* reconnected to the kernel.*channel=iopub")
    namespace.run(kernel_id, f"touch {gate}")
    expect_complete(notebook, 0)
    # Output during the interruption could be missing, so the execution is marked as incomplete.
    assert latest_of_cell(gateway, kernel_id, notebook.cell_id(0))["complete"] is False
    notebook.run(1)
    notebook.wait_text(1, "next 42")
    assert latest_of_cell(gateway, kernel_id, notebook.cell_id(1))["complete"] is True


def test_a_culled_kernel_is_shown_and_its_output_kept(lab: Lab, page: Page, gateway: Gateway) -> None:
    notebook = lab.open(page, "culled", ["print('kept')\n6 * 7"], "culled")
    notebook.run(0)
    notebook.wait_text(0, "42")
    kernel_id, cell_id = notebook.kernel_id(), notebook.cell_id(0)
    eventually(lambda: gateway.model(kernel_id) is None, "the kernel is culled", 60)
    [died] = ends_of(gateway, kernel_id)
    assert died["execution_state"] == "dead"
    reason = re.fullmatch(r"culled: idle for (\d+) s", died["reason"])
    assert reason and int(reason[1]) >= IDLE_SECONDS, died
    # Its output is kept.
    [log] = [log for log in gateway.rest("GET", "api/logs").json() if log["kernel_id"] == kernel_id]
    assert log["running"] is False
    execution = latest_of_cell(gateway, kernel_id, cell_id)
    assert (execution["status"], execution["reason"]) == ("ok", None)
    assert [output.get("text") for output in execution["outputs"]] == ["kept\n", None]
    # JupyterLab notices the kernel's end in its server's list of kernels.
    expect(notebook.panel.locator(".jp-KernelName").first).to_contain_text("No Kernel", timeout=60_000)


def test_running_out_of_memory_is_shown_and_the_next_cell_runs(
    lab: Lab, page: Page, namespace: KernelNamespace, gateway: Gateway
) -> None:
    notebook = lab.open(
        page,
        "memory",
        ["print('before', flush=True)\n" + gated(PurePosixPath("/tmp/memory")) + "b'x' * (1 << 30)", "6 * 7"],
        "small",
    )
    kernel_id, cell_id = notebook.kernel_id(), notebook.cell_id(0)
    notebook.start(0)
    notebook.wait_text(0, "first line")
    namespace.run(kernel_id, "touch /tmp/memory")
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("appears to have died", timeout=60_000)
    notebook.dialog_button("Ok")
    notebook.wait_status("idle", 60)
    [died] = ends_of(gateway, kernel_id)
    assert (died["execution_state"], died["reason"]) == ("restarting", OUT_OF_MEMORY)
    assert OUT_OF_MEMORY in gateway.output
    execution = latest_of_cell(gateway, kernel_id, cell_id)
    assert (execution["status"], execution["reason"]) == ("died", OUT_OF_MEMORY)
    assert execution["outputs"][0]["text"].startswith("before\nfirst line\n")
    # Output that the kernel had not sent when it was killed is missing.
    assert execution["complete"] is False
    notebook.run(1)
    notebook.wait_text(1, "42")
