"""What kernelmux-lab restores if the document was changed, or if several pages or programs use its kernel.

The numbers of the scenarios refer to clients/lab/README.md.
"""

from __future__ import annotations

import re

import pytest
from harness.gateway import Gateway
from harness.lab import Lab, Notebook
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
from harness.wire import execute_request, message
from playwright.sync_api import Browser, Page, expect

EDITED = re.compile(r"\bkernelmux-edited\b")


@pytest.fixture(scope="module")
def lab(restoring_lab: Lab) -> Lab:
    return restoring_lab


# Scenario 16
def test_a_cell_that_was_edited_shows_its_outputs_marked(lab: Lab, page: Page, steps: Steps) -> None:
    run_and_close(lab, page, "edited", [steps.lines(3), "print('other')"], steps)
    with lab.edit("edited") as cells:
        cells[0].source = "print('edited')"
    notebook = open_page(page, lab, "edited")
    expect_running(notebook, 0)
    steps.open(3)
    expect_whole(notebook, 0, 1)
    output = notebook.cell(0).locator(".jp-OutputArea")
    expect(output).to_have_class(EDITED)
    notebook.run(0)
    assert notebook.text(0) == "edited\n"
    expect(output).not_to_have_class(EDITED)


# Scenario 17
def test_outputs_follow_a_cell_that_was_moved_but_not_its_copy(lab: Lab, page: Page, steps: Steps) -> None:
    run_and_close(lab, page, "moved", [steps.lines(3), "print('other')"], steps)
    with lab.edit("moved") as cells:
        copy = cells[0].copy()
        copy.id = "the-copy"
        cells[:] = [copy, cells[1], cells[0]]
    notebook = open_page(page, lab, "moved")
    expect_running(notebook, 2)
    steps.open(3)
    expect_whole(notebook, 2, 1)
    for index in (0, 1):
        expect(notebook.prompt(index)).to_have_text("[ ]:")
        assert notebook.outputs(index) == []


def test_outputs_follow_the_part_of_a_split_cell_that_keeps_its_id(lab: Lab, page: Page, steps: Steps) -> None:
    tab = page.context.new_page()
    notebook = lab.open(tab, "split", [steps.lines(3)])
    cell_id = notebook.cell_id(0)
    notebook.start(0)
    steps.wait_at(3)
    notebook.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.activeCell.editor.setCursorPosition({line: 2, column: 0})"
    )
    notebook.command("notebook:split-cell-at-cursor")
    expect(notebook.panel.locator(".jp-CodeCell")).to_have_count(2)
    notebook.save()
    close(tab)
    notebook = open_page(page, lab, "split")
    part = [notebook.cell_id(index) for index in range(2)].index(cell_id)
    steps.open(3)
    expect_whole(notebook, part, 1)
    assert notebook.outputs(1 - part) == []


# Scenario 18
def test_outputs_of_a_deleted_cell_are_offered(lab: Lab, page: Page, gateway: Gateway, steps: Steps) -> None:
    closed = run_and_close(lab, page, "deleted", ["print('kept')", steps.lines(3)], steps, run=[0, 1])
    with lab.edit("deleted") as cells:
        del cells[1]
    steps.open(3)
    wait_ended(gateway, closed, 1)
    notebook = open_page(page, lab, "deleted")
    expect(notebook.panel.locator(".jp-CodeCell")).to_have_count(1)
    expect(notebook.kernel_status).to_contain_text("1 output of a deleted cell")
    notebook.command("kernelmux:insert-deleted")
    expect(notebook.panel.locator(".jp-CodeCell")).to_have_count(2)
    expect_whole(notebook, 1, 2)
    expect(notebook.kernel_status).not_to_contain_text("deleted")


# Scenario 19
def test_cleared_outputs_stay_cleared_until_they_are_requested(lab: Lab, page: Page, steps: Steps) -> None:
    tab = page.context.new_page()
    notebook = lab.open(tab, "cleared", [steps.lines()])
    notebook.run(0)
    expect_whole(notebook, 0, 1)
    notebook.command("notebook:clear-all-cell-outputs")
    expect(notebook.output(0)).to_have_count(0)
    notebook.save()
    close(tab)
    notebook = open_page(page, lab, "cleared")
    notebook.wait_restored()
    expect(notebook.output(0)).to_have_count(0)
    notebook.command("kernelmux:restore-outputs")
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1


# Scenario 20
def test_only_the_newest_run_of_a_cell_is_shown(lab: Lab, page: Page, steps: Steps) -> None:
    tab = page.context.new_page()
    notebook = lab.open(tab, "twice", [steps.lines(3)])
    steps.open(3)
    notebook.run(0)
    expect_whole(notebook, 0, 1)
    steps.shut(3)
    notebook.start(0)
    steps.wait_at(3)
    close(tab)
    notebook = open_page(page, lab, "twice")
    expect_running(notebook, 0)
    expect_lines(notebook, 0, 3)
    steps.open(3)
    expect_whole(notebook, 0, 2)
    assert steps.ran() == 2


