"""An unmodified JupyterLab in Chromium with the gateway's kernels.

browser - jupyter_server - (proxy) - gateway - kernel
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gated import expect_complete, gated
from harness.gateway import Gateway
from harness.lab import Lab, Notebook
from harness.proxy import Proxy
from harness.wire import text_of
from playwright.sync_api import Page, expect

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)

def test_rich_output(lab: Lab, page: Page) -> None:
    notebook = lab.open(
        page,
        "rich",
        [
            "from IPython.display import HTML, Image, display\n"
            "import base64\n"
            "print('plain')\n"
            "display(HTML('<b id=\"bold\">rich</b>'))\n"
            f"display(Image(data=base64.b64decode('{PNG}'), format='png'))\n"
            "handle = display('before', display_id=True)\n"
            "6 * 7",
            "handle.update('after'); None",
            "1/0",
        ],
    )
    notebook.run(0)
    notebook.wait_text(0, "plain")
    expect(notebook.output(0).locator("#bold")).to_have_text("rich")
    expect(notebook.output(0).locator("img")).to_have_js_property("naturalWidth", 1)
    notebook.wait_text(0, "before")
    notebook.wait_text(0, "42")
    notebook.run(1)
    notebook.wait_text(0, "after")
    expect(notebook.output(0).filter(has_text="before")).to_have_count(0)
    notebook.run(2)
    notebook.wait_text(2, "ZeroDivisionError")


def test_all_of_many_messages_arrive(lab: Lab, page: Page, gateway: Gateway) -> None:
    # Jupyter Kernel Gateway's rate limiter drops output at this rate.
    count = 6000
    notebook = lab.open(
        page,
        "many",
        [f"for i in range({count}):\n    print(i, end=' ', flush=True)\n'end'"],
    )
    with gateway.socket(notebook.kernel_id(), "watching") as watching:
        notebook.start(0)
        watching.until(lambda m: m["header"]["msg_type"] == "execute_result", 120)
    assert text_of(watching.seen).split()[:-1] == [str(i) for i in range(count)]
    notebook.finished(0, timeout=120)
    notebook.wait_text(0, "end", 60)
    stream, result = notebook.outputs(0)
    assert stream["text"].split() == [str(i) for i in range(count)]
    assert result["data"]["text/plain"] == "'end'"


def test_a_cell_continues_after_a_message_too_large_for_jupyter_server(lab: Lab, page: Page) -> None:
    # jupyter_server's gateway client accepts 10 MiB per message and closes the connection on a larger one.
    notebook = lab.open(
        page,
        "large",
        [
            "from IPython.display import display\n"
            "display({'application/x-e2e': 'x' * (11 << 20), 'text/plain': 'large'}, raw=True)\n"
            "print('after the large one')",
            "print('next', 6 * 7)",
        ],
    )
    notebook.start(0)
    notebook.finished(0, timeout=90)
    notebook.wait_text(0, "after the large one")
    notebook.run(1, 60)
    notebook.wait_text(1, "next 42")


def test_input_answered_in_the_page(lab: Lab, page: Page) -> None:
    notebook = lab.open(page, "input", ["name = input('Who? ')\nprint('Hello', name)"])
    notebook.start(0)
    field = notebook.cell(0).locator(".jp-Stdin-input")
    expect(field).to_be_visible(timeout=30_000)
    expect(notebook.cell(0).locator(".jp-Stdin-prompt")).to_contain_text("Who?")
    field.fill("Ada")
    field.press("Enter")
    notebook.finished(0)
    notebook.wait_text(0, "Hello Ada")


def test_interrupt(lab: Lab, page: Page) -> None:
    notebook = lab.open(
        page,
        "interrupt",
        ["import time\nprint('on')\nwhile True:\n    time.sleep(0.05)", "print('next', 6 * 7)"],
    )
    notebook.start(0)
    notebook.wait_text(0, "on")
    notebook.wait_status("busy")
    notebook.panel.locator("[data-command='notebook:interrupt-kernel']").first.click()
    notebook.wait_text(0, "KeyboardInterrupt")
    notebook.finished(0)
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_restart(lab: Lab, page: Page) -> None:
    notebook = lab.open(page, "restart", ["kept = 1\nprint('set')", "print(kept)"])
    notebook.run(0)
    kernel = notebook.kernel_id()
    notebook.restart()
    notebook.start(1)
    notebook.wait_text(1, "NameError")
    # The execution count starts again; the kernel's id stays.
    expect(notebook.prompt(1)).to_have_text("[1]:")
    assert notebook.kernel_id() == kernel


def test_a_crash_is_shown_and_the_next_cell_runs(lab: Lab, page: Page) -> None:
    notebook = lab.open(
        page, "crash", ["import os\nos.kill(os.getpid(), 9)", "print('next', 6 * 7)"]
    )
    notebook.start(0)
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("appears to have died", timeout=30_000)
    expect(dialog).to_contain_text("restart")
    notebook.dialog_button("Ok")
    notebook.wait_status("idle")
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_a_kernel_that_keeps_dying_is_shown_as_dead(lab: Lab, page: Page, gateway: Gateway) -> None:
    notebook = lab.open(page, "dying", ["print('on')"])
    notebook.run(0)
    kernel_id = notebook.kernel_id()
    # A start-up file ends every restarted kernel, so that the restart limit is reached.
    startup = gateway.home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    fatal = startup / "die.py"
    fatal.write_text("import os; os._exit(3)\n")
    try:
        page.evaluate(
            "() => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;"
            " window.statuses = []; k.statusChanged.connect((_, s) => window.statuses.push(s));"
            " void k.requestExecute({code: 'import os; os._exit(3)'}).done.catch(() => {}); }"
        )
        # The page disconnects from a dead kernel, so its indicator shows "disconnected".
        page.wait_for_function("() => window.statuses.includes('dead')", timeout=90_000)
        notebook.wait_status("disconnected", 90)
        model = gateway.model(kernel_id)
        assert model is None or model["execution_state"] == "dead"
    finally:
        fatal.unlink()


def test_widget_changes_reach_the_kernel_and_return(lab: Lab, page: Page) -> None:
    notebook = lab.open(
        page,
        "slider",
        [
            "import ipywidgets as w\n"
            "box = w.Text(value='old', continuous_update=False)\n"
            "label = w.Label('untouched')\n"
            "box.observe(lambda c: setattr(label, 'value', 'kernel saw ' + c.new), 'value')\n"
            "w.VBox([box, label])",
            "print(box.value)",
        ],
    )
    notebook.run(0)
    field = notebook.cell(0).locator("input[type=text]").first
    expect(field).to_have_value("old", timeout=30_000)
    field.fill("new")
    field.press("Enter")
    notebook.wait_text(0, "kernel saw new")
    notebook.run(1)
    notebook.wait_text(1, "new")


def test_binary_widget_data_reaches_the_kernel(lab: Lab, page: Page) -> None:
    # jupyter_server forwards the browser's binary message as a text frame that is not UTF-8.
    data = bytes(range(256)) * 4
    notebook = lab.open(
        page,
        "upload",
        [
            "import ipywidgets as w\nup = w.FileUpload()\nup",
            "f = up.value[0]\nprint(f.name, len(f.content), bytes(f.content) == bytes(range(256)) * 4)",
        ],
    )
    notebook.run(0)
    with page.expect_file_chooser() as chooser:
        notebook.cell(0).locator("button.jupyter-widgets").first.click()
    chooser.value.set_files(
        files=[{"name": "all.bin", "mimeType": "application/octet-stream", "buffer": data}]
    )
    expect(notebook.cell(0)).to_contain_text("Upload (1)", timeout=30_000)
    notebook.run(1)
    notebook.wait_text(1, "all.bin 1024 True")


def test_binary_widget_data_does_not_break_the_connection(lab: Lab, page: Page) -> None:
    # A binary frame from the gateway would permanently end jupyter_server's reader.
    notebook = lab.open(
        page,
        "binary",
        [
            "import base64, ipywidgets as w\n"
            f"image = w.Image(value=base64.b64decode('{PNG}'), format='png')\n"
            "print('made')\nimage",
            "image.value = bytes(range(256)); print('sent')",
            "print('next', 6 * 7)",
        ],
    )
    notebook.run(0)
    notebook.wait_text(0, "made")
    notebook.run(1)
    notebook.wait_text(1, "sent")
    notebook.run(2)
    notebook.wait_text(2, "next 42")
    notebook.wait_status("idle")


@pytest.mark.parametrize("how", ["reset", "fin", "silent"])
def test_a_cell_is_complete_after_a_lost_gateway_connection(
    lab: Lab, page: Page, gateway: Gateway, gateway_proxy: Proxy, tmp_path: Path, how: str
) -> None:
    gate = tmp_path / "gate"
    notebook = lab.open(page, f"lost-{how}", [gated(gate), "print('next', 6 * 7)"])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "first line")
    gateway.wait_state(kernel_id, "busy")
    try:
        if how == "silent":
            gateway_proxy.silence()
        else:
            gateway_proxy.cut(reset=how == "reset")
        gate.touch()
        # The cell prints everything while the connection is down.
        gateway.wait_state(kernel_id, "idle")
    finally:
        gateway_proxy.heal()
    expect_complete(notebook, 0)
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_a_cell_is_complete_after_several_lost_gateway_connections(
    lab: Lab, page: Page, gateway_proxy: Proxy, tmp_path: Path
) -> None:
    code = f"""
