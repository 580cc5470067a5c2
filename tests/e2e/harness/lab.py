"""JupyterLab with the gateway's kernels, and a notebook page in Chromium."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import nbformat
import requests
from playwright.sync_api import Locator, Page, expect

from harness.gateway import clean_env, free_port
from harness.process import Process
from harness.waiting import eventually

LAB_TOKEN = "e2e-lab-token"

# Playwright's default of 5 s is too short on a busy machine.
expect.set_options(timeout=30_000)

# Cells off screen must stay in the page, and JupyterLab must not fetch news from the internet.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none",
        "autoStartDefaultKernel": True,
    },
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}

LAB_CONFIG = f"""
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.port_retries = 0
c.IdentityProvider.token = {LAB_TOKEN!r}
c.LabApp.expose_app_in_browser = True
c.JupyterNotebookApp.expose_app_in_browser = True
c.LabApp.news_url = ""
c.ExtensionManager.listings_refresh_seconds = 0
"""


class Lab:
    """A JupyterLab server that uses the gateway's kernels, or starts kernels itself."""

    def __init__(
        self,
        home: Path,
        gateway_url: str | None,
        gateway_token: str | None,
        extension: Path | None = None,
        server_extension: bool = True,
        app: Literal["jupyterlab", "notebook"] = "jupyterlab",
        venv: Path | None = None,
        disabled: Iterable[str] = (),
        base_url: str = "",
        settings: str = "",
        **env: str,
    ) -> None:
        """Starts the server. Without a `gateway_url`, it starts the kernels of its environment itself.

        `extension` is a folder with kernelmux-lab, installed with `pip install --target`. `venv` is the virtual
        environment, by default that of the tests. `disabled` names JupyterLab extensions to disable. `settings` are
        further lines of the server's configuration.
        """
        self.base_url = base_url
        self.app = app
        self.token = LAB_TOKEN
        self.python = str(venv / "bin" / "python") if venv else sys.executable
        self.home = home
        self.files = home / "files"
        self.port = free_port()
        environment = clean_env(home, **env)
        # The server must find no local kernels, so that it uses the gateway's.
        environment.pop("JUPYTER_PATH")
        if gateway_url:
            environment["JUPYTER_GATEWAY_URL"] = gateway_url
        if extension:
            environment["PYTHONPATH"] = str(extension)
            environment["JUPYTER_PATH"] = str(extension / "share" / "jupyter")
            if server_extension:
                environment["JUPYTER_CONFIG_PATH"] = str(extension / "etc" / "jupyter")
        if gateway_token:
            environment["JUPYTER_GATEWAY_AUTH_TOKEN"] = gateway_token
        self.files.mkdir(parents=True)
        config = home / "config"
        (config / "labconfig").mkdir(parents=True)
        (config / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
        page_config = {"disabledExtensions": {name: True for name in disabled}}
        (config / "labconfig" / "page_config.json").write_text(json.dumps(page_config))
        sessions = f"c.SessionManager.database_filepath = {str(home / 'sessions.sqlite')!r}\n"
        (config / f"jupyter_{'lab' if app == 'jupyterlab' else app}_config.py").write_text(
            LAB_CONFIG + sessions + settings
        )
        self.environment = environment
        self.start()

    def start(self) -> None:
        """Starts the server, also after it has ended, with the same directories and port."""
        self.process = Process(
            [
                self.python,
                "-m",
                self.app,
                f"--ServerApp.port={self.port}",
                f"--ServerApp.root_dir={self.files}",
                f"--ServerApp.base_url={self.base_url}/",
            ],
            self.environment,
            self.home,
            "JupyterLab",
        )
        self.process.wait_for_line(r"is running at:", 60)
        # The line is printed before the server listens.
        eventually(self._listens, "JupyterLab listens")

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Kills the server, because a normal exit would shut down its kernels."""
        self.process.stop(signal.SIGKILL)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base_url}"

    def adopt(self, kernel_id: str, name: str = "python3") -> None:
        """Makes a restarted server use a running kernel again. The server does not list the gateway's kernels."""
        response = requests.post(
            f"{self.url}/api/kernels",
            json={"name": name, "kernel_id": kernel_id},
            headers={"Authorization": f"token {LAB_TOKEN}"},
            timeout=60,
        )
        assert response.status_code == 201, (response.status_code, response.text)

    def write_notebook(
        self,
        name: str,
        cells: list[str],
        kernel: str = "python3",
        outputs: dict[int, list[dict[str, Any]]] | None = None,
        minor: int = 5,
        counts: bool = False,
    ) -> None:
        """Writes a notebook.

        `outputs` has the saved outputs of some cells, by index. Below `minor` 5, cells have no ids. With `counts`, all
        cells have execution counts.
        """
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells]
        )
        for index, saved in (outputs or {}).items():
            notebook.cells[index].outputs = [nbformat.from_dict(output) for output in saved]
        for number, cell in enumerate(notebook.cells if counts else (), start=1):
            cell.execution_count = number
        if minor < 5:
            notebook.nbformat_minor = minor
            for cell in notebook.cells:
                del cell["id"]
        language = {"python3": "python", "bash": "bash", "deno": "typescript"}.get(kernel, kernel)
        notebook.metadata["kernelspec"] = {
            "name": kernel,
            "display_name": kernel,
            "language": language,
        }
        nbformat.write(notebook, str(self.files / f"{name}.ipynb"))

    @contextlib.contextmanager
    def edit(self, name: str) -> Iterator[list[Any]]:
        """Lets a test change the cells of a notebook file."""
        path = self.files / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        yield notebook.cells
        nbformat.write(notebook, path)

    def open(self, page: Page, name: str, cells: list[str], kernel: str = "python3") -> Notebook:
        """Writes a notebook with `cells`, opens it in single-document mode and waits for its kernel."""
        self.write_notebook(name, cells, kernel)
        notebook = Notebook(page, self, name)
        notebook.load()
        return notebook

    def close(self) -> None:
        self.process.stop(timeout=15)


