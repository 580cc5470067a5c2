"""Measures how long JupyterLab takes to show a notebook of 300 cells and 10,000 lines, and the bytes that it receives.

    reopen.py GATEWAY_PROGRAM ROUNDS

Prints JSON. `stock`: JupyterLab without a gateway opens the notebook with its outputs in the file. `restored`:
JupyterLab with kernelmux-lab opens the notebook without outputs in the file; all come from the kernel's log. Needs the
environment of the end-to-end tests, because it uses their harness.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
CELLS = 300
LINES = 10_000
# The format of a typical log line.
TEXT = "2026-01-01 12:00:00 INFO epoch {cell} step {line}: loss 0.1234 accuracy 0.9876 lr 0.0010"
# Whether the page shows all cells with all of their lines.
SHOWN = """([cells, lines]) => {
  const widget = window.jupyterapp?.shell.currentWidget;
  const model = widget?.content?.model;
  if (model?.cells?.length !== cells) { return false; }
  let count = 0;
  for (const cell of model.cells) {
    if (cell.executionCount === null || cell.sharedModel.execution_state === 'running') { return false; }
    for (const output of cell.outputs.toJSON()) { count += [].concat(output.text).join('').split('\\n').length - 1; }
  }
  return count === lines && widget.node.querySelectorAll('.jp-OutputArea-output').length === cells;
}"""
OUTPUTS = "() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells).map(cell => cell.outputs.toJSON())"


def code(cell: int) -> str:
    return f"for line in range({lines_of(cell)}):\n    print({TEXT!r}.format(cell={cell}, line=line))"


def lines_of(cell: int) -> int:
    return LINES // CELLS + (cell < LINES % CELLS)


def saved_outputs(cell: int) -> list[dict[str, Any]]:
    text = "".join(TEXT.format(cell=cell, line=line) + "\n" for line in range(lines_of(cell)))
    return [{"output_type": "stream", "name": "stdout", "text": text}]


class Received:
    """Counts the bytes that a page receives from its kernel and from the gateway."""

    def __init__(self, page: Any) -> None:
        self.frames = 0
        self.responses: list[Any] = []
        page.on("websocket", lambda socket: socket.on("framereceived", self.add))
        page.on("response", self.respond)

    def add(self, data: str | bytes) -> None:
        self.frames += len(data.encode() if isinstance(data, str) else data)

    def respond(self, response: Any) -> None:
        if "/kernelmux/" in response.url and "/lab/static/" not in response.url:
            self.responses.append(response)

    def bytes(self) -> int:
        return self.frames + sum(len(response.body()) for response in self.responses)


def measure(browser: Any, address: str) -> dict[str, float]:
    with browser.new_context(viewport={"width": 1200, "height": 1400}) as context:
        page = context.new_page()
        received = Received(page)
        begun = time.monotonic()
        page.goto(address)
        # Polls instead of checking at each animation frame, because the check itself takes a while.
        page.wait_for_function(SHOWN, arg=[CELLS, LINES], timeout=120_000, polling=50)
        seconds = time.monotonic() - begun
        outputs = page.evaluate(OUTPUTS)
        return {"seconds": seconds, "received": received.bytes(), "outputs": len(json.dumps(outputs))}


def main(program: str, rounds: int) -> None:
    os.environ["KERNELMUX_GATEWAY_BIN"] = str(Path(program).resolve())
    sys.path.insert(0, str(REPO / "tests" / "e2e"))
    from conftest import CHROMIUM
    from harness.gateway import Gateway
    from harness.lab import Lab, Notebook
    from playwright.sync_api import sync_playwright

    wheel = subprocess.run([REPO / "scripts" / "lab-wheel.sh"], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        extension = Path(folder) / "extension"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", extension]
        subprocess.run([*pip, wheel.strip()], check=True)
        gateway = Gateway(Path(folder) / "gateway").start()
        labs = {
            "stock": Lab(Path(folder) / "stock", None, None),
            "restored": Lab(Path(folder) / "restored", gateway.url, gateway.token, extension),
        }
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=CHROMIUM
        )
        try:
            cells = [code(cell) for cell in range(CELLS)]
            outputs = {cell: saved_outputs(cell) for cell in range(CELLS)}
            labs["stock"].write_notebook("many", cells, outputs=outputs, counts=True)
            labs["restored"].write_notebook("many", cells)
            run_all(browser, Notebook, labs["restored"])
            results: dict[str, list[dict[str, float]]] = {name: [] for name in labs}
            # The first round starts the stock kernel and fills caches.
            for number in range(rounds + 1):
                for name, lab in labs.items():
                    result = measure(browser, Notebook(None, lab, "many").address)  # type: ignore[arg-type]
                    if number > 0:
                        results[name].append(result)
            print(json.dumps(results))
        finally:
            browser.close()
            for lab in labs.values():
                lab.close()
            gateway.close()


def run_all(browser: Any, notebook_of: Callable[..., Any], lab: Any) -> None:
    """Runs all cells in a page that is then closed and not saved."""
    with browser.new_context() as context:
        notebook = notebook_of(context.new_page(), lab, "many")
        notebook.load()
        notebook.command("notebook:run-all-cells")
        notebook.page.wait_for_function(SHOWN, arg=[CELLS, LINES], timeout=300_000)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
