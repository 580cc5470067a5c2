"""kernelmux-lab restores a notebook whose page was closed while cells ran.

The numbers of the scenarios refer to clients/lab/README.md.
"""

from __future__ import annotations

import contextlib

import pytest
from harness.gateway import Gateway
from harness.lab import Lab, Notebook
from harness.pictures import take_picture
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
from playwright.sync_api import Browser, Error, Page, Response, expect

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


@pytest.fixture(scope="module")
def lab(restoring_lab: Lab) -> Lab:
    return restoring_lab


# Scenario 1
@pytest.mark.parametrize("save", [False, True], ids=["never saved", "saved while it ran"])
def test_a_cell_goes_on_in_a_reopened_tab(lab: Lab, page: Page, steps: Steps, save: bool) -> None:
    run_and_close(lab, page, f"reopened-{save}", [steps.lines(3), "print('next', 6 * 7)"], steps, save=save)
    notebook = open_page(page, lab, f"reopened-{save}")
    expect_running(notebook, 0)
    expect_lines(notebook, 0, 3)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1
    notebook.run(1)
    notebook.wait_text(1, "next 42")
    expect(notebook.prompt(1)).to_have_text("[2]:")


# Scenario 2
@pytest.mark.parametrize("save", [False, True], ids=["never saved", "saved while it ran"])
def test_a_cell_that_ended_while_the_tab_was_closed_is_complete(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps, save: bool
) -> None:
    closed = run_and_close(lab, page, f"ended-{save}", [steps.lines(3)], steps, save=save)
    steps.open(3)
    wait_ended(gateway, closed)
    notebook = open_page(page, lab, f"ended-{save}")
    expect_whole(notebook, 0, 1)
    # The document no longer marks the cell as unfinished.
    assert "kernelmux" not in notebook.metadata(0)
    assert steps.ran() == 1


def test_output_of_a_thread_after_its_cell_ended_is_shown(lab: Lab, page: Page, gateway: Gateway, steps: Steps) -> None:
    code = (
        "import threading\n"
        "kernel = get_ipython().kernel\n"
        "parent = kernel.get_parent()\n"
        "def work():\n"
        "    gate('late')\n"
        # ipykernel assigns a plain `print` of a thread to the newest request.
        "    content = {'name': 'stdout', 'text': 'printed late\\n'}\n"
        "    kernel.session.send(kernel.iopub_socket, 'stream', content, parent=parent, ident=b'stream.stdout')\n"
        "threading.Thread(target=work).start()\n"
        "print('printed early')\n"
    )
    closed = run_and_close(lab, page, "thread", [steps.code(code)], steps, at="late")
    wait_ended(gateway, closed)
    notebook = open_page(page, lab, "thread")
    notebook.wait_text(0, "printed early")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    steps.open("late")
    notebook.wait_text(0, "printed late")
    assert [notebook.text(0).count(text) for text in ("printed early", "printed late")] == [1, 1]
    expect(notebook.prompt(0)).to_have_text("[1]:")


# Scenario 3
def test_a_cell_goes_on_in_another_browser(lab: Lab, page: Page, browser: Browser, steps: Steps) -> None:
    run_and_close(lab, page, "other-browser", [steps.lines(3)], steps)
    with browser.new_context() as context:
        notebook = open_page(context.new_page(), lab, "other-browser")
        expect_running(notebook, 0)
        steps.open(3)
        expect_whole(notebook, 0, 1)
    assert steps.ran() == 1


# Scenario 4
def test_a_cell_goes_on_after_five_reloads(lab: Lab, page: Page, steps: Steps) -> None:
    notebook = lab.open(page, "reloads", [steps.lines(3)])
    notebook.start(0)
    steps.wait_at(3)
    for _ in range(5):
        notebook.reload()
        expect_running(notebook, 0)
        expect_lines(notebook, 0, 3)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1


