"""Connections and gateways that end at random moments under load: nothing is lost or repeated.

The tests print their seed; setting KERNELMUX_SEED repeats a run. `make test-long` sets KERNELMUX_LONG for longer runs.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.reconnecting import EventClient, LogClient, ResumeClient, Screen, PlainClient, log_of, shown
from harness.executions import get_execution, run, wait_ended
from harness.gateway import Gateway, free_port
from harness.process import anonymous_kib
from harness.proxy import Proxy
from harness.wire import is_idle, parent_of

LONG = bool(os.environ.get("KERNELMUX_LONG"))
pytestmark = pytest.mark.timeout(1800 if LONG else 240)


@pytest.fixture
def chance() -> random.Random:
    """A random number generator with a printed seed."""
    seed = int(os.environ.get("KERNELMUX_SEED", time.time_ns() % 1_000_000))
    print(f"KERNELMUX_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def gateway(make_home: Callable[[str], Path], built: None) -> Iterator[Gateway]:
    gateway = Gateway(make_home("chaos"), port=free_port()).start()
    yield gateway
    gateway.close()


CELL = """
import random, time
from IPython.display import clear_output
chance = random.Random({seed})
truth = ""
def say(text):
    global truth
    truth += text
    print(text, end="", flush=True)
for block in range({blocks}):
    kind = chance.randrange(4)
    if kind == 0:
        for line in range(chance.randrange(200)):
            say(f"{{block}}-{{line}}\\n")
    elif kind == 1:
        for percent in range(0, 100, 3):
            say(f"\\r{{block:5}} {{percent:3}}%")
        say("\\n")
    elif kind == 2 and chance.random() < 0.3:
        clear_output(wait=chance.random() < 0.5)
        truth = ""
        say(f"cleared at {{block}}\\n")
    else:
        say("x" * chance.randrange(1, 20_000) + "\\n")
    time.sleep(chance.random() * 0.05)
with open({path!r}, "wb") as file:
    file.write(truth.encode())
