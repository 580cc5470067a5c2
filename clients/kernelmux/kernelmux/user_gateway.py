"""The user's gateway: a background process that outlives the command that started it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from . import __version__, bounded_log
from .errors import KernelmuxError
from .file_lock import PAUSE, holder, wait_released
from .gateway_api import GatewayApi
from .gateway_token import new_token, read_token
from .paths import Paths, write_private
from .program import gateway_environment, gateway_program

# How long the gateway may take to answer, in seconds. It first reconnects to its kernels.
START_TIMEOUT = 120.0
# How long the gateway may take to end its kernels and exit, in seconds. Its own deadline is one minute.
STOP_TIMEOUT = 75.0
# Maximum size of each of the two log files, in bytes.
LOG_BYTES = 2 * 1024 * 1024
# Ports to choose from: above those of common services, below the system's ephemeral ports.
PORTS = range(20_000, 32_000)
# How many ports are tried if other programs take them first.
ATTEMPTS = 3
# Variables that would change how the commands reach, list and end the gateway.
REMOVED = ("TOKEN", "TOKEN_FILE", "NO_AUTH", "INSECURE", "IP", "PORT", "BASE_URL", "NO_LIST", "ON_TERMINATE")


@dataclass(frozen=True)
class State:
    """The gateway that was started last."""

    port: int
    # Compared with the holder of the data directory's lock, which may be a gateway that was started in another way.
    pid: int
    # The Python installation whose kernels it serves, and the version of kernelmux there.
    prefix: str
    version: str

    @classmethod
    def read(cls, path: Path) -> State | None:
        """Reads the file. Returns `None` if it is missing or invalid."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class UserGateway:
    """Finds, starts and ends the gateway. Its methods must be called with `paths.lock` held."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.state = State.read(paths.state)

    def find(self) -> GatewayApi | None:
        """The running gateway, or `None`.

        The state file may be older than the last restart of the machine. It is used only if the gateway that it
        describes holds the lock of the data directory. Otherwise, another program could receive the token.

        Raises:
            KernelmuxError: if another gateway uses the data directory, or the gateway does not answer.
        """
        pid = holder(self._paths.gateway_lock)
        if pid is None:
            return None
        if self.state is None or self.state.pid != pid:
            raise KernelmuxError(
                f"the data directory {self._paths.data_dir} is used by a gateway that `kernelmux lab` did not start, "
                f"process {pid}; end it, or set KERNELMUX_DATA_DIR"
            )
        api = GatewayApi(address(self.state.port), read_token(self._paths))
        deadline = time.monotonic() + START_TIMEOUT
        while not api.answers():
            if holder(self._paths.gateway_lock) != pid:
                return None
            if time.monotonic() >= deadline:
                raise KernelmuxError(f"the gateway, process {pid}, does not answer; see {self._paths.log}")
            time.sleep(PAUSE)
        return api

    def find_or_start(self) -> GatewayApi:
        """The running gateway, or a new one with the same data directory and, if it is free, the same port.

        Raises:
            KernelmuxError: as `find`, or if the gateway does not start.
        """
        return self.find() or self._start()

    def has_left_kernels(self) -> bool:
        """Whether a gateway that no longer runs may have left kernels running."""
        return any(records.is_dir() and any(records.iterdir()) for records in self._paths.kernel_records)

    def stop(self) -> bool:
        """Ends the gateway and its kernels. Returns whether the gateway was running.

        Raises:
            KernelmuxError: if it does not end in time.
        """
        pid = holder(self._paths.gateway_lock)
        if pid is not None:
            # Ends the kernels, too. SIGTERM would leave them running.
            os.kill(pid, signal.SIGINT)
            if not wait_released(self._paths.gateway_lock, STOP_TIMEOUT):
                raise KernelmuxError(f"the gateway, process {pid}, does not end; see {self._paths.log}")
        self._paths.token.unlink(missing_ok=True)
        return pid is not None

    def _start(self) -> GatewayApi:
        port = self.state.port if self.state else random.choice(PORTS)
        for _ in range(ATTEMPTS):
            # Keeps the port if possible, because running JupyterLab servers use the previous gateway's address.
            if not is_free(port):
                port = next(filter(is_free, random.sample(PORTS, len(PORTS))))
            if api := self._start_at(port):
                return api
        raise KernelmuxError(f"the gateway finds no free port; see {self._paths.log}")

    def _start_at(self, port: int) -> GatewayApi | None:
        """Starts the gateway. Returns `None` if another program has taken the port."""
        api = GatewayApi(address(port), new_token(self._paths))
        log = subprocess.Popen(
            [sys.executable, "-I", "-S", bounded_log.__file__, str(self._paths.log), str(LOG_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert log.stdin is not None
        try:
            gateway = subprocess.Popen(
                [gateway_program(), *self._flags(port)],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log.stdin,
                stderr=subprocess.STDOUT,
                cwd=Path.home(),
                start_new_session=True,
            )
        finally:
            log.stdin.close()
        # Written before the gateway answers, so that later commands find it even if this one is interrupted.
        self.state = State(port, gateway.pid, sys.prefix, __version__)
        write_private(self._paths.state, json.dumps(asdict(self.state)))
        deadline = time.monotonic() + START_TIMEOUT
        while not api.answers():
            if gateway.poll() is not None:
                log.wait()
                if not is_free(port):
                    return None
                raise KernelmuxError(f"the gateway does not start; {self._paths.log} ends with\n{self._log_end()}")
            if time.monotonic() >= deadline:
                gateway.terminate()
                raise KernelmuxError(f"the gateway did not answer in {START_TIMEOUT:.0f} s; see {self._paths.log}")
            time.sleep(PAUSE)
        return api

    def _flags(self, port: int) -> list[str]:
        paths = self._paths
        return ["--port", str(port), "--token-file", str(paths.token), "--data-dir", str(paths.data_dir)]

    def _environment(self) -> dict[str, str]:
        environment = gateway_environment()
        for name in REMOVED:
            environment.pop(f"KERNELMUX_{name}", None)
        # Kernels get the user's environment, as they do with JupyterLab alone.
        environment.setdefault("KERNELMUX_INHERITED_ENVS", "*")
        return environment

    def _log_end(self) -> str:
        lines = self._paths.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-5:])


def address(port: int) -> str:
    return f"http://127.0.0.1:{port}/"


def is_free(port: int) -> bool:
    """Whether a server can listen on a port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
