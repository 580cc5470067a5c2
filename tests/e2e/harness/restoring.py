"""Notebooks that are closed while a cell runs and opened again, with kernelmux-lab installed."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any, Literal

from playwright.sync_api import Page, expect

from harness.executions import latest_of_cell
from harness.gateway import Gateway
from harness.lab import Lab, Notebook, Server
from harness.waiting import eventually

# Creates a file to show that the cell waits at a gate, and waits until the test opens the gate.
GATE = """
import pathlib, sys, time
def gate(name):
    pathlib.Path({directory!r}, "at-" + name).touch()
    while not pathlib.Path({directory!r}, name).exists():
        time.sleep(0.02)
"""

# Counts its runs in a file, so that a test sees whether it ran once.
LINES = """
with open({runs!r}, "a") as runs:
    runs.write("ran\\n")
for line in range({count}):
    if line in {stops!r}:
        gate(f"line-{{line}}")
    print(f"line {{line}};", flush=True)
"""


class Steps:
    """Gates at which the cells of one test wait, and the number of their runs."""

    def __init__(self, directory: PurePath) -> None:
        self.directory = directory
        self.runs = directory / "runs"
        # The kernel whose cells wait.
        self.kernel_id = ""

    def code(self, code: str) -> str:
        """Code that may call `gate(name)`."""
        return GATE.format(directory=str(self.directory)) + code

    def lines(self, *stops: int, count: int = 60) -> str:
        """A cell that prints numbered lines and waits before those in `stops`."""
        return self.code(LINES.format(runs=str(self.runs), count=count, stops=stops))

    def open(self, *names: str | int) -> None:
        for name in names:
            self.touch(self.directory / gate_name(name))

    def shut(self, name: str | int) -> None:
        """Makes the next run wait at a gate that is open."""
        self.remove(self.directory / gate_name(name))
        self.remove(self.directory / f"at-{gate_name(name)}")

    def wait_at(self, name: str | int, timeout: float = 60.0) -> None:
        file = self.directory / f"at-{gate_name(name)}"
        eventually(lambda: self.exists(file), f"a cell waits at {name}", timeout)

    def ran(self) -> int:
        return self.read(self.runs).count("ran")

    # Access to files of the kernel's machine, which is this machine here.

    def touch(self, file: PurePath) -> None:
        Path(file).touch()

    def remove(self, file: PurePath) -> None:
        Path(file).unlink()

    def exists(self, file: PurePath) -> bool:
        return Path(file).exists()

    def read(self, file: PurePath) -> str:
        return Path(file).read_text()


def gate_name(name: str | int) -> str:
    return f"line-{name}" if isinstance(name, int) else name


def shown_lines(notebook: Notebook, index: int) -> list[int]:
    return [int(number) for number in re.findall(r"line (\d+);", notebook.text(index))]


def expect_lines(notebook: Notebook, index: int, count: int, timeout: float = 60.0) -> None:
    """Waits for the last of `count` lines, and checks that each is shown once and in order."""
    notebook.wait_text(index, f"line {count - 1};", timeout)
    assert shown_lines(notebook, index) == list(range(count))


def expect_running(notebook: Notebook, index: int, timeout: float = 30.0) -> None:
    expect(notebook.prompt(index)).to_have_text("[*]:", timeout=timeout * 1000)


def expect_whole(notebook: Notebook, index: int, number: int, count: int = 60) -> None:
    """Checks that a cell of `Steps.lines` has ended with this number and complete outputs."""
    expect(notebook.prompt(index)).to_have_text(f"[{number}]:", timeout=60_000)
    expect_lines(notebook, index, count)
    assert [output["output_type"] for output in notebook.outputs(index)] == ["stream"]


def wait_ended(gateway: Gateway, notebook: Notebook, index: int = 0, timeout: float = 60.0) -> dict[str, Any]:
    """Waits until the newest execution of a cell, also of a closed notebook, has ended."""
    kernel_id, cell_id = notebook.known_kernel, notebook.known_cells[index]

    def ended() -> dict[str, Any] | None:
        execution = latest_of_cell(gateway, kernel_id, cell_id)
        return execution if execution["ended"] else None

    found = eventually(ended, f"cell {index} has ended", timeout)
    assert found is not None
    return found


def open_page(page: Page, lab: Server, name: str) -> Notebook:
    """Opens a notebook whose kernel may be busy."""
    notebook = Notebook(page, lab, name)
    notebook.goto()
    return notebook


def close(page: Page) -> None:
    """Closes a tab without saving changes and without a confirmation."""
    page.close(run_before_unload=False)


def run_and_close(
    lab: Lab,
    page: Page,
    name: str,
    cells: list[str],
    steps: Steps,
    *,
    at: str | int = 3,
    run: list[int] | Literal["all"] = [0],  # noqa: B006
    save: bool = False,
    kernel: str = "python3",
) -> Notebook:
    """Runs cells of a new notebook in a tab until one waits at a gate, and closes the tab."""
    tab = page.context.new_page()
    notebook = lab.open(tab, name, cells, kernel)
    notebook.remember()
    steps.kernel_id = notebook.known_kernel
    if run == "all":
        notebook.command("notebook:run-all-cells")
    else:
        for index in run:
            notebook.start(index)
    steps.wait_at(at)
    if run == "all":
        notebook.wait_sent(len(cells))
    if save:
        notebook.save()
    close(tab)
    return notebook