"""


def cells(gateway: Gateway, kernel_id: str, folder: Path, seed: int, blocks: int) -> Callable[[int], Any]:
    """Returns a function that makes cells, each with a check of its displayed and its recorded output."""

    def cell(number: int) -> tuple[str, Callable[[str, Screen], None]]:
        path = folder / f"{kernel_id}-{number}"

        def check(msg_id: str, screen: Screen) -> None:
            truth = shown(path.read_bytes().decode())
            assert screen.shown() == truth, f"cell {number} of {kernel_id} is displayed differently"
            execution = get_execution(gateway, kernel_id, msg_id)
            kept = "".join(output["text"] for output in execution["outputs"])
            assert kept == truth, f"cell {number} of {kernel_id} is recorded differently"
            assert execution["complete"] is True and execution["status"] == "ok", execution["status"]

        return CELL.format(seed=seed + number, blocks=blocks, path=str(path)), check

    return cell


def disturb(chance: random.Random, client: Any, proxy: Proxy, until: float) -> None:
    """Cuts, silences or stalls one client again and again until the time is up, and restores it each time.

    The first disturbance is a cut, because the test requires every client to reconnect, and a stalled client does not.
    """
    kinds = 2
    while time.monotonic() < until and client.failure is None:
        time.sleep(chance.uniform(0.2, 2.5))
        kind, kinds = chance.randrange(kinds), 5
        if kind == 0:
            proxy.cut(reset=True)
        elif kind == 1:
            proxy.cut(reset=False)
        elif kind == 2:
            proxy.silence()
        elif kind == 3:
            client.stalled.set()
        time.sleep(chance.uniform(0.0, 1.5))
        client.stalled.clear()
        proxy.heal()


def test_reconnecting_clients_receive_everything_once(
    gateway: Gateway, tmp_path: Path, chance: random.Random
) -> None:
    seconds = 120 if LONG else 20
    kernels = [gateway.start_kernel()["id"] for _ in range(8)]
    clients: list[Any] = []
    proxies: list[Proxy] = []

    def proxied() -> int:
        proxies.append(Proxy(("127.0.0.1", gateway.port)))
        return proxies[-1].port

    for number, kernel_id in enumerate(kernels):
        cell = cells(gateway, kernel_id, tmp_path, chance.randrange(1 << 30), 40)
        clients.append(PlainClient(gateway, kernel_id, proxied(), uuid.uuid4().hex, number % 2 == 0, cell))
        clients.append(ResumeClient(gateway, kernel_id, proxied()))
        clients.append(EventClient(gateway, kernel_id, proxied()))
    try:
        for client in clients:
            client.start()
        until = time.monotonic() + seconds
        disturbing = [
            threading.Thread(target=disturb, args=(random.Random(chance.random()), client, proxy, until))
            for client, proxy in zip(clients, proxies)
        ]
        for thread in disturbing:
            thread.start()
        for thread in disturbing:
            thread.join()
        plain = [client for client in clients if isinstance(client, PlainClient)]
        for client in plain:
            client.stopping.set()
        for client in plain:
            client.finish(180)
        for kernel_id in kernels:
            assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
        for client in clients:
            client.finish(120)
        for client in clients:
            assert client.connections > 1, "a client was never disturbed"
            if isinstance(client, LogClient):
                kept = log_of(gateway, client.kernel_id)
                assert [seq for seq, _ in kept] == list(range(1, len(kept) + 1))
                assert client.seen == [msg_id for _, msg_id in kept]
        assert sum(client.cells for client in plain) >= 8
        print(
            f"{sum(client.cells for client in plain)} cells, {sum(client.connections for client in clients)} "
            f"connections, {sum(len(client.seen) for client in clients if isinstance(client, LogClient))} entries"
        )
    finally:
        for client in clients:
            client.stopping.set()
        for proxy in proxies:
            proxy.close()


def test_a_repeatedly_killed_gateway_keeps_what_it_delivered(
    gateway: Gateway, tmp_path: Path, chance: random.Random
) -> None:
    kills = 50 if LONG else 10
    kernels = [gateway.start_kernel()["id"] for _ in range(3)]
    readers = [kind(gateway, kernel_id, gateway.port) for kernel_id in kernels for kind in (ResumeClient, EventClient)]
    for reader in readers:
        reader.start()
    runs: dict[str, list[tuple[str, Path, str]]] = {kernel_id: [] for kernel_id in kernels}
    try:
        for kill in range(kills):
            for kernel_id in kernels:
                marks = tmp_path / f"{kernel_id}-{kill}"
                code = (
                    f"open({str(marks)!r}, 'a').write('run')\n"
                    "import time\n"
                    "for i in range(2000):\n"
                    "    print(f'{i:04}', flush=True)\n"
                    "    if i % 100 == 0: time.sleep(0.01)\n"
                )
                msg_id = uuid.uuid4().hex
                runs[kernel_id].append((msg_id, marks, code))
                run(gateway, kernel_id, code, msg_id=msg_id)
                if chance.random() < 0.5:
                    run(gateway, kernel_id, code, msg_id=msg_id)
            time.sleep(chance.uniform(0.0, 0.7))
            gateway.stop(signal.SIGKILL)
            gateway.start()
            for kernel_id in kernels:
                assert gateway.model(kernel_id) is not None, f"kernel {kernel_id} is missing after kill {kill}"
                # A repeated request is not executed again.
                msg_id, marks, code = chance.choice(runs[kernel_id])
                run(gateway, kernel_id, code, msg_id=msg_id)
        for kernel_id in kernels:
            for msg_id, marks, _ in runs[kernel_id]:
                done = wait_ended(gateway, kernel_id, msg_id, 120)
                assert (done["status"], done["complete"]) == ("ok", True), done
                assert marks.read_text() == "run"
                text = "".join(output["text"] for output in done["outputs"])
                assert text == "".join(f"{i:04}\n" for i in range(2000)), f"execution {msg_id}"
            assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
        for reader in readers:
            reader.finish(120)
            kept = log_of(gateway, reader.kernel_id)
            assert [seq for seq, _ in kept] == list(range(1, len(kept) + 1))
            assert reader.seen == [msg_id for _, msg_id in kept]
            assert reader.connections > kills // 2
    finally:
        for reader in readers:
            reader.stopping.set()


def test_a_client_that_never_reads_does_not_grow_the_gateways_memory(gateway: Gateway) -> None:
    # A queue for the client would grow to four times the allowed memory, or twelve times in the long run, which takes
    # ten minutes. The long run's lines are shorter, because the reading client must keep up.
    without, with_it, width = (12_000, 120_000, 2_000) if LONG else (4_000, 4_000, 20_000)
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id, "reads") as reader:

        def usual_memory(lines: int) -> float:
            """The gateway's median memory in MiB during the second half of a flood that `reader` reads."""
            samples = []
            request = reader.execute(
                f"import time\nfor _ in range({lines}):\n    print('x' * {width})\n    time.sleep(0.005)"
            )
            ended: set[str] = set()
            while len(ended) < 2:
                msg = reader.receive(60)
                reader.seen.clear()
                samples.append(anonymous_kib(gateway.pid) / 1024)
                if parent_of(msg) == request and (is_idle(msg) or msg["channel"] == "shell"):
                    ended.add(msg["channel"])
            # The median and not the maximum, because short-lived buffers come and go.
            return statistics.median(samples[len(samples) // 2 :])

        # During the first flood, the gateway's memory grows to its usual size.
        usual_memory(without)
        # Reading the log from the disk takes memory that the allocator keeps. Without this request, that may happen
        # later, when the reading client falls behind.
        gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false")
        before = usual_memory(without)
        with gateway.socket(kernel_id, "never") as never:
            then = usual_memory(with_it)
            assert never.seen == []
        assert then - before < 20, f"{before:.1f} MiB without the client, {then:.1f} MiB with it"
