"""`kernelmux lab` and its other commands, installed from their wheels."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Literal

import requests

from harness.gateway import REPO, VENV, binary, clean_env, free_port
from harness.process import Process, kill, pids_mentioning
from harness.waiting import eventually
from harness.wire import KernelSocket


# Starts the gateway as `kernelmux lab` does before it starts JupyterLab.
START_GATEWAY = """
from kernelmux.file_lock import held
from kernelmux.paths import Paths
from kernelmux.user_gateway import UserGateway

paths = Paths.of_user()
paths.make()
with held(paths.lock):
    UserGateway(paths).find_or_start()
"""


class WheelsMissing(Exception):
    """A wheel cannot be built."""


def install(folder: Path) -> Path:
    """Creates a virtual environment with both wheels, and returns its command `kernelmux`.

    Its other packages are those of the tests' environment, so that none is downloaded or installed twice.
    """
    wheels = folder / "wheels"
    build([str(REPO / "scripts" / "lab-wheel.sh")])
    build([str(REPO / "scripts" / "wheel.sh"), str(wheels)], KERNELMUX_GATEWAY_BINARY=str(binary()))
    environment = folder / "venv"
    # With symbolic links, the interpreter finds the standard library of the tests' Python.
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    site_packages = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
    (environment / site_packages / "shared.pth").write_text(f"{VENV / site_packages}\n")
    # The packages' files outside of site-packages: JupyterLab's page, widgets, and ipykernel's kernelspec.
    for name in ("lab", "labextensions/@jupyter-widgets", "kernels/python3"):
        shared = Path("share/jupyter") / name
        (environment / shared).parent.mkdir(parents=True, exist_ok=True)
        (environment / shared).symlink_to(VENV / shared)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    # pip finds the dependencies installed, and fails if one is missing.
    links = [f"--find-links={wheels}", f"--find-links={REPO / 'target' / 'wheels'}"]
    subprocess.run([*pip, "--no-index", *links, "kernelmux"], check=True)
    return environment / "bin" / "kernelmux"


def build(command: list[str], **variables: str) -> None:
    built = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if built.returncode:
        raise WheelsMissing(f"{command[0]} fails:\n{built.stderr}")


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class RunningLab:
    """A running `kernelmux lab`."""

    app: Literal["jupyterlab", "notebook"] = "jupyterlab"

    def __init__(self, process: Process) -> None:
        self.process = process
        self.url, self.token = process.wait_for_line(r"(http://127\.0\.0\.1:\d+/)lab\?token=(\w+)", 120).groups()
        # The line is printed before the server listens.
        eventually(self._listens, "JupyterLab listens")

    def _listens(self) -> bool:
        try:
            return self.rest("GET", "api").status_code == 200
        except requests.ConnectionError:
            return False

    def rest(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"token {self.token}"}
        return requests.request(method, self.url + path, headers=headers, timeout=60, **options)

    def get(self, path: str) -> Any:
        response = self.rest("GET", path)
        assert response.status_code == 200, (path, response.status_code, response.text)
        return response.json()

    def open_notebook(self, path: str) -> str:
        """Starts a notebook's kernel, as the page does, and returns its id."""
        session = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
        response = self.rest("POST", "api/sessions", json=session)
        assert response.status_code == 201, (response.status_code, response.text)
        return str(response.json()["kernel"]["id"])

    def kernel(self, kernel_id: str) -> KernelSocket:
        return KernelSocket(self.url, kernel_id, token=self.token)

    def run(self, kernel_id: str, code: str) -> str:
        """The output of code that runs in a kernel."""
        with self.kernel(kernel_id) as kernel:
            return kernel.run(code)


class Laptop:
    """A user with a separate home directory and the installed commands."""

    def __init__(self, command: Path, home: Path) -> None:
        self.command = command
        self.home = home
        self.data_dir = home / ".local" / "share" / "kernelmux"
        self.files = home / "files"
        self.files.mkdir()
        self.environment = clean_env(home, PATH=os.defpath)
        # The commands must find the installed kernels, and only those, without an activated environment.
        del self.environment["JUPYTER_PATH"]

    def start_lab(self, *args: str, terminal: Path | None = None) -> Process:
        """Starts `kernelmux lab`, in a terminal if one is given."""
        # Tests that run in the background or with nohup ignore these signals, and their child processes would, too.
        argv = ["env", "--default-signal=HUP,INT", str(self.command), "lab", "--no-browser", "--allow-root"]
        argv += [f"--port={free_port()}", str(self.files), *args]
        if terminal:
            # The first terminal that a session leader opens becomes the session's controlling terminal.
            argv = ["bash", "-c", 'exec <"$0" && exec "$@"', str(terminal), *argv]
        return Process(argv, self.environment, self.home, "kernelmux lab")

    def lab(self, *args: str, terminal: Path | None = None) -> RunningLab:
        return RunningLab(self.start_lab(*args, terminal=terminal))

    def start_gateway(self) -> None:
        """Starts the gateway, if it is not running, as `kernelmux lab` does."""
        python = self.command.parent / "python"
        subprocess.run([python, "-c", START_GATEWAY], env=self.environment, cwd=self.home, check=True)

    def start_kernel(self) -> str:
        """Starts a kernel without JupyterLab, and returns its id."""
        url = f"http://127.0.0.1:{self.state['port']}/api/kernels"
        headers = {"Authorization": f"token {self.token}"}
        response = requests.post(url, json={"name": "python3"}, headers=headers, timeout=60)
        assert response.status_code == 201, (response.status_code, response.text)
        return str(response.json()["id"])

    def kill_gateway(self) -> None:
        """Kills the gateway. Its kernels keep running."""
        kill(self.gateway_pid)
        # A killed process may count as a zombie while its last thread still has the port open.
        eventually(lambda: is_free(self.state["port"]), "the gateway has ended")

    def kernel_pids(self) -> list[int]:
        return pids_mentioning(f"{self.data_dir}/kernels/")

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *args],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.data_dir / "laptop" / "gateway.json").read_text()))

    @property
    def token(self) -> str:
        return (self.data_dir / "laptop" / "token").read_text()

    @property
    def gateway_pid(self) -> int:
        return int((self.data_dir / "gateway.lock").read_text())

    def gateway_pids(self) -> list[int]:
        """All gateways of this user."""
        return pids_mentioning(f"kernelmux-gateway\0--port\0{self.state['port']}\0")

    def kernels(self) -> list[str]:
        """The ids of the gateway's kernels, read from `kernelmux status`."""
        status = self.run("status")
        assert status.returncode == 0, status.stdout + status.stderr
        return re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", status.stdout)

    def pids(self) -> list[int]:
        """All processes whose command line names a file of this user."""
        return pids_mentioning(f"{self.home}/")

    def wait_no_process(self) -> None:
        eventually(lambda: not self.pids(), "no process is left")

    def close(self) -> None:
        for pid in self.pids():
            kill(pid)
