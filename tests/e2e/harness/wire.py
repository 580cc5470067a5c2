"""A minimal client of the kernel WebSocket, with its three message formats written from their specification.

It shares no code with the product or with Jupyter libraries, so it also finds errors that both of them have.
"""

from __future__ import annotations

import json
import struct
import time
import uuid
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import websocket

V1 = "v1.kernel.websocket.jupyter.org"
Message = dict[str, Any]


def message(
    msg_type: str,
    content: dict[str, Any] | None = None,
    channel: str = "shell",
    session: str = "e2e",
    buffers: list[bytes] | None = None,
    metadata: dict[str, Any] | None = None,
    parent: dict[str, Any] | None = None,
) -> Message:
    """A complete message with a new id."""
    return {
        "header": {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": session,
            "username": "e2e",
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.3",
        },
        "parent_header": parent or {},
        "metadata": metadata or {},
        "content": content or {},
        "channel": channel,
        "buffers": buffers or [],
    }


def execute_request(code: str, **content: Any) -> dict[str, Any]:
    return {
        "code": code,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
        **content,
    }


def legacy_text(msg: Message) -> str:
    return json.dumps({**msg, "buffers": []})


def legacy_binary(msg: Message) -> bytes:
    parts = [json.dumps({**msg, "buffers": []}).encode(), *msg["buffers"]]
    offset = 4 * (len(parts) + 1)
    offsets = []
    for part in parts:
        offsets.append(offset)
        offset += len(part)
    return struct.pack(f"!{len(parts) + 1}I", len(parts), *offsets) + b"".join(parts)


def v1(msg: Message) -> bytes:
    parts = [msg["channel"].encode()]
    parts += [
        json.dumps(msg[k]).encode() for k in ("header", "parent_header", "metadata", "content")
    ]
    parts += msg["buffers"]
    count = len(parts) + 1
    offset = 8 * (count + 1)
    offsets = [offset]
    for part in parts:
        offset += len(part)
        offsets.append(offset)
    return struct.pack(f"<{count + 1}Q", count, *offsets) + b"".join(parts)


def from_v1(frame: bytes) -> Message:
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    assert offsets[0] == 8 * (count + 1), offsets
    assert offsets[-1] == len(frame), (offsets, len(frame))
    parts = [frame[a:b] for a, b in zip(offsets, offsets[1:])]
    header, parent, metadata, content = (json.loads(p) for p in parts[1:5])
    return {
        "channel": parts[0].decode(),
        "header": header,
        "parent_header": parent,
        "metadata": metadata,
        "content": content,
        "buffers": parts[5:],
    }


def from_legacy_binary(frame: bytes) -> Message:
    (count,) = struct.unpack_from("!I", frame)
    offsets = struct.unpack_from(f"!{count}I", frame, 4)
    assert offsets[0] == 4 * (count + 1), offsets
    ends = [*offsets[1:], len(frame)]
    parts = [frame[a:b] for a, b in zip(offsets, ends)]
    return {**json.loads(parts[0]), "buffers": parts[1:]}


