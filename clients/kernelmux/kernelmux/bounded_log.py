"""Copies its input to a log file of bounded size: `python bounded_log.py FILE MAX_BYTES`.

A separate process, because the gateway outlives the command that started it. It runs without the package, and ends with
the last process that writes to its input.
"""

from __future__ import annotations

import os
import sys

CHUNK = 64 * 1024


class BoundedLog:
    """A file and its predecessor, `FILE.1`, each of at most `max_bytes`."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor: int | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Appends data. Data that cannot be written, for example to a full disk, is dropped."""
        try:
            if self._descriptor is None:
                self._open()
            if self._size + len(data) > self._max_bytes:
                self._rotate()
            assert self._descriptor is not None
            self._size += os.write(self._descriptor, data[-self._max_bytes :])
        except OSError:
            self._close()

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self._close()
        os.replace(self._path, f"{self._path}.1")  # noqa: PTH105
        self._open()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def main() -> None:
    log = BoundedLog(sys.argv[1], int(sys.argv[2]))
    # Reads even if writing fails: a full pipe would block the gateway.
    while data := os.read(0, CHUNK):
        log.write(data)


if __name__ == "__main__":
    main()
