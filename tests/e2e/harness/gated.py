"""A cell that prints a part, waits for a file, and prints the rest, and how it looks in a notebook."""

from __future__ import annotations

import re
from pathlib import PurePath

from harness.lab import Notebook

# Prints a line, waits for a file the test writes, prints the rest: the test, not a clock, decides
# when the cell goes on.
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


def expect_whole(notebook: Notebook, index: int) -> None:
    """The gated cell's output is there, all of it, once and in order."""
    notebook.wait_text(index, "last line", 60)
    lines = re.findall(r"line (\d+);", notebook.text(index))
    assert lines == [str(i) for i in range(200)]
    assert notebook.text(index).count("first line") == 1
    notebook.finished(index)
    notebook.wait_status("idle")
