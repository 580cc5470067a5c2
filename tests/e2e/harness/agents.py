"""Kernels' agents: their processes, their sockets, and connections to them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import uuid
from pathlib import Path
from typing import Any

from harness.gateway import Gateway
from harness.process import pids_mentioning
from harness.reconnecting import entries_of

HELLO, CONTROL, READ, CREDIT, MESSAGE, PING, TAKE = 1, 2, 3, 4, 6, 7, 8
WELCOME, REFUSED, ENTRIES, GAP, ACCEPTED, PONG, OFFER = 129, 130, 133, 134, 135, 136, 137


def printing(lines: int, per_second: int = 1_000) -> str:
    """Code that prints numbered lines, each as a separate message."""
    return f"import time\nfor i in range({lines}):\n    print(i, flush=True)\n    time.sleep({1 / per_second})\n"


def numbered(lines: int) -> str:
    return "".join(f"{i}\n" for i in range(lines))


def text_of(execution: dict[str, Any]) -> str:
    return "".join(output.get("text", "") for output in execution["outputs"])


def assert_whole(execution: dict[str, Any], text: str) -> None:
    """Checks that the execution succeeded, with exactly this output and no notice of a loss."""
    assert execution["status"] == "ok", execution["status"]
    assert execution["complete"] is True
    assert text_of(execution) == text


def losses(gateway: Gateway, kernel_id: str) -> list[str]:
    """The events in the log that report lost output."""
    entries = entries_of(gateway, kernel_id)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    events = [e["content"].get("event", "") for e in entries if e["header"]["msg_type"] == "kernelmux_lifecycle"]
    return [event for event in events if event in ("attached", "lost", "disconnected", "not_recorded")]


def agent_pid(gateway: Gateway, kernel_id: str) -> int:
    """The process of the kernel's agent."""
    agents = str(gateway.data_dir / "kernels" / "agents" / kernel_id)
    found = [pid for pid in pids_mentioning(agents) if b"\0run\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 1, found
    return found[0]


def agent_folder(gateway: Gateway, kernel_id: str) -> Path:
    (folder,) = (gateway.data_dir / "kernels" / "agents").glob(f"{kernel_id}-*")
    return folder


def launch_of(gateway: Gateway, kernel_id: str) -> dict[str, Any]:
    """The content of the agent's `launch.json`."""
    return dict(json.loads((agent_folder(gateway, kernel_id) / "launch.json").read_text()))


class AgentConnection:
    """A client's connection to an agent."""

    def __init__(self, path: str | None, stream: socket.socket | None = None) -> None:
        """Connects to the Unix socket at `path`, or uses `stream`, which is connected."""
        self.socket = stream or socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        if path:
            self.socket.connect(path)

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.socket.sendall(struct.pack("<IB", len(payload) + 1, kind) + payload)

    def hello(self, token: str, version: int = 2, client: str | None = None) -> tuple[int, dict[str, Any]]:
        """Sends a hello, and returns the answer's kind and content."""
        hello = {"version": version, "token": token, "client": client or str(uuid.uuid4())}
        self.send(HELLO, json.dumps(hello).encode())
        kind, payload = self.receive()
        return kind, json.loads(payload)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("the agent closed the connection")
            data += piece
        return data

    def receive(self) -> tuple[int, bytes]:
        length, kind = struct.unpack("<IB", self._exactly(5))
        return kind, self._exactly(length - 1)

    def is_closed(self) -> bool:
        """Waits for data or the end of the connection. Returns whether it ended."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()


class UnixProxy:
    """A proxy between a gateway and an agent. It replaces the agent's socket."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.behind = self.path.with_name(f"{self.path.name}-real")
        self.path.rename(self.behind)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.connections = 0
        self.flowing = threading.Event()
        self.flowing.set()
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(str(self.behind))
                except OSError:
                    near.close()
                    continue
                with self.lock:
                    self.connections += 1
                    self.pairs.append((near, far))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self.flowing.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Closes all connections, even in the middle of a frame."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        self.flowing.set()
        self.listener.close()
        self.cut()
