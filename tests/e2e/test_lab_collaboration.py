"""kernelmux-lab together with jupyter-collaboration, whose pages share one document (scenario 34)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateway import Gateway
from harness.lab import Lab
from harness.restoring import Steps, close, expect_running, expect_whole, open_page, run_and_close
from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def lab(
    gateway: Gateway, make_home: Callable[[str], Path], make_venv: Callable[[str], Path], lab_extension: Path
) -> Iterator[Lab]:
    lab = Lab(make_home("lab"), gateway.url, gateway.token, lab_extension, venv=make_venv("lab-others"))
    yield lab
    lab.close()


def test_a_cell_goes_on_in_a_reopened_tab(lab: Lab, page: Page, steps: Steps) -> None:
    run_and_close(lab, page, "reopened", [steps.lines(3)], steps)
    notebook = open_page(page, lab, "reopened")
    expect_running(notebook, 0)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1


def test_a_second_page_duplicates_no_output_and_takes_over(
    lab: Lab, page: Page, browser: Browser, steps: Steps
) -> None:
    first = lab.open(page.context.new_page(), "shared", [steps.lines(3, 30)])
    first.start(0)
    steps.wait_at(3)
    with browser.new_context() as context:
        second = open_page(context.new_page(), lab, "shared")
        second.wait_restored()
        steps.open(3)
        for notebook in (first, second):
            notebook.wait_text(0, "line 29;")
        steps.wait_at(30)
        close(first.page)
        steps.open(30)
        expect_whole(second, 0, 1)
