"""Runs console blocks of the book as a reader would: commands after `$ `, followed by their output."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from harness.process import Process


@dataclass(frozen=True)
class Command:
    text: str
    # Lines that its output must contain, in this order. `…` stands for any text.
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Console:
    page: str
    line: int
    marks: frozenset[str]
    commands: tuple[Command, ...]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def consoles(path: Path) -> list[Console]:
    """The blocks of a page that are marked `console`."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        fence = re.fullmatch(r"```(\S*).*", line)
        if not fence:
            continue
        body = []
        for _, inner in numbered:
            if inner.startswith("```"):
                break
            body.append(inner)
        language, *marks = fence[1].split(",")
        if language == "console":
            found.append(Console(path.name, number, frozenset(marks), commands(body)))
    return found


def commands(lines: list[str]) -> tuple[Command, ...]:
    found: list[tuple[str, list[str]]] = []
    continued = False
    for line in lines:
        if continued:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
        continued = line.endswith("\\") and not found[-1][1]
    return tuple(Command(text, tuple(line for line in shown if line != "…")) for text, shown in found)


def pattern(shown: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in shown.strip().split("…")))


def first_not_printed(shown: tuple[str, ...], printed: list[str]) -> str | None:
    """The first of the `shown` lines that is missing in the output, where they must be in order."""
    rest = iter(printed)
    for line in shown:
        wanted = pattern(line)
        if not any(wanted.fullmatch(one.strip()) for one in rest):
            return line
    return None


def end_group(pid: int, number: int) -> None:
    """Signals a process and its process group."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


class Terminal:
    """A shell that keeps its variables from command to command."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.shell.stdout is not None
        for line in self.shell.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def run(self, command: str, timeout: float) -> tuple[int, list[str]]:
        """The exit code of a command and the lines that it printed."""
        assert self.shell.stdin is not None
        mark = uuid.uuid4().hex
        self.shell.stdin.write(f"{command}\nprintf '\\n{mark} %s\\n' $?\n")
        self.shell.stdin.flush()
        printed: list[str] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{command}: not done within {timeout:g} s: {printed}") from None
            if line is None:
                raise AssertionError(f"{command}: the shell ended: {printed}")
            if line.startswith(mark):
                return int(line.split()[1]), printed
            printed.append(line)

    def close(self) -> None:
        end_group(self.shell.pid, signal.SIGKILL)
        self.shell.wait(20)


class Reader:
    """Runs the consoles of a page in order. Those marked `background` keep running until the end."""

    def __init__(self, environment: dict[str, str], folder: Path, timeout: float = 120.0) -> None:
        self.environment = environment
        self.folder = folder
        self.timeout = timeout
        self.terminal = Terminal(environment, folder)
        self.background: list[Process] = []

    def follow(self, console: Console) -> None:
        if "background" in console.marks:
            self._start(console)
            return
        for command in console.commands:
            code, printed = self.terminal.run(command.text, self.timeout)
            output = "\n".join(printed)
            assert code == 0, f"{console.where}: {command.text}: exit code {code}: {output}"
            lacking = first_not_printed(command.shown, printed)
            assert lacking is None, f"{console.where}: {command.text} did not print {lacking!r}: {output}"

    def _start(self, console: Console) -> None:
        """Starts a console in another terminal and waits until it has printed what the page shows."""
        *before, last = [command.text for command in console.commands]
        script = "\n".join(["set -e", *before, last])
        process = Process(["bash", "-c", script], self.environment, self.folder, console.where)
        self.background.append(process)
        for line in console.commands[-1].shown:
            process.wait_for_line(rf"^\s*(?:{pattern(line).pattern})\s*$", self.timeout)

    def close(self) -> None:
        self.terminal.close()
        for process in reversed(self.background):
            # Like Ctrl-C in a terminal, which signals all processes there.
            end_group(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                pass
            end_group(process.pid, signal.SIGKILL)
            process.wait()
