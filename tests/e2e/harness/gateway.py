"""Runs the gateway as a process, or Jupyter Kernel Gateway for comparison."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from harness.process import Process, alive, kill, pids_mentioning
from harness.waiting import eventually
from harness.wire import KernelSocket

REPO = Path(__file__).resolve().parents[3]
VENV = Path(sys.prefix)
# "kernelmux", or "kernel-gateway" to run the same tests against Jupyter Kernel Gateway.
PEER = os.environ.get("KERNELMUX_E2E_PEER", "kernelmux")
TOKEN = "e2e-4f8a1c-token"


def binary() -> Path:
    return Path(
        os.environ.get("KERNELMUX_GATEWAY_BIN", REPO / "target" / "debug" / "kernelmux-gateway")
    )


def free_port() -> int:
    """A free port below the system's ephemeral ports.

    The system does not give such a port to a server that asks for any free one, nor to a client as its local port. A
    client that retries until a server listens could otherwise connect to itself.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def clean_env(home: Path, **extra: str) -> dict[str, str]:
    """An environment without the Jupyter installation and configuration of this machine."""
    home.mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PATH": str(VENV / "share" / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "run"),
        "DENO_DIR": str(home / "deno"),
        "DENO_NO_UPDATE_CHECK": "1",
        # Unless a test sets the flag.
        "KERNELMUX_AGENT": "auto",
        **extra,
    }
    for name in ("tmp", "config", "data", "run"):
        (home / name).mkdir(exist_ok=True)
    return env


class Gateway:
    """One gateway. After it has ended, `start` starts it again with the same directories and port."""

    def __init__(
        self,
        home: Path,
        *args: str,
        token: str | None = TOKEN,
        is_token_in_args: bool = False,
        port: int = 0,
        base_url: str = "/",
        env: dict[str, str] | None = None,
        peer: str = PEER,
    ) -> None:
        self.home = home
        self.data_dir = home / "gateway"
        self.args = list(args)
        self.token = token
        self.is_token_in_args = is_token_in_args
        self.port = port
        self.base_url = base_url
        self.extra_env = env or {}
        self.peer = peer
        self.process: Process | None = None
        self.url = ""
        self.past_output = ""
        self.session = requests.Session()
        self.session.trust_env = False

    def argv(self) -> list[str]:
        if self.peer == "kernel-gateway":
            return self._peer_argv()
        argv = [str(binary()), "--ip", "127.0.0.1", "--port", str(self.port)]
        argv += ["--data-dir", str(self.data_dir)]
        if not self.is_token_in_args:
            argv += ["--token", self.token] if self.token else ["--no-auth"]
        if self.base_url != "/":
            argv += ["--base-url", self.base_url]
        return argv + self.args

    def _peer_argv(self) -> list[str]:
        self.port = self.port or free_port()
        argv = [sys.executable, "-m", "kernel_gateway", "--KernelGatewayApp.ip=127.0.0.1"]
        argv += [f"--KernelGatewayApp.port={self.port}", f"--KernelGatewayApp.port_retries=0"]
        argv += [f"--KernelGatewayApp.auth_token={self.token or ''}"]
        argv += [f"--KernelGatewayApp.base_url={self.base_url}"]
        argv += ["--JupyterWebsocketPersonality.list_kernels=True"]
        args = iter(self.args)
        for flag in args:
            if flag == "--cull-idle-timeout":
                argv.append(f"--MappingKernelManager.cull_idle_timeout={next(args)}")
            elif flag == "--cull-interval":
                argv.append(f"--MappingKernelManager.cull_interval={next(args)}")
            elif flag == "--cull-connected":
                argv.append("--MappingKernelManager.cull_connected=True")
            elif flag == "--allow-origin":
                argv.append(f"--KernelGatewayApp.allow_origin={next(args)}")
        return argv

    def start(self, timeout: float = 60.0) -> Gateway:
        env = clean_env(self.home, **self.extra_env)
        if self.process is not None:
            self.past_output += self.process.output
        self.process = Process(self.argv(), env, self.home, "the gateway")
        if self.peer == "kernel-gateway":
            self.process.wait_for_line(r"Kernel Gateway.* available at|at http://", timeout)
            self.url = f"http://127.0.0.1:{self.port}{self.base_url}"
            return self
        match = self.process.wait_for_line(r"(https?://127\.0\.0\.1:(\d+)(/[^\s?]*)?)", timeout)
        self.url = match[1]
        self.port = int(match[2])
        if not self.url.endswith("/"):
            self.url += "/"
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def output(self) -> str:
        now = self.process.output if self.process else ""
        return f"{self.past_output}\n{now}"

    def stop(self, number: int = signal.SIGINT, timeout: float = 30.0) -> int:
        assert self.process is not None
        return self.process.stop(number, timeout)

    def kernel_pids(self) -> list[int]:
        """The gateway's kernels: processes whose command line names a file under its home."""
        own = {self.process.pid} if self.process else set()
        # The slash distinguishes gw1 from gw10.
        return [p for p in pids_mentioning(f"{self.home}/") if p not in own]

    def close(self) -> None:
        """Ends the gateway and every remaining kernel, by pid."""
        if self.process is not None and self.process.running():
            with contextlib.suppress(Exception):
                self.process.stop(signal.SIGINT, 20)
        for pid in self.kernel_pids():
            kill(pid)
        self.session.close()

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"} if self.token else {}

    def rest(self, method: str, path: str, **options: Any) -> requests.Response:
        """Sends a request below the base URL, with the token unless `headers` are given."""
        options.setdefault("headers", self.headers())
        options.setdefault("timeout", 60)
        return self.session.request(method, self.url + path.lstrip("/"), **options)

    def start_kernel(self, name: str | None = "python3", **body: Any) -> dict[str, Any]:
        if name is not None:
            body["name"] = name
        response = self.rest("POST", "api/kernels", json=body)
        assert response.status_code == 201, (response.status_code, response.text)
        return dict(response.json())

    @contextlib.contextmanager
    def kernel(self, name: str | None = "python3", **body: Any) -> Iterator[str]:
        """Starts a kernel, yields its id and deletes it at the end."""
        kernel_id = self.start_kernel(name, **body)["id"]
        try:
            yield kernel_id
        finally:
            if self.process is not None and self.process.running():
                self.rest("DELETE", f"api/kernels/{kernel_id}")

    def socket(self, kernel_id: str, session_id: str | None = None, **options: Any) -> KernelSocket:
        options.setdefault("token", self.token)
        return KernelSocket(self.url, kernel_id, session_id, **options)

    def model(self, kernel_id: str) -> dict[str, Any] | None:
        response = self.rest("GET", f"api/kernels/{kernel_id}")
        return dict(response.json()) if response.status_code == 200 else None

    def wait_state(self, kernel_id: str, state: str, timeout: float = 30.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            model = self.model(kernel_id)
            return model if model and model["execution_state"] == state else None

        found = eventually(reached, f"kernel {kernel_id} is {state}", timeout)
        assert found is not None
        return found

    def wait_no_kernels(self, timeout: float = 30.0) -> None:
        eventually(lambda: not self.kernel_pids(), "no kernel process is left", timeout)


def python_pid(client: KernelSocket) -> int:
    return int(re.sub(r"\D", "", client.run("import os; print(os.getpid())")))


__all__ = ["PEER", "TOKEN", "Gateway", "alive", "clean_env", "free_port", "kill", "python_pid"]