class KernelSocket:
    """A WebSocket to a kernel's channels. Keeps every received message in `seen`."""

    def __init__(
        self,
        url: str,
        kernel_id: str,
        session_id: str | None = None,
        token: str | None = None,
        subprotocols: list[str] | None = None,
        headers: list[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.session_id = session_id
        query = [f"session_id={quote(session_id)}"] if session_id is not None else []
        query += [f"token={quote(token)}"] if token else []
        address = url.replace("http", "ws", 1).rstrip("/") + f"/api/kernels/{kernel_id}/channels"
        if query:
            address += "?" + "&".join(query)
        self.socket = websocket.create_connection(
            address,
            timeout=timeout,
            subprotocols=subprotocols,
            header=headers or [],
            suppress_origin=True,
            enable_multithread=True,
            # The library's validation is slow: byte by byte, in Python. `receive` decodes the text anyway.
            skip_utf8_validation=True,
        )
        self.v1 = self.socket.getsubprotocol() == V1
        self.seen: list[Message] = []
        self.kinds: list[int] = []

    def __enter__(self) -> KernelSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Ends the connection without a closing handshake."""
        self.socket.shutdown()

    def send(self, msg: Message, as_text: bool = False) -> str:
        """Sends a message in the connection's format and returns its id. `as_text` sends binary messages as text."""
        if self.v1:
            self.socket.send_binary(v1(msg))
        elif msg["buffers"]:
            frame = legacy_binary(msg)
            if as_text:
                self.socket.send(frame, websocket.ABNF.OPCODE_TEXT)
            else:
                self.socket.send_binary(frame)
        else:
            self.socket.send(legacy_text(msg))
        return str(msg["header"]["msg_id"])

    def request(
        self, msg_type: str, content: dict[str, Any] | None = None, channel: str = "shell"
    ) -> str:
        return self.send(message(msg_type, content, channel, self.session_id or "e2e"))

    def execute(self, code: str, **content: Any) -> str:
        return self.request("execute_request", execute_request(code, **content))

    def receive(self, timeout: float = 30.0) -> Message:
        """The next message. Raises TimeoutError if none arrives in time."""
        deadline = time.monotonic() + timeout
        while True:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                # Returns control frames, too. Otherwise, each Ping of the gateway would restart the timeout.
                kind, data = self.socket.recv_data(control_frame=True)
            except websocket.WebSocketTimeoutException:
                raise TimeoutError(f"no message within {timeout:g} s") from None
            if kind == websocket.ABNF.OPCODE_CLOSE:
                raise ConnectionError(f"closed by the gateway: {data!r}")
            if kind not in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
                continue
            self.kinds.append(kind)
            if kind == websocket.ABNF.OPCODE_TEXT:
                msg = json.loads(data.decode())
            else:
                msg = from_v1(data) if self.v1 else from_legacy_binary(data)
            self.seen.append(msg)
            return msg

    def until(self, condition: Any, timeout: float = 30.0, what: str = "a message") -> Message:
        """Waits for a new message for which `condition` holds, and returns it."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {timeout:g} s: {what}")
            try:
                msg = self.receive(left)
            except TimeoutError:
                raise TimeoutError(f"not within {timeout:g} s: {what}") from None
            if condition(msg):
                return msg

    def finish(self, msg_id: str, timeout: float = 30.0, reply: bool = True) -> list[Message]:
        """Waits for the reply to `msg_id` and its idle (or idle alone), and returns all messages with this parent."""
        mine: list[Message] = []
        replied, idle = not reply, False
        deadline = time.monotonic() + timeout

        def add(msg: Message) -> None:
            nonlocal replied, idle
            if parent_of(msg) == msg_id:
                mine.append(msg)
                replied = replied or msg["header"]["msg_type"].endswith("_reply")
                idle = idle or is_idle(msg)

        for msg in self.seen:
            add(msg)
        while not (replied and idle):
            left = deadline - time.monotonic()
            try:
                add(self.receive(max(left, 0.001)))
            except TimeoutError:
                last = types(mine)[-5:]
                raise TimeoutError(
                    f"{msg_id} not finished within {timeout:g} s: {len(mine)} messages, {last}"
                ) from None
        return mine

    def run(self, code: str, timeout: float = 30.0, **content: Any) -> str:
        """Executes code and returns its stdout and text results. Raises AssertionError if it fails."""
        answers = self.finish(self.execute(code, **content), timeout)
        reply = reply_of(answers)
        assert reply["content"]["status"] == "ok", reply["content"]
        return text_of(answers)


def parent_of(msg: Message) -> str | None:
    return (msg.get("parent_header") or {}).get("msg_id")


def is_idle(msg: Message) -> bool:
    return (
        msg["header"]["msg_type"] == "status"
        and msg["content"].get("execution_state") == "idle"
    )


def types(messages: list[Message]) -> list[str]:
    return [m["header"]["msg_type"] for m in messages]


def reply_of(messages: list[Message]) -> Message:
    replies = [m for m in messages if m["header"]["msg_type"].endswith("_reply")]
    assert len(replies) == 1, types(messages)
    return replies[0]


def text_of(messages: list[Message]) -> str:
    """Stdout and the text of results and displays, in order."""
    text = ""
    for m in messages:
        if m["header"]["msg_type"] == "stream" and m["content"]["name"] == "stdout":
            text += m["content"]["text"]
        elif m["header"]["msg_type"] in ("execute_result", "display_data"):
            text += m["content"]["data"].get("text/plain", "")
    return text
