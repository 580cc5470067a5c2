"""Malformed requests, handshakes and frames, each with its expected answer.

After all of them, the gateway still answers requests, and a kernel that was already running executes the next cell.
"""

from __future__ import annotations

import json
import socket
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import raw, wire
from harness.gateway import TOKEN, Gateway
from harness.process import alive
from harness.wire import KernelSocket, execute_request, message

UNKNOWN = "00000000-0000-4000-8000-000000000000"
DEEP = b"[" * 200_000


class Victim:
    """A kernel and a client's connection that must survive every case."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.kernel_id = gateway.start_kernel()["id"]
        self.client: KernelSocket = gateway.socket(self.kernel_id, "bystander")
        self.client.run("kept = 40")

    def check(self) -> None:
        assert alive(self.gateway.pid), self.gateway.output[-3000:]
        assert self.client.run("kept + 2") == "42"
        assert "panicked" not in self.gateway.output


@pytest.fixture(scope="module")
def victim(gateway: Gateway) -> Iterator[Victim]:
    victim = Victim(gateway)
    yield victim
    victim.check()
    # The gateway still starts kernels and accepts sessions.
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id, "after") as client:
        assert client.run("6 * 7") == "42"
    victim.client.close()
    gateway.rest("DELETE", f"api/kernels/{victim.kernel_id}")


def post(path: str, body: bytes, *headers: str) -> bytes:
    return raw.request(
        "POST", path, TOKEN, body, headers or ("Content-Type: application/json",)
    )


def start_kernel(body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return post("/api/kernels", data)


def with_env(**env: Any) -> bytes:
    return start_kernel({"env": env})


def kernel(method: str, kernel_id: str, tail: str = "") -> bytes:
    return raw.request(method, f"/api/kernels/{kernel_id}{tail}", TOKEN)


def get(path: str, *headers: str) -> bytes:
    return raw.request("GET", path, TOKEN, headers=headers)


# Large inputs are functions, so that test workers do not build and keep all of them on collection.
Data = bytes | Callable[[], bytes]


def to_bytes(data: Data) -> bytes:
    return data() if callable(data) else data


# name, bytes, statuses (0: closed without an answer)
HTTP: list[tuple[str, Data, set[int]]] = [
    # bodies
    ("start: not JSON", start_kernel(b"{name"), {400}),
    ("start: JSON cut short", start_kernel(b'{"name": "python3"'), {400}),
    ("start: two JSON values", start_kernel(b"{} {}"), {400}),
    ("start: an array", start_kernel([]), {400}),
    ("start: a number", start_kernel(7), {400}),
    ("start: a string", start_kernel("python3"), {400}),
    ("start: not UTF-8", start_kernel(b'{"name": "\xff\xfe"}'), {400}),
    ("start: NaN", start_kernel(b'{"name": NaN}'), {400}),
    ("start: deep nesting", start_kernel(DEEP), {400}),
    ("start: name is a number", start_kernel({"name": 7}), {400}),
    ("start: name is an array", start_kernel({"name": ["python3"]}), {400}),
    ("start: name is a path", start_kernel({"name": "../python3"}), {400, 404}),
    ("start: name with NUL", start_kernel({"name": "python3\0"}), {400, 404}),
    ("start: name of 100,000 characters", start_kernel({"name": "x" * 100_000}), {400, 404}),
    ("start: unknown name", start_kernel({"name": "nothing"}), {400, 404}),
    ("start: path is a number", start_kernel({"path": 7}), {400}),
    ("start: env is an array", start_kernel({"env": ["KERNEL_X=1"]}), {400}),
    ("start: env is a string", start_kernel({"env": "KERNEL_X=1"}), {400}),
    ("start: env value is a number", with_env(KERNEL_X=1), {400}),
    ("start: env value is null", with_env(KERNEL_X=None), {400}),
    ("start: env value is an object", with_env(KERNEL_X={}), {400}),
    ("start: env value with NUL", with_env(KERNEL_X="a\0b"), {400}),
    ("start: env name with =", start_kernel({"env": {"KERNEL_X=Y": "1"}}), {400}),
    ("start: env name with NUL", start_kernel({"env": {"KERNEL_\0": "1"}}), {400}),
    ("start: KERNEL_ID not a UUID", with_env(KERNEL_ID="seven"), {400}),
    ("start: KERNEL_ID empty", with_env(KERNEL_ID=""), {400}),
    ("start: KERNEL_ID a path", with_env(KERNEL_ID="../../etc/passwd"), {400}),
    ("start: kernel_id not a UUID", start_kernel({"kernel_id": "seven"}), {400}),
    ("start: kernel_id a number", start_kernel({"kernel_id": 7}), {400}),
    ("start: launch timeout not a number", with_env(KERNEL_LAUNCH_TIMEOUT="soon"), {400}),
    ("start: launch timeout negative", with_env(KERNEL_LAUNCH_TIMEOUT="-1"), {400}),
    ("start: launch timeout NaN", with_env(KERNEL_LAUNCH_TIMEOUT="nan"), {400}),
    ("start: launch timeout infinite", with_env(KERNEL_LAUNCH_TIMEOUT="inf"), {400}),
    ("start: launch timeout huge", with_env(KERNEL_LAUNCH_TIMEOUT="1e300"), {400}),
    ("session: not JSON", post("/api/sessions", b"<xml/>"), {400}),
    ("session: an array", post("/api/sessions", b"[]"), {400}),
    ("session: no path", post("/api/sessions", b"{}"), {400}),
    ("session: path is a number", post("/api/sessions", b'{"path": 1, "type": "x"}'), {400}),
    (
        "session: kernel is a string",
        post("/api/sessions", b'{"path": "p", "type": "x", "kernel": "python3"}'),
        {400},
    ),
    ("session: patch of an unknown", raw.request("PATCH", f"/api/sessions/{UNKNOWN}", TOKEN, b"{}"), {404}),
    # ids and paths
    ("kernel: unknown id", kernel("GET", UNKNOWN), {404}),
    ("kernel: id is a number", kernel("GET", "7"), {404}),
    ("kernel: huge id", kernel("GET", "9" * 5000), {404, 414}),
    ("kernel: negative id", kernel("GET", "-1"), {404}),
    ("kernel: id NaN", kernel("GET", "NaN"), {404}),
    ("kernel: path traversal in the id", kernel("GET", "../../etc/passwd"), {404}),
    ("kernel: encoded path traversal in the id", kernel("GET", "..%2f..%2fetc%2fpasswd"), {404}),
    ("kernel: id with NUL", kernel("GET", "%00"), {404}),
    ("kernel: bad escape", kernel("GET", "%zz"), {400, 404}),
    ("kernel: id not UTF-8", kernel("GET", "%ff%fe"), {400, 404}),
    ("kernel: delete unknown", kernel("DELETE", UNKNOWN), {404}),
    ("kernel: interrupt unknown", kernel("POST", UNKNOWN, "/interrupt"), {404}),
    ("kernel: restart unknown", kernel("POST", UNKNOWN, "/restart"), {404}),
    ("kernel: put", kernel("PUT", UNKNOWN), {405}),
    ("kernels: delete all", raw.request("DELETE", "/api/kernels", TOKEN), {405}),
    ("spec: unknown", get("/api/kernelspecs/nothing"), {404}),
    ("spec: upper case traversal", get("/api/kernelspecs/..%2FPYTHON3"), {404}),
    ("resource: unknown", get("/kernelspecs/python3/nothing.png"), {404}),
    ("resource: path traversal", get("/kernelspecs/python3/../../../../etc/passwd"), {404}),
    ("resource: encoded path traversal", get("/kernelspecs/python3/..%2f..%2f..%2fetc%2fpasswd"), {404}),
    ("resource: doubly encoded path traversal", get("/kernelspecs/python3/%252e%252e%252fkernel.json"), {404}),
    ("resource: path traversal with backslashes", get("/kernelspecs/python3/..%5c..%5cetc%5cpasswd"), {404}),
    ("resource: absolute", get("/kernelspecs/python3//etc/passwd"), {404}),
    ("resource: absolute, encoded", get("/kernelspecs/python3/%2fetc%2fpasswd"), {404}),
    ("resource: NUL", get("/kernelspecs/python3/logo-64x64.png%00.js"), {404}),
    ("resource: a directory", get("/kernelspecs/python3/"), {404}),
    ("resource: path traversal in the name", get("/kernelspecs/..%2f..%2f..%2fetc/passwd"), {404}),
    ("unknown method", raw.request("BREW", "/api/kernels", TOKEN), {400, 405, 501}),
    # the HTTP layer
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {0, 400}),
    ("HTTP/9.9", b"GET /api HTTP/9.9\r\nHost: x\r\n\r\n", {0, 400, 505}),
    ("no Host", f"GET /api/kernels HTTP/1.1\r\nAuthorization: token {TOKEN}\r\n\r\n".encode(), {0, 200, 400}),
    ("space in a header name", b"GET /api HTTP/1.1\r\nHost: x\r\nBad Name: y\r\n\r\n", {0, 400}),
    ("header too large", get("/api/kernels", "X-Large: " + "x" * 1_000_000), {0, 431, 400}),
    ("too many headers", get("/api/kernels", *[f"X-{i}: y" for i in range(5000)]), {0, 431, 400}),
    ("path too long", get("/api/" + "x" * 200_000), {0, 400, 404, 414, 431}),
    ("query too long", get("/api/kernelspecs?user=" + "x" * 200_000), {0, 400, 414, 431}),
    ("Content-Length not a number", post("/api/kernels", b"{}", "Content-Length: two"), {400, 0}),
    ("Content-Length negative", post("/api/kernels", b"{}", "Content-Length: -1"), {400, 0}),
    ("Content-Length twice", post("/api/kernels", b"{}", "Content-Length: 2", "Content-Length: 3"), {400, 0}),
    ("Content-Length huge", post("/api/kernels", b"{}", "Content-Length: 99999999999999"), {400, 413}),
    ("Content-Length over 64 bits", post("/api/kernels", b"{}", "Content-Length: 99999999999999999999999"), {400, 0}),
    ("Content-Length and chunked", post("/api/kernels", b"2\r\n{}\r\n0\r\n\r\n", "Content-Length: 12", "Transfer-Encoding: chunked", "Content-Type: application/json"), {201, 400, 0}),
    ("chunk size not a number", post("/api/kernels", b"zz\r\n{}\r\n", "Transfer-Encoding: chunked", "Content-Length:"), {400, 0}),
    ("body too large", lambda: start_kernel(b'{"x": "' + b"x" * (80 << 20) + b'"}'), {413, 400}),
    # tokens
    ("wrong token", raw.request("GET", "/api/kernels", "wrong"), {401, 403}),
    ("token not UTF-8", raw.request("GET", "/api/kernels", "\xff\xfe"), {401, 403, 400}),
    ("huge token", raw.request("GET", "/api/kernels", "x" * 50_000), {0, 400, 401, 403, 431}),
]

CHANNELS = "/api/kernels/{kernel}/channels?session_id=raw"

# name, path, headers to drop, lines to add, statuses
HANDSHAKES: list[tuple[str, str, tuple[str, ...], tuple[str, ...], set[int]]] = [
    ("unknown kernel", f"/api/kernels/{UNKNOWN}/channels", (), (), {404}),
    ("kernel id not a UUID", "/api/kernels/seven/channels", (), (), {404}),
    ("no upgrade", CHANNELS, ("Upgrade", "Connection"), (), {400, 426}),
    ("upgrade to something else", CHANNELS, ("Upgrade",), ("Upgrade: h2c",), {400, 426}),
    ("no key", CHANNELS, ("Sec-WebSocket-Key",), (), {400}),
    ("no version", CHANNELS, ("Sec-WebSocket-Version",), (), {400, 426}),
    ("version 8", CHANNELS, ("Sec-WebSocket-Version",), ("Sec-WebSocket-Version: 8",), {400, 426}),
    ("no token", CHANNELS, ("Authorization",), (), {401, 403}),
    ("wrong token", CHANNELS, ("Authorization",), ("Authorization: token wrong",), {401, 403}),
    # With a valid token, every Origin is accepted (test_origin.py).
    ("origin not UTF-8", CHANNELS, (), ("Origin: http://\xff\xfe",), {101, 400, 403}),
    ("session id of 100,000 characters", CHANNELS + "x" * 100_000, (), (), {0, 400, 414, 431, 101}),
    ("session id not UTF-8", CHANNELS + "%ff%fe", (), (), {101, 400}),
    ("unknown subprotocol", CHANNELS, (), ("Sec-WebSocket-Protocol: v9.nothing",), {101}),
    ("malformed subprotocols", CHANNELS, (), ("Sec-WebSocket-Protocol: ,,\x80,",), {101, 400}),
]

# name, frames, outcomes
TEXT, BINARY, CONTINUE, CLOSE, PING = 0x1, 0x2, 0x0, 0x8, 0x9
ANY_CLOSE = {"closed"} | {f"closed {code}" for code in (1002, 1003, 1007, 1008, 1009, 1011)}


def text(data: Any) -> bytes:
    return raw.frame(TEXT, data if isinstance(data, bytes) else json.dumps(data).encode())


def changed(**changes: Any) -> dict[str, Any]:
    msg = message("kernel_info_request")
    for key, value in changes.items():
        if value is None:
            del msg[key]
        else:
            msg[key] = value
    return msg


def u32(*values: int) -> bytes:
    return raw.frame(BINARY, struct.pack(f"!{len(values)}I", *values) + b"{}")


# The message is refused, and neither its connection nor its kernel is affected.
KEPT = {"pong"}
# The framing is invalid, so the connection must end.
ENDED = ANY_CLOSE
EITHER = KEPT | ENDED

LEGACY: list[tuple[str, Data, set[str]]] = [
    ("not JSON", text(b"{"), KEPT),
    ("empty text", text(b""), KEPT),
    ("an array", text([1, 2]), KEPT),
    ("a number", text(7), KEPT),
    ("a string", text("execute"), KEPT),
    ("null", text(b"null"), KEPT),
    ("empty object", text({}), KEPT),
    ("deep nesting", text(DEEP), KEPT),
    ("deep nesting in content", text(b'{"header":{"msg_type":"x","msg_id":"y"},"content":' + b'{"a":' * 100_000), KEPT),
    ("header missing", text(changed(header=None)), KEPT),
    ("header an array", text(changed(header=[])), KEPT),
    ("header a string", text(changed(header="x")), KEPT),
    ("header empty", text(changed(header={})), KEPT),
    ("msg_type missing", text(changed(header={"msg_id": "x"})), KEPT),
    ("msg_type a number", text(changed(header={"msg_id": "x", "msg_type": 7})), KEPT),
    ("msg_id missing", text(changed(header={"msg_type": "kernel_info_request"})), KEPT),
    ("msg_id a number", text(changed(header={"msg_id": 7, "msg_type": "kernel_info_request"})), KEPT),
    ("msg_id huge", text(changed(header={"msg_id": "x" * 1_000_000, "msg_type": "y"})), KEPT),
    ("content an array", text(changed(content=[])), KEPT),
    ("content a string", text(changed(content="x")), KEPT),
    ("content missing", text(changed(content=None)), KEPT),
    ("parent_header an array", text(changed(parent_header=[])), KEPT),
    ("metadata a number", text(changed(metadata=7)), KEPT),
    ("channel unknown", text(changed(channel="nothing")), KEPT),
    ("channel iopub", text(changed(channel="iopub")), KEPT),
    ("channel hb", text(changed(channel="hb")), KEPT),
    ("channel a number", text(changed(channel=7)), KEPT),
    ("buffers a string", text(changed(buffers="x")), KEPT),
    ("lone surrogates", text(b'{"header": {"msg_id": "\\ud800", "msg_type": "\\udfff"}}'), KEPT),
    ("text not UTF-8", raw.frame(TEXT, b'{"header": "\xff\xfe"}'), EITHER),
    ("text not UTF-8 and not a message", raw.frame(TEXT, b"\xff" * 64), EITHER),
    ("binary: empty", raw.frame(BINARY, b""), KEPT),
    ("binary: three bytes", raw.frame(BINARY, b"\0\0\1"), KEPT),
    ("binary: no parts", u32(0), KEPT),
    ("binary: four billion parts", u32(0xFFFFFFFF), KEPT),
    ("binary: more parts than offsets", u32(1000, 8), KEPT),
    ("binary: offset past the end", u32(1, 0xFFFFFFF0), KEPT),
    ("binary: offset into the table", u32(1, 0), KEPT),
    ("binary: offsets backwards", u32(3, 16, 18, 17), KEPT),
    ("binary: part not JSON", raw.frame(BINARY, struct.pack("!II", 1, 8) + b"\xff\xff"), KEPT),
    ("unmasked frame", raw.frame(TEXT, b"{}", masked=False), ENDED),
    ("reserved bits", raw.frame(TEXT, b"{}", rsv=4), ENDED),
    ("reserved opcode 3", raw.frame(0x3, b"{}"), ENDED),
    ("reserved opcode 11", raw.frame(0xB), ENDED),
    ("continuation of nothing", raw.frame(CONTINUE, b"{}"), ENDED),
    ("message within a fragmented one", raw.frame(TEXT, b"{", fin=False) + raw.frame(TEXT, b"}"), ENDED),
    ("ping over 125 bytes", raw.frame(PING, b"x" * 126), ENDED),
    ("fragmented ping", raw.frame(PING, b"x", fin=False), ENDED),
    ("close with one byte", raw.frame(CLOSE, b"x"), ENDED | {"closed 1000"}),
    ("close with a forbidden code", raw.frame(CLOSE, struct.pack("!H", 1005)), ENDED | {"closed 1000", "closed 1005"}),
    ("length over 2^63", raw.frame(BINARY, b"", length=1 << 63, width=64), ENDED),
    ("length of four terabytes", raw.frame(BINARY, b"", length=1 << 42, width=64), ENDED),
    ("frame over the limit", lambda: raw.frame(TEXT, b" " * (300 << 20)), ENDED),
    (
        "fragments over the limit",
        lambda: raw.frame(TEXT, b"{", fin=False) + raw.frame(CONTINUE, b" " * (1 << 20), fin=False) * 300,
        ENDED,
    ),
    (
        "many empty fragments",
        raw.frame(TEXT, b"", fin=False)
        + raw.frame(CONTINUE, b"", fin=False) * 20_000
        + raw.frame(CONTINUE, b"{}"),
        EITHER,
    ),
    ("many pings", raw.frame(PING, b"x" * 100) * 5_000, EITHER),
]


def u64(*values: int, tail: bytes = b"shell{}{}{}{}") -> bytes:
    return raw.frame(BINARY, struct.pack(f"<{len(values)}Q", *values) + tail)


HUGE = (1 << 64) - 1
V1: list[tuple[str, bytes, set[str]]] = [
    ("v1: text frame", text(message("kernel_info_request")), EITHER),
    ("v1: empty", raw.frame(BINARY, b""), KEPT),
    ("v1: seven bytes", raw.frame(BINARY, b"\0" * 7), KEPT),
    ("v1: no offsets", u64(0), KEPT),
    ("v1: 2^64-1 offsets", u64(HUGE), KEPT),
    ("v1: 2^61 offsets", u64(1 << 61), KEPT),
    ("v1: too few offsets", u64(3, 32, 37, 39), KEPT),
    ("v1: more offsets than bytes", u64(1000, 56), KEPT),
    ("v1: first offset into the table", u64(6, 8, 61, 63, 65, 67, 69), KEPT),
    ("v1: offset past the end", u64(6, 56, 61, 63, 65, 67, 1 << 40), KEPT),
    ("v1: offset 2^64-1", u64(6, 56, 61, 63, 65, 67, HUGE), KEPT),
    ("v1: offsets backwards", u64(6, 56, 61, 60, 65, 67, 69), KEPT),
    ("v1: last offset short of the end", u64(6, 56, 61, 63, 65, 67, 68), KEPT),
    ("v1: channel not UTF-8", u64(6, 56, 61, 63, 65, 67, 69, tail=b"\xff\xff\xff\xff\xff{}{}{}{}"), KEPT),
    ("v1: channel unknown", u64(6, 56, 61, 63, 65, 67, 69, tail=b"nolls{}{}{}{}"), KEPT),
    ("v1: header not JSON", u64(6, 56, 61, 63, 65, 67, 69, tail=b"shell{[{}{}{}"), KEPT),
    ("v1: header an array", u64(6, 56, 61, 63, 65, 67, 69, tail=b"shell[]{}{}{}"), KEPT),
    ("v1: header empty", u64(6, 56, 61, 63, 65, 67, 69), KEPT),
]


@pytest.mark.parametrize("name,data,expected", HTTP, ids=[c[0] for c in HTTP])
def test_malformed_http(victim: Victim, name: str, data: Data, expected: set[int]) -> None:
    answer = raw.http(victim.gateway.port, to_bytes(data))
    assert answer.status in expected, (answer.status, answer.body[:500])
    assert b"root:" not in answer.body
    assert TOKEN.encode() not in answer.body
    if answer.status in (400, 404, 405, 413) and answer.body.startswith(b"{"):
        body = json.loads(answer.body)
        assert body["reason"] and not body.get("traceback")
    if answer.status == 201:
        victim.gateway.rest("DELETE", f"api/kernels/{json.loads(answer.body)['id']}")
    assert alive(victim.gateway.pid)


def test_a_duplicate_kernel_id_is_refused(victim: Victim) -> None:
    answer = raw.http(victim.gateway.port, with_env(KERNEL_ID=victim.kernel_id))
    assert answer.status == 409, answer
    victim.check()


def test_a_body_shorter_than_its_content_length_is_harmless(victim: Victim) -> None:
    # The client announces more than it sends and disconnects.
    data = post("/api/kernels", b"{}", "Content-Type: application/json", "Content-Length: 500")
    with socket.create_connection(("127.0.0.1", victim.gateway.port)) as sock:
        sock.sendall(data)
    victim.check()


def test_an_incomplete_request_line_is_harmless(victim: Victim) -> None:
    with socket.create_connection(("127.0.0.1", victim.gateway.port)) as sock:
        sock.sendall(b"GET /api/ker")
    victim.check()


@pytest.mark.parametrize(
    "name,path,drop,add,expected", HANDSHAKES, ids=[c[0] for c in HANDSHAKES]
)
def test_malformed_handshake(
    victim: Victim,
    name: str,
    path: str,
    drop: tuple[str, ...],
    add: tuple[str, ...],
    expected: set[int],
) -> None:
    data = raw.handshake(path.format(kernel=victim.kernel_id), TOKEN, drop, add)
    answer = raw.http(victim.gateway.port, data)
    assert answer.status in expected, (answer.status, answer.body[:500])
    victim.check()


def run_frames(victim: Victim, data: Data, expected: set[str], subprotocol: str | None) -> None:
    path = f"/api/kernels/{victim.kernel_id}/channels?session_id={uuid.uuid4().hex}"
    with raw.RawSocket(victim.gateway.port, path, TOKEN, subprotocol) as client:
        client.send(to_bytes(data))
        assert client.outcome() in expected
    victim.check()


@pytest.mark.parametrize("name,data,expected", LEGACY, ids=[c[0] for c in LEGACY])
def test_malformed_legacy_frames(victim: Victim, name: str, data: Data, expected: set[str]) -> None:
    run_frames(victim, data, expected, None)


@pytest.mark.parametrize("name,data,expected", V1, ids=[c[0] for c in V1])
def test_malformed_v1_frames(victim: Victim, name: str, data: Data, expected: set[str]) -> None:
    run_frames(victim, data, expected, wire.V1)


def test_a_connection_still_works_after_bad_messages(victim: Victim) -> None:
    # Sends all messages that a connection survives, then a valid request.
    kernel_id = victim.kernel_id
    for subprotocol, cases in ((None, LEGACY), (wire.V1, V1)):
        with victim.gateway.socket(
            kernel_id, uuid.uuid4().hex, subprotocols=[subprotocol] if subprotocol else None
        ) as client:
            for _, data, expected in cases:
                if expected == KEPT:
                    client.socket.sock.sendall(to_bytes(data))
            assert client.run("kept + 2", timeout=60) == "42"
    victim.check()


def test_unknown_message_types_reach_the_kernel_and_are_harmless(victim: Victim) -> None:
    with victim.gateway.socket(victim.kernel_id, "types") as client:
        for channel in ("shell", "control", "stdin"):
            client.request("nothing_request", {"x": 1}, channel)
        # `stop_on_error` is off, so that this error does not abort later requests.
        client.send(message("execute_request", {"code": 7, "stop_on_error": False}))
        client.send(message("comm_msg", {"comm_id": "nothing", "data": {}}))
        client.send(message("input_reply", {"value": 7}, "stdin"))
        assert client.run("kept + 2") == "42"
    victim.check()


def test_a_repeated_request_runs_once(victim: Victim) -> None:
    with victim.gateway.socket(victim.kernel_id, "twice") as client:
        client.run("count = 0")
        msg = message("execute_request", execute_request("count += 1"), session="twice")
        client.send(msg)
        client.send(msg)
        client.finish(msg["header"]["msg_id"])
        assert client.run("count") == "1"
