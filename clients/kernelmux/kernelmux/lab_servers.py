"""The JupyterLab servers that `kernelmux lab` runs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from .file_lock import held, holder, wait_released

# How long a JupyterLab has to end, in seconds.
STOP_TIMEOUT = 30.0


@contextlib.contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Registers this process as a server."""
    path = folder / str(os.getpid())
    with held(path):
        path.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running_servers(folder: Path) -> list[int]:
    """The process ids of running servers. Removes the files of servers that were killed."""
    running = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        pid = holder(path)
        if pid is None:
            path.unlink(missing_ok=True)
        else:
            running.append(pid)
    return running


def stop_servers(folder: Path) -> bool:
    """Ends all servers. Returns whether they ended in time."""
    pids = running_servers(folder)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return all(wait_released(folder / str(pid), STOP_TIMEOUT) for pid in pids)
