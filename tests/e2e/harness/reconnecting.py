"""Clients that reconnect: resume protocol clients, event stream clients, and plain Jupyter clients.

Each is a thread that reads until it is stopped or the kernel has ended, reconnects whenever its connection breaks, and
keeps what it received.
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from typing import Any

import requests
import websocket

from harness.gateway import Gateway
from harness.wire import V1, KernelSocket, Message, execute_request, from_v1, is_idle, message, parent_of

RESUME = "v1.resume.kernelmux"
BROKEN = (OSError, websocket.WebSocketException, requests.RequestException, TimeoutError, ConnectionError)


class Client(threading.Thread):
    """Base class. A failed check ends the thread and is kept in `failure`, which `finish` raises."""

    def __init__(self, gateway: Gateway, kernel_id: str, port: int) -> None:
        super().__init__(daemon=True)
        self.gateway = gateway
        self.kernel_id = kernel_id
        self.url = f"http://127.0.0.1:{port}/"
        self.connections = 0
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        # While set, the client does not read.
        self.stalled = threading.Event()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as failure:  # noqa: BLE001: raised by `finish`
            self.failure = failure

    def work(self) -> None:
        raise NotImplementedError

    def wait_while_stalled(self) -> None:
        while self.stalled.is_set() and not self.stopping.is_set():
            self.stopping.wait(0.05)

    def finish(self, timeout: float = 60.0) -> None:
        self.join(timeout)
        assert not self.is_alive(), f"{type(self).__name__} did not end within {timeout:g} s"
        if self.failure is not None:
            raise self.failure


class LogClient(Client):
    """Reads every entry of the log. `seen` has their `msg_id`s in order."""

    def __init__(self, gateway: Gateway, kernel_id: str, port: int) -> None:
        super().__init__(gateway, kernel_id, port)
        self.epoch: str | None = None
        self.seen: list[str] = []
        self.ended = False

    def cursor(self) -> str:
        return f"{self.epoch}:{len(self.seen)}" if self.epoch else "start"

    def add(self, seq: int, msg: Message) -> None:
        """Keeps an entry, which must be the next one."""
        assert seq == len(self.seen) + 1, f"entry {seq} after {len(self.seen)} entries"
        self.seen.append(msg["header"]["msg_id"])

    def work(self) -> None:
        while not self.stopping.is_set() and not self.ended:
            try:
                self.connections += 1
                self.read()
            except websocket.WebSocketBadStatusException as refusal:
                assert refusal.status_code not in (401, 403), "the client is logged out"
            except BROKEN:
                pass
            self.stopping.wait(0.05)


class ResumeClient(LogClient):
    """Reads the log with the resume protocol."""

    def read(self) -> None:
        address = self.url.replace("http", "ws", 1)
        address += f"api/kernels/{self.kernel_id}/channels?resume={self.cursor()}&token={self.gateway.token}"
        socket = websocket.create_connection(
            address, timeout=10, subprotocols=[RESUME], suppress_origin=True
        )
        try:
            assert socket.getsubprotocol() == RESUME
            socket.settimeout(1)
            first = True
            while not self.stopping.is_set():
                self.wait_while_stalled()
                try:
                    kind, data = socket.recv_data()
                except websocket.WebSocketTimeoutException:
                    continue
                if kind == websocket.ABNF.OPCODE_CLOSE:
                    return
                if kind == websocket.ABNF.OPCODE_TEXT:
                    self.on_notice(json.loads(data), first)
                    first = False
                elif kind == websocket.ABNF.OPCODE_BINARY:
                    self.add(struct.unpack_from("<Q", data)[0], from_v1(data[8:]))
        finally:
            socket.shutdown()

    def on_notice(self, notice: dict[str, Any], first: bool) -> None:
        assert (notice["type"] == "hello") == first, notice
        if notice["type"] == "hello":
            assert notice["recovered"] is True, notice
            assert self.epoch in (None, notice["epoch"]), notice
            assert notice["from"] == len(self.seen), notice
            self.epoch = notice["epoch"]
        elif notice["type"] == "end":
            self.ended = True
        else:
            assert notice["type"] == "alive", notice


class EventClient(LogClient):
    """Reads the log as an event stream."""

    def read(self) -> None:
        headers = dict(self.gateway.headers())
        if self.epoch:
            headers["Last-Event-ID"] = self.cursor()
        address = f"{self.url}api/kernels/{self.kernel_id}/log?from=start"
        with requests.get(address, headers=headers, stream=True, timeout=20) as response:
            assert response.status_code == 200, response.text
            event: dict[str, str] = {}
            for line in response.iter_lines(chunk_size=None):
                self.wait_while_stalled()
                if self.stopping.is_set():
                    return
                if line:
                    name, _, value = line.decode().partition(": ")
                    event[name] = event.get(name, "") + value
                elif event.get("event") == "end":
                    self.ended = True
                    return
                elif event:
                    if "data" in event:
                        assert event["event"] == "message", event
                        entry = json.loads(event["data"])
                        self.add(entry["seq"], entry)
                        self.epoch = event["id"].partition(":")[0]
                    event = {}


class Screen:
    """The text that a notebook shows for one cell. A `\\r` must be followed by text of the same width."""

    def __init__(self) -> None:
        self.text = ""
        self.clear_later = False
        self.replies: list[Message] = []
        self.idle = False
        self.responded = False

    def show(self, msg: Message) -> None:
        self.responded = True
        kind, content = msg["header"]["msg_type"], msg["content"]
        if kind == "clear_output":
            if content.get("wait"):
                self.clear_later = True
            else:
                self.text, self.clear_later = "", False
        elif kind == "stream":
            if self.clear_later:
                self.text, self.clear_later = "", False
            self.text += content["text"]
        elif kind == "execute_reply":
            self.replies.append(msg)
        elif is_idle(msg):
            self.idle = True

    def shown(self) -> str:
        return shown(self.text)


def shown(text: str) -> str:
    """The text as displayed: `\\r` overwrites the line."""
    return "\n".join(line.rpartition("\r")[2] for line in text.split("\n"))


class PlainClient(Client):
    """A Jupyter client that knows only its session_id. Runs the cells that `cell` makes, one after another.

    A request without any response is sent again on the next connection, as a user would.
    """

    def __init__(self, gateway: Gateway, kernel_id: str, port: int, session: str, v1: bool, cell: Any) -> None:
        super().__init__(gateway, kernel_id, port)
        self.session = session
        self.subprotocols = [V1] if v1 else None
        self.cell = cell
        self.cells = 0
        self.socket: KernelSocket | None = None

    def work(self) -> None:
        while not self.stopping.is_set():
            code, check = self.cell(self.cells)
            request = message("execute_request", execute_request(code), session=self.session)
            screen = self.watch(request)
            assert screen.replies[0]["content"]["status"] == "ok", screen.replies
            check(request["header"]["msg_id"], screen)
            self.cells += 1
        if self.socket is not None:
            self.socket.close()

    def watch(self, request: Message) -> Screen:
        """Sends the request and reads until its reply and idle have arrived, reconnecting as needed."""
        screen = Screen()
        deadline = time.monotonic() + 120
        while not (screen.replies and screen.idle):
            assert time.monotonic() < deadline, f"the cell did not end in time: {screen.__dict__}"
            try:
                if self.socket is None:
                    self.connections += 1
                    self.socket = KernelSocket(
                        self.url, self.kernel_id, self.session, self.gateway.token, self.subprotocols, timeout=10
                    )
                    if not screen.responded:
                        self.socket.send(request)
                        self.mark_sent(request)
                elif not screen.responded and not self.mark_sent(request):
                    self.socket.send(request)
                self.wait_while_stalled()
                msg = self.socket.receive(1)
            except TimeoutError:
                continue
            except BROKEN:
                if self.socket is not None:
                    with contextlib.suppress(*BROKEN):
                        self.socket.abort()
                self.socket = None
                time.sleep(0.05)
                continue
            self.socket.seen.clear()
            if parent_of(msg) == request["header"]["msg_id"]:
                screen.show(msg)
        return screen

    def mark_sent(self, request: Message) -> bool:
        """Marks the request as sent on this connection. Returns whether it was already marked."""
        sent = getattr(self.socket, "last_sent", None) == request["header"]["msg_id"]
        setattr(self.socket, "last_sent", request["header"]["msg_id"])
        return sent


def log_of(gateway: Gateway, kernel_id: str) -> list[tuple[int, str]]:
    """The seq and `msg_id` of every stored entry."""
    return [(entry["seq"], entry["header"]["msg_id"]) for entry in entries_of(gateway, kernel_id)]


def entries_of(gateway: Gateway, kernel_id: str) -> list[dict[str, Any]]:
    """Every stored entry."""
    response = gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false")
    assert response.status_code == 200, response.text
    text = response.content.decode()
    entries = []
    for line in text.split("\n"):
        if line.startswith('data: {"seq":'):
            entries.append(json.loads(line[len("data: ") :]))
    assert "event: end" in text[-100:], text[-200:]
    return entries
