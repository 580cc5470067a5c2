"""Child processes, and lookups in /proc."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path


class Process:
    """A child process whose output is collected line by line."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.child = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def output(self) -> str:
        with self._changed:
            return "\n".join(self.lines)

    def _read(self) -> None:
        assert self.child.stdout is not None
        for raw in self.child.stdout:
            with self._changed:
                self.lines.append(raw.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_line(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Waits for a line that matches `pattern`, in the output so far or later, and returns the match."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            for line in self.lines:
                if match := re.search(pattern, line):
                    found.append(match)
                    return True
            return self._ended

        with self._changed:
            self._changed.wait_for(seen, timeout)
        if not found:
            raise AssertionError(
                f"{self.name} did not print /{pattern}/ within {timeout:g} s; it printed:\n{self.output}"
            )
        return found[0]

    def running(self) -> bool:
        return self.child.poll() is None

    def send_signal(self, number: int) -> None:
        self.child.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        """Waits for the exit and returns the status; a negative one is the signal that ended the process."""
        status = self.child.wait(timeout)
        # A grandchild can keep the pipe open, so the reader may not end with the child.
        self._reader.join(1)
        return status

    def stop(self, number: int = signal.SIGINT, timeout: float = 20.0) -> int:
        """Sends a signal, kills the process at the timeout, and returns the exit status."""
        if self.running():
            self.send_signal(number)
            try:
                return self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.child.kill()
        return self.wait()


def pids_mentioning(text: str) -> list[int]:
    """Live processes with `text` in their command line, except this one."""
    pids = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace")
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if text in command and state != "Z":
            pids.append(int(entry))
    return pids


def family(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def alive(pid: int) -> bool:
    """Whether `pid` runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def anonymous_kib(pid: int) -> int:
    """A process's anonymous resident memory in KiB: without mapped files, such as its program."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("/proc/PID/status has no RssAnon")
