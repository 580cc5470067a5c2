"""An unmodified JupyterLab in Chromium with a kernel that is written with this project's kernel API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail
from harness.echo import BINARY, install
from harness.gateway import Gateway
from harness.lab import Lab, Notebook
from playwright.sync_api import Page, expect


@pytest.fixture(scope="module")
def lab(built: None, make_home: Callable[[str], Path]) -> Iterator[Lab]:
    if not BINARY.exists():
        skip_or_fail(f"no echo-kernel at {BINARY}: build it, or set KERNELMUX_ECHO_BIN")
    gateway = Gateway(make_home("gw"), env=install(make_home("echo")))
    gateway.start()
    lab = Lab(make_home("lab"), gateway.url, gateway.token)
    yield lab
    lab.close()
    gateway.close()


def open_notebook(lab: Lab, page: Page, name: str, *cells: str) -> Notebook:
    return lab.open(page, name, list(cells), kernel="echo")


def test_cells_are_executed(lab: Lab, page: Page) -> None:
    notebook = open_notebook(
        lab,
        page,
        "cells",
        "one\ntwo\n%stderr three\n%display four\n%result five",
        "before\n%error on purpose\nafter",
        "next",
    )
    notebook.run(0)
    notebook.wait_text(0, "one\ntwo")
    notebook.wait_text(0, "three")
    # JupyterLab shows the richest format: Markdown instead of plain text.
    expect(notebook.output(0).locator("strong")).to_have_text("four")
    notebook.wait_text(0, "five")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    notebook.run(1)
    notebook.wait_text(1, "before")
    notebook.wait_text(1, "EchoError")
    expect(notebook.output(1).filter(has_text="after")).to_have_count(0)
    notebook.run(2)
    notebook.wait_text(2, "next")
    assert [o["output_type"] for o in notebook.outputs(0)] == [
        "stream",
        "stream",
        "display_data",
        "execute_result",
    ]


def test_an_error_aborts_the_queued_cells(lab: Lab, page: Page) -> None:
    notebook = open_notebook(lab, page, "abort", "%input Go?\n%error on purpose", "not to be seen", "again")
    notebook.command("notebook:run-all-cells")
    # Only cells that are queued at the time of the error are aborted.
    field = notebook.cell(0).locator(".jp-Stdin-input")
    expect(field).to_be_visible(timeout=30_000)
    expect(notebook.prompt(2)).to_have_text("[*]:")
    field.press("Enter")
    notebook.wait_text(0, "EchoError")
    notebook.wait_status("idle")
    assert notebook.outputs(1) == []
    notebook.run(2)
    notebook.wait_text(2, "again")


def test_input_can_be_answered(lab: Lab, page: Page) -> None:
    notebook = open_notebook(lab, page, "input", "%input Who?", "next")
    notebook.start(0)
    field = notebook.cell(0).locator(".jp-Stdin-input")
    expect(field).to_be_visible(timeout=30_000)
    expect(notebook.cell(0).locator(".jp-Stdin-prompt")).to_contain_text("Who?")
    field.fill("Ada")
    field.press("Enter")
    notebook.finished(0)
    notebook.wait_text(0, "Ada")
    notebook.run(1)
    notebook.wait_text(1, "next")


def test_a_cell_can_be_interrupted(lab: Lab, page: Page) -> None:
    notebook = open_notebook(lab, page, "interrupt", "on\n%sleep 600\nnot to be seen", "next")
    notebook.start(0)
    notebook.wait_text(0, "on")
    notebook.wait_status("busy")
    notebook.panel.locator("[data-command='notebook:interrupt-kernel']").first.click()
    notebook.finished(0)
    notebook.wait_status("idle")
    assert [o["output_type"] for o in notebook.outputs(0)] == ["stream", "error"]
    assert notebook.outputs(0)[0]["text"] == "on\n"
    notebook.run(1)
    notebook.wait_text(1, "next")


def test_the_kernel_can_be_restarted(lab: Lab, page: Page) -> None:
    notebook = open_notebook(lab, page, "restart", "first", "second")
    notebook.run(0)
    kernel = notebook.kernel_id()
    notebook.restart()
    notebook.start(1)
    notebook.wait_text(1, "second")
    # The execution count starts again.
    expect(notebook.prompt(1)).to_have_text("[1]:")
    assert notebook.kernel_id() == kernel


def test_completion_is_offered(lab: Lab, page: Page) -> None:
    notebook = open_notebook(lab, page, "complete", "")
    notebook.cell(0).locator(".jp-InputArea-editor").click()
    page.keyboard.type("%s")
    # JupyterLab attaches the completer after it shows the cell. Until then, Tab inserts a tab.
    expect(notebook.cell(0).locator(".jp-mod-completer-enabled:not(.jp-mod-at-line-beginning)")).to_have_count(1)
    page.keyboard.press("Tab")
    offered = page.locator(".jp-Completer-item")
    expect(offered).to_have_count(2, timeout=30_000)
    expect(offered.first).to_contain_text("%sleep")
