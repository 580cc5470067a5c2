"""Clients that hold connections or send too much do not keep the gateway from serving others."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail
from harness.certificates import Authority
from harness.gateway import Gateway
from harness.process import anonymous_kib
from harness.raw import http, request
from harness.waiting import eventually

IDLE = 10_000
# Measured 16 KiB on average.
IDLE_KIB = 32
# The gateway's own bound for a request's head and body, and for a handshake.
SLOW_DEADLINE = 60.0
SLOW = 100
# How much memory a flood of oversized requests may take; each is refused after at most a megabyte.
BOMB_KIB = 128 << 10


@pytest.fixture
def idle_connections() -> Iterator[int]:
    """How many connections this process and the gateway may hold, at most `IDLE`. The gateway takes three quarters of
    its open files for connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(IDLE, hard * 3 // 4 - 100)
    if count < 1_000:
        skip_or_fail(f"the limit of open files is {hard}: raise it with `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Victim:
    """Uses a kernel all the time, and keeps the longest time that it had to wait."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.kernel_id = gateway.start_kernel()["id"]
        self.rounds = 0
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self.gateway.socket(self.kernel_id) as client:
                while not self.stopping.is_set():
                    assert client.run(f"{self.rounds} + 1") == str(self.rounds + 1)
                    assert self.gateway.rest("GET", "api/kernels").status_code == 200
                    self.rounds += 1
        except BaseException as failure:  # noqa: BLE001: raised by `goes_on`
            self.failure = failure

    def goes_on(self) -> None:
        """Waits for further round trips."""
        before = self.rounds
        eventually(lambda: self.rounds > before + 2 or self.failure, "other clients are served", 60)
        if self.failure:
            raise self.failure

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(60)
        if self.failure:
            raise self.failure


@pytest.fixture
def attacked(start_gateway: Callable[..., Gateway]) -> Iterator[tuple[Gateway, Victim]]:
    gateway = start_gateway()
    victim = Victim(gateway)
    victim.goes_on()
    yield gateway, victim
    victim.stop()


def test_ten_thousand_idle_connections(idle_connections: int, attacked: tuple[Gateway, Victim]) -> None:
    gateway, victim = attacked
    before = anonymous_kib(gateway.pid)
    ask = request("GET", "/api", gateway.token or "")
    with contextlib.ExitStack() as stack:
        idle = []
        for number in range(idle_connections):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 60))
            # Half of them have sent a request, and keep the connection as browsers do.
            if number % 2:
                connection.sendall(ask)
                assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
            idle.append(connection)
        used = anonymous_kib(gateway.pid) - before
        print(f"{used / idle_connections:.1f} KiB for each of {idle_connections} idle connections")
        assert used < IDLE_KIB * idle_connections
        victim.goes_on()
        assert http(gateway.port, ask).status == 200
    victim.goes_on()
    sockets = lambda: len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
    eventually(lambda: sockets() < 500, "the connections are closed")


def hold(connection: socket.socket, first: bytes, piece: bytes, closed: list[float]) -> None:
    """Sends a piece every few seconds until the gateway closes the connection, and notes the time."""
    begun = time.monotonic()
    with connection, contextlib.suppress(OSError):
        connection.sendall(first)
        connection.settimeout(5)
        while time.monotonic() - begun < 2 * SLOW_DEADLINE:
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1 << 16):
                    break
            connection.sendall(piece)
    closed.append(time.monotonic() - begun)


def test_slow_requests_and_handshakes_end(
    attacked: tuple[Gateway, Victim], start_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    gateway, victim = attacked
    certificate, key = Authority(tmp_path / "certificates").server()
    secured = start_gateway("--tls-cert", str(certificate), "--tls-key", str(key))
    begin = request("POST", "/api/kernels", gateway.token or "", headers=("Content-Length: 1000000",))
    kinds = [
        # (the port, the beginning, what follows bit by bit)
        (gateway.port, b"GET /api HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n"),
        (gateway.port, b"G", b"E"),
        (gateway.port, begin, b" "),
        # The head of a TLS record of 500 bytes.
        (secured.port, b"\x16\x03\x01\x01\xf4", b"\x01"),
    ]
    closed: list[float] = []
    threads = []
    for port, first, piece in kinds:
        for _ in range(SLOW):
            connection = socket.create_connection(("127.0.0.1", port), 60)
            threads.append(threading.Thread(target=hold, args=(connection, first, piece, closed), daemon=True))
            threads[-1].start()
    victim.goes_on()
    for thread in threads:
        thread.join(2 * SLOW_DEADLINE + 30)
    assert len(closed) == SLOW * len(kinds)
    # The loaded machine may be late, but not by as much again.
    assert max(closed) < 2 * SLOW_DEADLINE, max(closed)
    victim.goes_on()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", secured.port), 60) as plain, context.wrap_socket(plain) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(64).startswith(b"HTTP/1.1 200 ")


def test_bombs_are_refused_without_taking_memory(attacked: tuple[Gateway, Victim]) -> None:
    gateway, victim = attacked
    token = gateway.token or ""
    before = anonymous_kib(gateway.pid)
    megabyte = b"x" * (1 << 20)
    bombs = {
        "one huge header": (request("GET", "/api", token, headers=("a: " + "x" * (1 << 20),)), {0, 431}),
        "many headers": (request("GET", "/api", token, headers=("a: b",) * 50_000), {0, 431}),
        "a huge address": (request("GET", "/api?" + "x" * (1 << 20), token), {0, 414, 431}),
        "a huge body": (request("POST", "/api/kernels", token, headers=("Content-Length: 1099511627776",)), {413}),
        "a body without an end": (
            request("POST", "/api/kernels", token, headers=("Transfer-Encoding: chunked",))
            + (b"100000\r\n" + megabyte + b"\r\n") * 64,
            {413},
        ),
        "a compressed body": (
            request("POST", "/api/kernels", token, b"\x1f\x8b\x08" * 1_000, ("Content-Encoding: gzip",)),
            {400, 415},
        ),
        "nested json": (request("POST", "/api/kernels", token, b'{"env":' * 100_000), {400}),
    }
    failures: list[str] = []

    def throw(name: str, data: bytes, expected: set[int]) -> None:
        for _ in range(5):
            status = http(gateway.port, data).status
            if status not in expected:
                failures.append(f"{name}: {status}")

    throwers = [
        threading.Thread(target=throw, args=(name, data, expected), daemon=True)
        for name, (data, expected) in bombs.items()
        for _ in range(4)
    ]
    for thrower in throwers:
        thrower.start()
    victim.goes_on()
    for thrower in throwers:
        thrower.join(120)
        assert not thrower.is_alive()
    assert failures == []
    assert anonymous_kib(gateway.pid) - before < BOMB_KIB
    victim.goes_on()
