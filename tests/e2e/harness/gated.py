"""A cell that prints a line, waits until the test creates a file, and prints more lines, with a check of its output."""

from __future__ import annotations

import re
from pathlib import PurePath

from harness.lab import Notebook

# The test decides when the cell continues, not a clock.
GATED = """
import pathlib, time
print("first line", flush=True)
while not pathlib.Path({gate!r}).exists():
    time.sleep(0.02)
for i in range(200):
    print(f"line {{i}};", flush=True)
"last line"
"""


def gated(path: PurePath) -> str:
    return GATED.format(gate=str(path))


def expect_complete(notebook: Notebook, index: int) -> None:
    """Checks that the gated cell's output is complete, in order and without repetition."""
    notebook.wait_text(index, "last line", 60)
    lines = re.findall(r"line (\d+);", notebook.text(index))
    assert lines == [str(i) for i in range(200)]
    assert notebook.text(index).count("first line") == 1
    notebook.finished(index)
    notebook.wait_status("idle")