# Scenario 21
def test_cells_without_ids_are_matched_by_code_and_order(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps
) -> None:
    same = "count = globals().get('count', 0) + 1\nprint('run', count)"
    lab.write_notebook("old-format", [same, steps.lines(3), same], minor=4)
    tab = page.context.new_page()
    closed = Notebook(tab, lab, "old-format")
    closed.load()
    closed.remember()
    for index in (0, 2, 1):
        closed.start(index)
    steps.wait_at(3)
    close(tab)
    notebook = open_page(page, lab, "old-format")
    expect_running(notebook, 1)
    assert notebook.cell_id(1) != closed.known_cells[1]
    notebook.wait_text(0, "run 1")
    notebook.wait_text(2, "run 2")
    steps.open(3)
    expect_whole(notebook, 1, 3)
    assert [notebook.text(index) for index in (0, 2)] == ["run 1\n", "run 2\n"]


# Scenario 22
def test_two_browsers_show_a_complete_cell(lab: Lab, page: Page, browser: Browser, steps: Steps) -> None:
    first = lab.open(page, "two-browsers", [steps.lines(3)])
    first.start(0)
    steps.wait_at(3)
    with browser.new_context() as context:
        second = open_page(context.new_page(), lab, "two-browsers")
        expect_running(second, 0)
        steps.open(3)
        for notebook in (first, second):
            expect_whole(notebook, 0, 1)
        first.save()
        # JupyterLab's dialog about a file that someone else has saved.
        second.command("docmanager:save")
        expect(second.page.locator(".jp-Dialog")).to_contain_text("changed on disk")


# Scenario 23
def test_a_cell_that_another_page_runs_is_shown(lab: Lab, page: Page, browser: Browser, steps: Steps) -> None:
    first = lab.open(page, "watched", [steps.lines(3), "print('mine', 6 * 7)"])
    with browser.new_context() as context:
        second = open_page(context.new_page(), lab, "watched")
        second.wait_status("idle")
        second.start(0)
        steps.wait_at(3)
        expect_running(first, 0)
        expect_lines(first, 0, 3)
        steps.open(3)
        for notebook in (first, second):
            expect_whole(notebook, 0, 1)
        first.run(1)
        for notebook in (first, second):
            notebook.wait_text(1, "mine 42")
            expect(notebook.prompt(1)).to_have_text("[2]:")
            assert notebook.text(1).count("mine 42") == 1


# Scenario 26
def test_a_reopened_cell_is_interrupted(lab: Lab, page: Page, steps: Steps) -> None:
    run_and_close(lab, page, "interrupted", [steps.lines(3), "print('next', 6 * 7)"], steps)
    notebook = open_page(page, lab, "interrupted")
    expect_running(notebook, 0)
    notebook.command("notebook:interrupt-kernel")
    notebook.wait_text(0, "KeyboardInterrupt")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    assert [output["output_type"] for output in notebook.outputs(0)] == ["stream", "error"]
    notebook.run(1)
    notebook.wait_text(1, "next 42")


# Scenario 27
def test_a_restart_after_reopening_ends_the_cell(lab: Lab, page: Page, steps: Steps) -> None:
    run_and_close(lab, page, "restarted", [steps.lines(3), "print('next', 6 * 7)"], steps)
    notebook = open_page(page, lab, "restarted")
    expect_running(notebook, 0)
    expect_lines(notebook, 0, 3)
    notebook.restart()
    ended = re.compile(r"\[[1 ]\]:")
    expect(notebook.prompt(0)).to_have_text(ended)
    steps.open(3)
    notebook.run(1)
    notebook.wait_text(1, "next 42")
    expect(notebook.prompt(1)).to_have_text("[1]:")
    expect(notebook.prompt(0)).to_have_text(ended)
    expect_lines(notebook, 0, 3)
    assert "kernelmux" not in notebook.metadata(0)


# Scenario 35
def test_output_of_a_console_is_not_shown_in_cells(lab: Lab, page: Page, gateway: Gateway, steps: Steps) -> None:
    closed = run_and_close(lab, page, "console", [steps.lines(3), "'not run'"], steps)
    with gateway.socket(closed.known_kernel, "console") as console:
        content = execute_request("print('from the console')")
        metadata = {"cellId": "a cell of the console"}
        asked = console.send(message("execute_request", content, session="console", metadata=metadata))
        notebook = open_page(page, lab, "console")
        expect_running(notebook, 0)
        steps.open(3)
        expect_whole(notebook, 0, 1)
        console.finish(asked)
        notebook.run(1)
        assert "console" not in notebook.text(0) + notebook.text(1)
        expect(notebook.panel.locator(".jp-CodeCell")).to_have_count(2)
        expect(notebook.kernel_status).not_to_contain_text("deleted")