# Scenario 5
def test_a_progress_bar_is_one_line(lab: Lab, page: Page, steps: Steps) -> None:
    code = (
        "from tqdm import tqdm\n"
        "for step in tqdm(range(100), mininterval=0):\n"
        "    if step == 30:\n"
        "        gate('middle')\n"
    )
    run_and_close(lab, page, "tqdm", [steps.code(code)], steps, at="middle")
    notebook = open_page(page, lab, "tqdm")
    notebook.wait_text(0, "30/100")
    assert notebook.text(0).count("%|") == 1
    steps.open("middle")
    notebook.wait_text(0, "100/100")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    assert notebook.text(0).count("%|") == 1


# Scenario 6
def test_a_widget_progress_bar_moves_on(lab: Lab, page: Page, steps: Steps) -> None:
    train = (
        "def train(step):\n"
        "    if step % 10 == 0:\n"
        "        print(f'step {step}: loss {1 / (1 + step / 10):.3f}')\n"
        "    if step == 30:\n"
        "        gate('middle')\n"
    )
    code = (
        "from tqdm.notebook import tqdm\n\n"
        "for step in tqdm(range(100), desc='training', mininterval=0):\n"
        "    train(step)"
    )
    run_and_close(lab, page, "tqdm-notebook", [steps.code(train), code], steps, at="middle", run=[0, 1])
    notebook = open_page(page, lab, "tqdm-notebook")
    expect_running(notebook, 1)
    # The kernel is busy, so the page cannot request the widgets from it.
    expect(notebook.cell(1)).to_contain_text("30/100")
    bar = notebook.cell(1).locator("[role=progressbar], .progress, progress")
    expect(bar.first).to_be_visible()
    notebook.wait_text(1, "step 30")
    take_picture(notebook.cell(1), "notebooks-restored")
    steps.open("middle")
    expect(notebook.cell(1)).to_contain_text("100/100")
    expect(notebook.prompt(1)).to_have_text("[2]:")
    assert notebook.cell(1).inner_text().count("%") == 1


# Scenario 7
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_slider_has_its_value_and_reaches_the_kernel(lab: Lab, page: Page, steps: Steps, busy: bool) -> None:
    name = f"slider-{busy}"
    make = "import ipywidgets as w\nslider = w.IntSlider(value=3, max=10)\nslider"
    tab = page.context.new_page()
    notebook = lab.open(
        tab, name, [make, "slider.value = 7", steps.code("gate('middle')"), "print('value', slider.value)"]
    )
    notebook.run(0)
    notebook.run(1)
    expect(notebook.cell(0).locator(".widget-readout")).to_have_text("7")
    notebook.save()
    if busy:
        notebook.start(2)
        steps.wait_at("middle")
    close(tab)
    notebook = open_page(page, lab, name)
    readout = notebook.cell(0).locator(".widget-readout")
    expect(readout).to_have_count(1)
    expect(readout).to_have_text("7")
    handle = notebook.cell(0).locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    expect(readout).to_have_text("8")
    steps.open("middle")
    notebook.wait_status("idle")
    notebook.run(3)
    notebook.wait_text(3, "value 8")


# Scenario 8
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_a_display_is_updated_by_its_own_and_by_later_cells(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps, closed: bool
) -> None:
    """Cells update a display before the page is closed, and again while it is closed or after it is reopened."""
    name = f"display-{closed}"
    first = "shown = display('display: first', display_id=True)\nshown.update('display: second')"
    later = "shown.update('display: third')\ngate('middle')\nshown.update('display: fourth')"
    before = run_and_close(lab, page, name, [first, steps.code(later)], steps, at="middle", run=[0, 1])
    if closed:
        steps.open("middle")
        wait_ended(gateway, before, 1)
    notebook = open_page(page, lab, name)
    if not closed:
        notebook.wait_text(0, "display: third")
        steps.open("middle")
    notebook.wait_text(0, "display: fourth")
    expect(notebook.prompt(1)).to_have_text("[2]:")
    assert notebook.text(0).count("display:") == 1
    assert notebook.text(1) == ""
    assert len(notebook.outputs(0)) == 1


