"""kernelmux-lab turns itself off if another extension runs cells on the notebook server (scenario 34)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateway import Gateway
from harness.lab import Lab, Notebook
from playwright.sync_api import Page, expect

ENVIRONMENTS = {"lab-nbmodel": "jupyter-server-nbmodel", "lab-documents": "@jupyter-ai-contrib/server-documents"}


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start_lab(
    environment: str, make_home: Callable[[str], Path], make_venv: Callable[[str], Path], lab_extension: Path
) -> Iterator[Callable[[Gateway | None], Lab]]:
    started: list[Lab] = []

    def start(gateway: Gateway | None) -> Lab:
        url, token = (gateway.url, gateway.token) if gateway else (None, None)
        started.append(Lab(make_home("lab"), url, token, lab_extension, venv=make_venv(environment)))
        return started[-1]

    yield start
    for lab in started:
        lab.close()


# These extensions do not run cells of kernels behind a gateway, so no cell is run here.
def test_the_extension_turns_itself_off(
    start_lab: Callable[[Gateway | None], Lab], gateway: Gateway, page: Page, environment: str
) -> None:
    lab = start_lab(gateway)
    lab.write_notebook("off", ["6 * 7"])
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    notebook = Notebook(page, lab, "off")
    page.goto(notebook.address)
    expect(notebook.cell(0)).to_contain_text("6 * 7", timeout=60_000)
    page.evaluate("() => window.jupyterapp.restored")
    plugins = page.evaluate("() => window.jupyterapp.listPlugins()")
    assert any(ENVIRONMENTS[environment] in plugin for plugin in plugins)
    # The extension would otherwise be active, because the notebook server uses a kernelmux gateway.
    config = page.evaluate("() => JSON.parse(document.querySelector('#jupyter-config-data').textContent)")
    assert config["kernelmux"] is True
    assert "@kernelmux/lab:plugin" in plugins
    commands = page.evaluate("() => window.jupyterapp.commands.listCommands()")
    assert commands and not [command for command in commands if command.startswith("kernelmux:")]
    assert not [url for url in sent if re.search("/kernelmux/(?!lab/static/)", url)]


def test_outputs_are_not_duplicated(start_lab: Callable[[Gateway | None], Lab], page: Page) -> None:
    notebook = start_lab(None).open(page, "doubled", ["for n in range(30):\n    print(f'line {n};')"])
    notebook.run(0)
    notebook.wait_text(0, "line 29;")
    assert re.findall(r"line (\d+);", notebook.text(0)) == [str(n) for n in range(30)]
