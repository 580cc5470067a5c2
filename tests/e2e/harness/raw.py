"""Raw HTTP and WebSocket bytes, including malformed ones that no library would send."""

from __future__ import annotations

import base64
import os
import re
import socket
import struct
from dataclasses import dataclass


@dataclass
class Answer:
    """An HTTP answer; `status` is 0 if the connection was closed without one."""

    status: int
    body: bytes


def _exchange(port: int, data: bytes, timeout: float) -> bytes:
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.settimeout(timeout)
        try:
            sock.sendall(data)
        except OSError:
            pass  # The gateway closed the connection before the end of the request. Its answer has the reason.
        try:
            while chunk := sock.recv(1 << 16):
                received += chunk
                if complete(received):
                    break
        except ConnectionError:
            pass
    return received


def complete(received: bytes) -> bool:
    head, gap, body = received.partition(b"\r\n\r\n")
    if not gap:
        return False
    if re.search(rb"^HTTP/1\.1 (1\d\d|204|304)", head):
        return True
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return length is not None and len(body) >= int(length[1])


def http(port: int, data: bytes, timeout: float = 60.0) -> Answer:
    """Sends `data` unchanged. Raises TimeoutError if the gateway neither answers nor closes."""
    received = _exchange(port, data, timeout)
    match = re.match(rb"HTTP/1\.[01] (\d{3})", received)
    return Answer(int(match[1]) if match else 0, received.partition(b"\r\n\r\n")[2])


def request(
    method: str, path: str, token: str, body: bytes = b"", headers: tuple[str, ...] = ()
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: token {token}"]
    lines += headers
    if body and not any(h.lower().startswith("content-length") for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def handshake(path: str, token: str, drop: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> bytes:
    """A WebSocket handshake request without the headers in `drop` and with the lines in `add`."""
    lines = {
        "Host": "127.0.0.1",
        "Authorization": f"token {token}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }
    head = [f"GET {path} HTTP/1.1"]
    head += [f"{k}: {v}" for k, v in lines.items() if k not in drop]
    return "\r\n".join([*head, *add]).encode("latin-1") + b"\r\n\r\n"


def frame(
    opcode: int,
    payload: bytes = b"",
    fin: bool = True,
    masked: bool = True,
    rsv: int = 0,
    length: int | None = None,
    width: int | None = None,
) -> bytes:
    """One WebSocket frame. `length` overrides the payload's true length, `width` its encoding (16 or 64 bits)."""
    announced = len(payload) if length is None else length
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    if width == 64 or (width is None and announced > 0xFFFF):
        head = struct.pack("!BBQ", first, mask_bit | 127, announced)
    elif width == 16 or announced > 125:
        head = struct.pack("!BBH", first, mask_bit | 126, announced)
    else:
        head = struct.pack("!BB", first, mask_bit | announced)
    if masked:
        mask = os.urandom(4)
        repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
        mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        payload = mask + mixed.to_bytes(len(payload), "big")
    return head + payload


class RawSocket:
    """A WebSocket connection after the handshake, for writing arbitrary bytes."""

    def __init__(self, port: int, path: str, token: str, subprotocol: str | None = None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 60)
        add = (f"Sec-WebSocket-Protocol: {subprotocol}",) if subprotocol else ()
        self.sock.sendall(handshake(path, token, add=add))
        self.buffer = b""
        head = self._until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def _fill(self) -> None:
        chunk = self.sock.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the gateway closed the connection")
        self.buffer += chunk

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._fill()
        head, _, self.buffer = self.buffer.partition(mark)
        return head

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._fill()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            pass  # The gateway has closed the connection. It sent the reason before.

    def read_frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload."""
        first, second = self._exactly(2)
        assert not second & 0x80, "a server must not mask its frames"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._exactly(8))
        return first & 0x0F, self._exactly(length)

    def outcome(self, timeout: float = 60.0) -> str:
        """Sends a Ping and returns `pong`, `closed CODE`, or `closed` for an end without a code."""
        self.sock.settimeout(timeout)
        self.send(frame(0x9, b"still there?"))
        try:
            while True:
                opcode, payload = self.read_frame()
                if opcode == 0x8:
                    code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else None
                    return f"closed {code}" if code else "closed"
                if opcode == 0xA and payload == b"still there?":
                    return "pong"
        except ConnectionError:
            return "closed"
