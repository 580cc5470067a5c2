"""A file with the kernels that this server has started, and with its sessions.

A restarted server reads this file to find its kernels, and to decide which ended kernels' outputs its pages may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Maximum number of recorded kernels. The oldest are removed first.
MAX_KERNELS = 500

VERSION = 1


class Records:
    """The kernels and sessions of one server with one gateway.

    Kernels are kept after they have ended. Each change is written at once, to a file that only the user can read.
    """

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self.kernels: dict[str, dict[str, Any]] = {}
        self.sessions: list[dict[str, Any]] = []
        self._read()

    @staticmethod
    def path_for(directory: Path, gateway_url: str, root: str) -> Path:
        """The file for a gateway and a root directory. Servers with another gateway or directory have other kernels.

        The port is ignored, because it may change when the gateway is restarted.
        """
        gateway = urlsplit(gateway_url)
        key = hashlib.sha256(f"{gateway.hostname}\n{gateway.path}\n{root}".encode()).hexdigest()[:16]
        return directory / "kernelmux-lab" / f"kernels-{key}.json"

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text())
            if content["version"] == VERSION:
                self.kernels = dict(content["kernels"])
                self.sessions = list(content["sessions"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._log.warning("kernelmux: %s is not readable and is replaced: %s", self._path, error)

    def owns(self, kernel_id: str) -> bool:
        """Whether this server started the kernel."""
        return kernel_id in self.kernels

    def add_kernel(self, kernel_id: str, **details: Any) -> None:
        """Adds a kernel, or updates its details."""
        known = self.kernels.pop(kernel_id, {})
        # Moved to the end, so that the oldest kernels come first.
        self.kernels[kernel_id] = {**known, **{k: v for k, v in details.items() if v is not None}}
        for oldest in list(self.kernels)[: max(0, len(self.kernels) - MAX_KERNELS)]:
            del self.kernels[oldest]
        self._write()

    def set_sessions(self, sessions: list[dict[str, Any]]) -> None:
        """Replaces the sessions."""
        if sessions == self.sessions:
            return
        self.sessions = sessions
        for session in sessions:
            if session["kernel_id"] in self.kernels:
                self.kernels[session["kernel_id"]]["path"] = session["path"]
        self._write()

    def kernels_of(self, path: str) -> list[str]:
        """The kernels of a notebook, newest first, including those that have ended."""
        return [id for id in reversed(self.kernels) if self.kernels[id].get("path") == path]

    def _write(self) -> None:
        content = {"version": VERSION, "kernels": self.kernels, "sessions": self.sessions}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # `mkstemp` creates the file with mode 0600.
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(content, file)
                Path(temporary).replace(self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as error:
            self._log.warning("kernelmux: %s cannot be written: %s", self._path, error)
