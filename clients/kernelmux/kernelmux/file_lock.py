"""Locks on files. The system releases them when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

# Pause between two checks of a lock, in seconds.
PAUSE = 0.05


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Waits for the lock and holds it. Child processes do not inherit it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def wait_released(path: Path, timeout: float) -> bool:
    """Waits until no process holds the lock. Returns whether it was released in time."""
    deadline = time.monotonic() + timeout
    while is_held(path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)
    return True


def holder(path: Path) -> int | None:
    """The process id that the holder of the lock has written into the file; `None` if the lock is free."""
    if not is_held(path):
        return None
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        return None