# Scenario 9
def test_only_the_last_of_replaced_plots_is_shown(lab: Lab, page: Page, steps: Steps) -> None:
    code = (
        "from IPython.display import HTML, clear_output, display\n"
        "for number in range(20):\n"
        "    if number == 10:\n"
        "        gate('middle')\n"
        "    clear_output(wait=True)\n"
        "    display(HTML(f'<b class=\"plot\">plot {number}</b>'))\n"
    )
    run_and_close(lab, page, "plots", [steps.code(code)], steps, at="middle")
    notebook = open_page(page, lab, "plots")
    plot = notebook.cell(0).locator(".plot")
    expect(plot).to_have_text("plot 9")
    steps.open("middle")
    expect(plot).to_have_text("plot 19")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    expect(plot).to_have_count(1)
    assert len(notebook.outputs(0)) == 1


# Scenario 10
@pytest.mark.parametrize("ask", ["input('Who? ')", "__import__('getpass').getpass('Who? ')"], ids=["input", "getpass"])
def test_an_open_input_prompt_is_shown_again(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps, ask: str
) -> None:
    name = f"question-{'getpass' in ask}"
    tab = page.context.new_page()
    notebook = lab.open(tab, name, [f"print('before')\nname = {ask}\nprint('Hello', name)"])
    notebook.start(0)
    expect(notebook.question(0)).to_be_visible()
    close(tab)
    notebook = open_page(page, lab, name)
    expect(notebook.question(0)).to_have_count(1)
    expect(notebook.cell(0).locator(".jp-Stdin-prompt")).to_contain_text("Who?")
    expect(notebook.question(0)).to_have_js_property("type", "password" if "getpass" in ask else "text")
    notebook.question(0).fill("Ada")
    notebook.question(0).press("Enter")
    notebook.wait_text(0, "Hello Ada")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    expect(notebook.question(0)).to_have_count(0)
    assert [notebook.text(0).count(text) for text in ("before", "Hello Ada")] == [1, 1]


# Scenario 11
def test_an_input_prompt_answered_in_another_tab_disappears(lab: Lab, page: Page, steps: Steps) -> None:
    other = lab.open(
        page.context.new_page(), "two-tabs", ["name = input('Who? ')\nprint('Hello', name)", "print('next', name)"]
    )
    other.start(0)
    expect(other.question(0)).to_be_visible()
    notebook = open_page(page, lab, "two-tabs")
    expect(notebook.question(0)).to_be_visible()
    notebook.question(0).fill("Ada")
    notebook.question(0).press("Enter")
    for tab in (notebook, other):
        tab.wait_text(0, "Hello Ada")
        expect(tab.prompt(0)).to_have_text("[1]:")
        expect(tab.question(0)).to_have_count(0)
        assert tab.text(0).count("Hello Ada") == 1
    other.run(1)
    other.wait_text(1, "next Ada")


# Scenario 12
def test_queued_cells_wait_and_end_after_a_failure(lab: Lab, page: Page, steps: Steps) -> None:
    cells = [steps.lines(3), "print(2 * '2nd')\n1/0", "print('third')", "print('fourth')"]
    run_and_close(lab, page, "queued", cells, steps, run="all")
    notebook = open_page(page, lab, "queued")
    for index in range(4):
        expect_running(notebook, index)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    expect(notebook.prompt(1)).to_have_text("[2]:")
    notebook.wait_text(1, "ZeroDivisionError")
    assert notebook.text(1).count("2nd2nd") == 1
    for index in (2, 3):
        expect(notebook.prompt(index)).to_have_text("[ ]:")
        assert notebook.outputs(index) == []


# Scenario 13
def test_all_cells_that_ran_while_the_tab_was_closed_are_complete(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps
) -> None:
    cells = [steps.lines(3), *[f"for n in range(20):\n    print('cell {i}', n)\n{i}" for i in range(1, 6)]]
    closed = run_and_close(lab, page, "run-all", cells, steps, run="all")
    steps.open(3)
    wait_ended(gateway, closed, 5)
    notebook = open_page(page, lab, "run-all")
    expect_whole(notebook, 0, 1)
    for index in range(1, 6):
        expect(notebook.prompt(index)).to_have_text(f"[{index + 1}]:")
        stream, result = notebook.outputs(index)
        assert stream["text"] == "".join(f"cell {index} {n}\n" for n in range(20))
        assert (result["data"]["text/plain"], result["execution_count"]) == (str(index), index + 1)