class Server(Protocol):
    """A server in which notebooks are opened."""

    app: Literal["jupyterlab", "notebook"]
    token: str

    @property
    def url(self) -> str: ...


class Notebook:
    """One notebook page in JupyterLab's single-document mode."""

    def __init__(self, page: Page, lab: Server, name: str, url: str | None = None) -> None:
        self.page = page
        self.url = (url or lab.url).rstrip("/")
        self.token = lab.token
        self.path = "doc/tree" if lab.app == "jupyterlab" else "notebooks"
        self.name = name
        # Kept for use after the page was closed.
        self.known_kernel = ""
        self.known_cells: list[str] = []

    @property
    def address(self) -> str:
        return f"{self.url}/{self.path}/{self.name}.ipynb?token={self.token}&reset"

    def load(self) -> None:
        """Opens the page and waits until its kernel is idle."""
        self.goto()
        self.wait_ready()

    def goto(self) -> None:
        """Opens the page and waits until its kernel, which may be busy, is connected."""
        self.page.goto(self.address)
        expect(self.panel).to_be_visible(timeout=60_000)
        self.wait_connected()

    def save(self) -> None:
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")

    def remember(self) -> None:
        """Reads the ids of the kernel and of the cells, for use when the page is closed."""
        self.known_kernel = self.kernel_id()
        self.known_cells = self.page.evaluate(
            "() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells).map(cell => cell.id)"
        )

    def wait_sent(self, count: int) -> None:
        """Waits until the page has sent `count` cells to its kernel."""
        self.page.wait_for_function(
            "count => window.jupyterapp.shell.currentWidget.content.widgets"
            ".filter(cell => cell.outputArea?.future).length === count",
            arg=count,
        )

    def wait_restored(self) -> None:
        """Waits until kernelmux-lab is connected to the kernel and has requested the executions of the cells."""
        self.page.wait_for_function(
            "() => { const entries = performance.getEntriesByType('resource');"
            " const last = pattern => Math.max(0, ...entries.filter(e => pattern.test(e.name)).map(e => e.startTime));"
            " const facts = last(/\\/kernelmux\\/api\\/kernels\\/[0-9a-f-]{36}(\\?|$)/);"
            " return facts > 0 && last(/latest=cell/) > facts; }"
        )

    def reload(self) -> None:
        self.page.reload()
        expect(self.panel).to_be_visible(timeout=60_000)
        self.wait_connected()

    def wait_ready(self, timeout: float = 60.0) -> None:
        expect(self.panel).to_be_visible(timeout=timeout * 1000)
        self.wait_connected(timeout)
        self.wait_status("idle", timeout)

    def wait_connected(self, timeout: float = 60.0) -> None:
        """Waits until the page has a kernel and a connection to it.

        The toolbar shows "idle" even before there is a kernel.
        """
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
            "?.connectionStatus === 'connected'",
            timeout=timeout * 1000,
        )

    @property
    def panel(self) -> Locator:
        return self.page.locator(".jp-NotebookPanel").first

    @property
    def indicator(self) -> Locator:
        """The toolbar's kernel status."""
        return self.panel.locator(".jp-Notebook-ExecutionIndicator").first

    @property
    def kernel_status(self) -> Locator:
        """kernelmux-lab's status of the kernel."""
        return self.page.locator(".kernelmux-status").first

    def wait_status(self, status: str, timeout: float = 30.0) -> None:
        expect(self.indicator).to_have_attribute("data-status", status, timeout=timeout * 1000)

    def cell(self, index: int) -> Locator:
        return self.panel.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def output(self, index: int) -> Locator:
        return self.cell(index).locator(".jp-OutputArea-output")

    def question(self, index: int) -> Locator:
        """The input box of an `input()`."""
        return self.cell(index).locator(".jp-Stdin-input")

    def metadata(self, index: int) -> dict[str, Any]:
        metadata: dict[str, Any] = self.page.evaluate(
            "i => window.jupyterapp.shell.currentWidget.content.model.cells.get(i).metadata", index
        )
        return metadata

    def trusted(self, index: int) -> bool:
        return bool(
            self.page.evaluate("i => window.jupyterapp.shell.currentWidget.content.model.cells.get(i).trusted", index)
        )

    def prompt(self, index: int) -> Locator:
        return self.cell(index).locator(".jp-InputArea-prompt")

    def start(self, index: int) -> None:
        """Runs the cell with the keyboard and does not wait for its end."""
        self.cell(index).locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Control+Enter")

    def run(self, index: int, timeout: float = 30.0) -> str:
        """Runs the cell, waits until its prompt shows a number, and returns the text of its outputs."""
        before = self.prompt(index).inner_text()
        self.start(index)
        self.finished(index, before, timeout)
        return self.text(index)

    def finished(self, index: int, before: str = "[ ]:", timeout: float = 30.0) -> None:
        """Waits until the cell has a new execution number."""
        pattern = re.compile(rf"(?!{re.escape(before.strip())})\[\d+\]:")
        expect(self.prompt(index)).to_have_text(pattern, timeout=timeout * 1000)

    def text(self, index: int) -> str:
        return "\n".join(self.output(index).all_inner_texts())

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """The cell's outputs as saved to a file, with multi-line strings joined as by nbformat."""
        outputs: list[dict[str, Any]] = self.page.evaluate(
            "i => window.jupyterapp.shell.currentWidget.content.model.cells.get(i).outputs.toJSON()",
            index,
        )
        for output in outputs:
            if isinstance(output.get("text"), list):
                output["text"] = "".join(output["text"])
        return outputs

    def cell_id(self, index: int) -> str:
        """The `cellId` that JupyterLab sends with the cell's code."""
        cell_id = self.page.evaluate(
            "i => window.jupyterapp.shell.currentWidget.content.model.cells.get(i).id", index
        )
        return str(cell_id)

    def wait_text(self, index: int, text: str | re.Pattern[str], timeout: float = 30.0) -> None:
        """Waits until one of the cell's outputs contains `text`."""
        expect(self.output(index).filter(has_text=text).first).to_be_visible(
            timeout=timeout * 1000
        )

    def restart(self, timeout: float = 60.0) -> None:
        """Restarts the kernel from the menu, and waits until the kernel reports that it is idle.

        The toolbar is not enough: it still shows "idle" before the restart, and may show "restarting" only briefly.
        """
        self.page.evaluate(
            "() => { const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;"
            " window.statuses = []; kernel.statusChanged.connect((_, s) => window.statuses.push(s)); }"
        )
        self.command("kernelmenu:restart")
        self.dialog_button("Restart")
        self.page.wait_for_function(
            "() => statuses.includes('restarting') && statuses.lastIndexOf('idle') > statuses.indexOf('restarting')",
            timeout=timeout * 1000,
        )
        self.wait_status("idle", timeout)

    def dialog_button(self, label: str, timeout: float = 30.0) -> None:
        button = self.page.locator(".jp-Dialog .jp-mod-styled", has_text=label).first
        button.click(timeout=timeout * 1000)

    def command(self, command: str, args: dict[str, Any] | None = None) -> Any:
        """Runs a JupyterLab command without waiting for its end, as a menu does."""
        return self.page.evaluate(
            "([command, args]) => { void window.jupyterapp.commands.execute(command, args); }",
            [command, args or {}],
        )

    def kernel_id(self, timeout: float = 30.0) -> str:
        """The id of the page's kernel, once it has one."""
        handle = self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.id",
            timeout=timeout * 1000,
        )
        return str(handle.json_value())
