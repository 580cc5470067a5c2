"""kernelmux-lab in the oldest and the newest supported JupyterLab and Notebook, and together with other extensions.

The numbers of the scenarios refer to clients/lab/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateway import Gateway
from harness.lab import Lab
from harness.restoring import Steps, expect_lines, expect_running, expect_whole, open_page, run_and_close
from playwright.sync_api import Page, expect

WIDGET_BAR = """
from tqdm.notebook import tqdm
for step in tqdm(range(100), mininterval=0):
    if step == 30:
        gate('middle')
"""
# Disabled in these tests. test_lab_collaboration.py tests them.
COLLABORATION = ("@jupyter/collaboration-extension", "@jupyter/docprovider-extension")


@pytest.fixture(
    scope="module",
    params=[("lab-oldest", "jupyterlab"), ("lab-oldest", "notebook"), ("lab-others", "notebook")],
    ids=["JupyterLab 4.3", "Notebook 7.3", "Notebook 7.6"],
)
def lab(
    request: pytest.FixtureRequest,
    gateway: Gateway,
    make_home: Callable[[str], Path],
    make_venv: Callable[[str], Path],
    lab_extension: Path,
) -> Iterator[Lab]:
    venv, app = request.param
    lab = Lab(
        make_home("lab"),
        gateway.url,
        gateway.token,
        lab_extension,
        app=app,
        venv=make_venv(venv),
        disabled=COLLABORATION,
    )
    yield lab
    lab.close()


# Scenario 41
def test_a_cell_goes_on_in_a_reopened_page(lab: Lab, page: Page, steps: Steps) -> None:
    run_and_close(lab, page, "reopened", [steps.lines(3), "print('next', 6 * 7)"], steps)
    notebook = open_page(page, lab, "reopened")
    expect_running(notebook, 0)
    expect_lines(notebook, 0, 3)
    # Only the text is checked: Notebook's toolbar moves all items into a menu if it is laid out before the page has its
    # width.
    expect(notebook.kernel_status).to_contain_text("since")
    steps.open(3)
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1
    notebook.run(1)
    notebook.wait_text(1, "next 42")


def test_a_widget_and_an_input_prompt_are_restored(lab: Lab, page: Page, steps: Steps) -> None:
    cells = [steps.code(WIDGET_BAR), "name = input('Who? ')\nprint('Hello', name)"]
    run_and_close(lab, page, "widget", cells, steps, at="middle", run=[0, 1])
    notebook = open_page(page, lab, "widget")
    expect(notebook.cell(0)).to_contain_text("30/100")
    steps.open("middle")
    expect(notebook.cell(0)).to_contain_text("100/100")
    notebook.question(1).fill("Ada")
    notebook.question(1).press("Enter")
    notebook.wait_text(1, "Hello Ada")
    expect(notebook.prompt(1)).to_have_text("[2]:")