# Scenario 14
def test_rich_outputs_are_rendered_and_trusted(lab: Lab, page: Page, gateway: Gateway, steps: Steps) -> None:
    code = (
        "import base64\n"
        "from IPython.display import HTML, Image, display\n"
        "gate('middle')\n"
        "display(HTML('<b id=\"bold\">rich</b><script>window.trustedScriptRan = true</script>'))\n"
        f"display(Image(data=base64.b64decode('{PNG}'), format='png'))\n"
        "1/0"
    )
    closed = run_and_close(lab, page, "rich", [steps.code(code)], steps, at="middle")
    steps.open("middle")
    wait_ended(gateway, closed)
    notebook = open_page(page, lab, "rich")
    expect(notebook.output(0).locator("#bold")).to_have_text("rich")
    expect(notebook.output(0).locator("img")).to_have_js_property("naturalWidth", 1)
    notebook.wait_text(0, "ZeroDivisionError")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    assert [output["output_type"] for output in notebook.outputs(0)] == ["display_data", "display_data", "error"]
    assert page.evaluate("() => window.trustedScriptRan") is True


# Scenario 15
def test_outputs_of_an_untrusted_file_stay_untrusted(lab: Lab, page: Page) -> None:
    output = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/html": "<b>rich</b><script>window.untrustedScriptRan = true</script>"},
    }
    lab.write_notebook("untrusted", ["'never run'"], outputs={0: [output]})
    notebook = Notebook(page, lab, "untrusted")
    notebook.load()
    notebook.wait_text(0, "rich")
    notebook.wait_restored()
    assert page.evaluate("() => window.untrustedScriptRan") is None
    assert notebook.trusted(0) is False


# Scenario 24
def test_many_cells_with_many_lines_are_complete(lab: Lab, page: Page, gateway: Gateway, steps: Steps) -> None:
    cells = [
        steps.code("gate('middle')"),
        *[f"for n in range(34):\n    print('cell {i} line', n)" for i in range(1, 300)],
    ]
    closed = run_and_close(lab, page, "many", cells, steps, at="middle", run="all")
    steps.open("middle")
    wait_ended(gateway, closed, 299, timeout=120)
    notebook = open_page(page, lab, "many")
    expect(notebook.prompt(299)).to_have_text("[300]:", timeout=90_000)
    prompts = notebook.panel.locator(".jp-CodeCell .jp-InputArea-prompt")
    assert prompts.all_inner_texts() == [f"[{n}]:" for n in range(1, 301)]
    outputs = page.evaluate(
        "() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells)"
        ".map(cell => cell.outputs.toJSON().map(output => [].concat(output.text).join('')))"
    )
    expected = [["".join(f"cell {i} line {n}\n" for n in range(34))] for i in range(1, 300)]
    assert outputs == [[], *expected]


# Scenario 40
def test_the_gateways_token_never_reaches_the_browser(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps
) -> None:
    seen: list[str] = []
    page.on("request", lambda r: seen.extend([r.url, str(r.headers), r.post_data or ""]))
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: seen.append(str(data))))

    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))
    run_and_close(lab, page, "token", [steps.lines(3)], steps)
    notebook = open_page(page, lab, "token")
    expect_running(notebook, 0)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    assert any("/kernelmux/api/kernels/" in text for text in seen)
    for response in responses:
        seen.append(str(response.headers))
        # Chromium keeps no bodies of redirects.
        with contextlib.suppress(Error):
            seen.append(response.text())
    assert any('"msg_id":' in text for text in seen)
    assert gateway.token is not None
    assert not [text for text in [*seen, page.content()] if gateway.token in text]
    # jupyter_server itself logs its environment when it starts a kernel.
    logged = lab.process.output.replace(f"'JUPYTER_GATEWAY_AUTH_TOKEN': '{gateway.token}'", "")
    assert gateway.token not in logged