import pathlib, time
for step in range(4):
    print("step", step, flush=True)
    while not pathlib.Path({str(tmp_path)!r}, str(step)).exists():
        time.sleep(0.02)
    for i in range(50):
        print(f"line {{step * 50 + i}};", flush=True)
print("first line")
"last line"
"""
    notebook = lab.open(page, "lost-often", [code, "print('next', 6 * 7)"])
    notebook.start(0)
    for step in range(4):
        notebook.wait_text(0, f"step {step}", 60)
        gateway_proxy.cut()
        (tmp_path / str(step)).touch()
        gateway_proxy.heal()
    expect_complete(notebook, 0)
    assert [notebook.text(0).count(f"step {step}") for step in range(4)] == [1] * 4
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_a_cell_is_complete_after_a_lost_browser_connection(
    lab: Lab, page: Page, gateway: Gateway, make_proxy: Callable[[int], Proxy], tmp_path: Path
) -> None:
    proxy = make_proxy(lab.port)
    gate = tmp_path / "gate"
    lab.write_notebook("offline", [gated(gate), "print('next', 6 * 7)"])
    notebook = Notebook(page, lab, "offline", url=f"http://127.0.0.1:{proxy.port}")
    notebook.load()
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "first line")
    try:
        proxy.cut()
        gate.touch()
        gateway.wait_state(kernel_id, "idle")
    finally:
        proxy.heal()
    expect_complete(notebook, 0)
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_a_page_reloaded_during_a_cell_keeps_its_kernel(
    lab: Lab, page: Page, gateway: Gateway, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    notebook = lab.open(page, "reload", ["kept = 6\n" + gated(gate), "print('next', kept * 7)"])
    kernel_id = notebook.kernel_id()
    notebook.start(0)
    notebook.wait_text(0, "first line")
    notebook.reload()
    assert notebook.kernel_id() == kernel_id
    assert gateway.wait_state(kernel_id, "busy")
    gate.touch()
    notebook.wait_status("idle", 60)
    notebook.run(1)
    notebook.wait_text(1, "next 42")
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_two_pages_share_a_kernel(lab: Lab, page: Page, browser: object) -> None:
    first = lab.open(page, "shared", ["x = 6\nprint('set')", "print('next', x * 7)"])
    first.run(0)
    context = browser.new_context()  # type: ignore[attr-defined]
    try:
        second = Notebook(context.new_page(), lab, "shared")
        second.load()
        assert second.kernel_id() == first.kernel_id()
        second.run(1)
        second.wait_text(1, "next 42")
        first.run(1)
        first.wait_text(1, "next 42")
    finally:
        context.close()


def test_a_culled_kernel_is_shown(
    start_gateway: Callable[..., Gateway], make_home: Callable[[str], Path], page: Page
) -> None:
    gateway = start_gateway(
        # Long enough for the page to run the cell before the kernel is culled.
        "--cull-idle-timeout", "20", "--cull-interval", "1", "--cull-connected"
    )
    lab = Lab(make_home("lab-cull"), gateway.url, gateway.token)
    try:
        notebook = lab.open(page, "culled", ["print('on')"])
        notebook.run(0)
        kernel_id = notebook.kernel_id()
        # JupyterLab notices the kernel's end in its server's list of kernels.
        name = notebook.panel.locator(".jp-KernelName").first
        expect(name).to_contain_text("No Kernel", timeout=90_000)
        assert gateway.model(kernel_id) is None
    finally:
        lab.close()
