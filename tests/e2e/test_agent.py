"""Agents: no message is lost while the gateway is dead, suspended or disconnected, and no process or file is left over.

The tests print their seed; setting KERNELMUX_SEED repeats a run. KERNELMUX_LONG makes them longer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.agents import (
    ACCEPTED,
    CREDIT,
    ENTRIES,
    MESSAGE,
    OFFER,
    PING,
    PONG,
    READ,
    REFUSED,
    TAKE,
    WELCOME,
    AgentConnection,
    UnixProxy,
    agent_folder,
    agent_pid,
    assert_whole,
    launch_of,
    losses,
    numbered,
    printing,
    text_of,
)
from harness.executions import get_execution, run, wait_ended
from harness.gateway import Gateway, free_port, python_pid
from harness.process import alive, anonymous_kib, kill, pids_mentioning
from harness.reconnecting import EventClient, PlainClient, ResumeClient, Screen, entries_of
from harness.waiting import eventually
from harness.wire import execute_request, message, v1

LONG = bool(os.environ.get("KERNELMUX_LONG"))
pytestmark = pytest.mark.timeout(1800 if LONG else 300)

Start = Callable[..., Gateway]


@pytest.fixture
def start_gateway(start_gateway: Start) -> Start:
    """Starts gateways with agents."""

    def start(*args: str, **options: Any) -> Gateway:
        return start_gateway(*([] if "--agent" in args else ["--agent", "auto"]), *args, **options)

    return start


@pytest.fixture
def chance() -> random.Random:
    """A random number generator with a printed seed."""
    seed = int(os.environ.get("KERNELMUX_SEED", time.time_ns() % 1_000_000))
    print(f"KERNELMUX_SEED={seed}")
    return random.Random(seed)


def test_every_client_gets_each_line_once_although_the_gateway_is_killed_and_suspended(
    start_gateway: Start, chance: random.Random
) -> None:
    kills, lines, suspended, count, rate = (50, 60_000, 60, 8, 1_000) if LONG else (8, 3_000, 3, 3, 300)
    gateway = start_gateway(port=free_port())
    kernels = [gateway.start_kernel()["id"] for _ in range(count)]

    def cell(number: int) -> tuple[str, Callable[[str, Screen], None]]:
        def check(msg_id: str, screen: Screen) -> None:
            assert screen.shown() == numbered(lines)

        return printing(lines, rate), check

    plain = [
        PlainClient(gateway, kernel_id, gateway.port, uuid.uuid4().hex, number % 2 == 0, cell)
        for number, kernel_id in enumerate(kernels)
    ]
    readers = [kind(gateway, kernel_id, gateway.port) for kernel_id in kernels for kind in (ResumeClient, EventClient)]
    clients: list[Any] = [*plain, *readers]
    try:
        for client in clients:
            client.start()
        for client in plain:
            client.stopping.set()  # After one cell.
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 0.6))
            gateway.stop(signal.SIGKILL)
            time.sleep(chance.uniform(0.0, 0.5))
            gateway.start()
        os.kill(gateway.pid, signal.SIGSTOP)
        time.sleep(suspended)
        os.kill(gateway.pid, signal.SIGCONT)
        for client in plain:
            client.finish(600)
            assert client.cells == 1
        for kernel_id in kernels:
            assert losses(gateway, kernel_id) == []
            assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
        for reader in readers:
            reader.finish(120)
            kept = [entry["header"]["msg_id"] for entry in entries_of(gateway, reader.kernel_id)]
            assert reader.seen == kept
            assert reader.connections > kills // 2
    finally:
        for client in clients:
            client.stopping.set()


def test_requests_of_a_killed_gateway_run_once(start_gateway: Start, tmp_path: Path, chance: random.Random) -> None:
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    asked: list[tuple[str, Path]] = []
    for number in range(40 if LONG else 12):
        for part in range(3):
            mark = tmp_path / f"{number}-{part}"
            msg_id = uuid.uuid4().hex
            run(gateway, kernel_id, f"print(open({str(mark)!r}, 'a').write('x'))", msg_id=msg_id)
            asked.append((msg_id, mark))
        time.sleep(chance.uniform(0.0, 0.02))
        gateway.stop(signal.SIGKILL)
        gateway.start()
    for msg_id, mark in asked:
        assert_whole(wait_ended(gateway, kernel_id, msg_id, 60), "1\n")
        assert mark.read_text() == "x"
    assert losses(gateway, kernel_id) == []


def test_a_kernel_that_dies_while_the_gateway_is_away_leaves_its_last_lines_and_its_cause(
    start_gateway: Start,
) -> None:
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        pid = python_pid(client)
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, printing(2_000, 2_000) + "time.sleep(1)\nimport os; os._exit(7)", msg_id=msg_id)
    eventually(lambda: "5\n" in text_of(get_execution(gateway, kernel_id, msg_id)), "the cell prints")
    gateway.stop(signal.SIGKILL)
    eventually(lambda: not alive(pid), "the kernel has ended")
    gateway.start()
    execution = wait_ended(gateway, kernel_id, msg_id)
    assert execution["status"] == "died"
    assert "exited with code 7" in execution["reason"]
    assert text_of(execution).startswith(numbered(2_000))
    # The kernel was restarted automatically.
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"
    assert losses(gateway, kernel_id) == []


def test_a_killed_agent_takes_its_kernel_with_it_and_is_replaced(start_gateway: Start) -> None:
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        pid = python_pid(client)
        client.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")
        child = int(client.run("child.pid"))
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, printing(100_000), msg_id=msg_id)
    seen = eventually(
        lambda: (text := text_of(get_execution(gateway, kernel_id, msg_id))).count("\n") > 50 and text,
        "the cell prints",
    )
    agent = agent_pid(gateway, kernel_id)
    killed = time.monotonic()
    kill(agent)
    eventually(lambda: not alive(pid), "the kernel has ended")
    execution = wait_ended(gateway, kernel_id, msg_id)
    print(f"reported after {time.monotonic() - killed:.2f} s")
    assert execution["status"] == "died"
    assert "its agent ended (killed by signal 9" in execution["reason"]
    assert text_of(execution).startswith(str(seen))
    eventually(lambda: not alive(child), "the kernel's child has ended")
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"
    assert agent_pid(gateway, kernel_id) != agent
    assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    gateway.wait_no_kernels()


def test_a_link_that_is_cut_at_any_byte_loses_and_repeats_nothing(start_gateway: Start, chance: random.Random) -> None:
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    gateway.stop(signal.SIGKILL)
    proxy = UnixProxy(launch_of(gateway, kernel_id)["listen"]["unix"])
    try:
        gateway.start()
        lines = 30_000 if LONG else 6_000
        msg_id = uuid.uuid4().hex
        run(gateway, kernel_id, printing(lines, 2_000), msg_id=msg_id)
        others = []
        while not get_execution(gateway, kernel_id, msg_id)["ended"]:
            time.sleep(chance.uniform(0.0, 0.2))
            if chance.random() < 0.2:
                proxy.flowing.clear()
                time.sleep(chance.uniform(0.0, 1.0))
                proxy.flowing.set()
            proxy.cut()
            other = uuid.uuid4().hex
            run(gateway, kernel_id, "print('other')", msg_id=other)
            others.append(other)
        assert_whole(get_execution(gateway, kernel_id, msg_id), numbered(lines))
        for other in others:
            assert_whole(wait_ended(gateway, kernel_id, other), "other\n")
        assert proxy.connections > 5
        assert losses(gateway, kernel_id) == []
        # Interrupts and restarts work too.
        endless = uuid.uuid4().hex
        run(gateway, kernel_id, "while True: pass", msg_id=endless)
        eventually(lambda: get_execution(gateway, kernel_id, endless)["started"], "the cell runs")
        proxy.cut()
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/interrupt").status_code == 204
        assert wait_ended(gateway, kernel_id, endless)["status"] == "error"
        proxy.cut()
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        with gateway.socket(kernel_id) as client:
            assert client.run("6 * 7") == "42"
        assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    finally:
        proxy.close()


def test_an_agent_refuses_connections_without_its_token(start_gateway: Start) -> None:
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    launch = launch_of(gateway, kernel_id)
    path, token = launch["listen"]["unix"], launch["token"]
    assert os.stat(path).st_mode & 0o777 in (0o755, 0o700, 0o600)
    assert os.stat(Path(path).parent).st_mode & 0o077 == 0

    def answer(**hello: Any) -> tuple[int, dict[str, Any]]:
        connection = AgentConnection(path)
        try:
            return connection.hello(**hello)
        finally:
            connection.close()

    assert answer(token="wrong") == (REFUSED, {"reason": "token"})
    assert answer(token="") == (REFUSED, {"reason": "token"})
    assert answer(token=token, version=99) == (REFUSED, {"reason": "version", "speaks": 2})
    # The gateway is connected, so another client is refused even with the token.
    assert answer(token=token) == (REFUSED, {"reason": "busy"})
    for garbage in (b"\0" * 64, b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", struct.pack("<IB", 1 << 30, 1), b"\1\0\0\0\6"):
        connection = AgentConnection(path)
        connection.socket.sendall(garbage)
        assert connection.is_closed(), garbage
        connection.close()
    # Silent connections do not prevent the restarted gateway from connecting.
    silent = [AgentConnection(path) for _ in range(12)]
    gateway.stop(signal.SIGKILL)
    gateway.start()
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"
    for connection in silent:
        connection.close()
    # Neither the command line nor the environment of the agent or the kernel has the token.
    agent = agent_pid(gateway, kernel_id)
    with gateway.socket(kernel_id) as client:
        pid = python_pid(client)
        assert client.run(f"import os; {token!r} in str(os.environ)") == "False"
    for process in (agent, pid):
        for file in ("cmdline", "environ"):
            assert token.encode() not in Path(f"/proc/{process}/{file}").read_bytes()
    for file in ("launch.json", "record.json", "agent.log"):
        assert (agent_folder(gateway, kernel_id) / file).stat().st_mode & 0o077 == 0


def test_another_client_reads_an_agent_while_no_gateway_runs(start_gateway: Start) -> None:
    """Speaks the link byte by byte, as docs/src/agent-link.md specifies it."""
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, "print('before')", msg_id=msg_id)
    wait_ended(gateway, kernel_id, msg_id)
    gateway.stop(signal.SIGKILL)
    launch = launch_of(gateway, kernel_id)
    connection = AgentConnection(launch["listen"]["unix"])
    kind, welcome = connection.hello(launch["token"])
    assert kind == WELCOME
    assert welcome["version"] == 2 and welcome["kernel_id"] == kernel_id
    assert welcome["phase"]["phase"] == "running"
    assert welcome["accepted"]["numbers"]["shell"] > 0
    connection.send(PING)
    assert connection.receive() == (PONG, b"")
    connection.send(READ, struct.pack("<Q", 0))
    connection.send(CREDIT, struct.pack("<Q", 1 << 20))
    kind, payload = connection.receive()
    assert kind == ENTRIES
    first, last = struct.unpack_from("<QQ", payload)
    assert first == 1 and last >= 1 and b'"opened"' in payload
    # Each message names the process that must receive it. The first one names no existing process.
    process, log = welcome["phase"]["process"], uuid.uuid4().bytes
    for number, receiver in ((1, process + 1), (2, process)):
        request = message("execute_request", execute_request(f"print({receiver}, 'x' * {2 << 20})"))
        head = struct.pack("<BQ16sQ", 0, receiver, log, number)
        connection.send(MESSAGE, head + v1(request))
    accepted, entries = [], b""
    while True:
        kind, payload = connection.receive()
        if kind == ACCEPTED:
            accepted.append(struct.unpack("<BQ", payload))
        elif kind == OFFER:
            break
        else:
            assert kind == ENTRIES
            entries += payload
    # The agent offers a large block, and sends it once the client requests it. Other answers do not wait for it.
    begins, size = struct.unpack("<QQ", payload)
    connection.send(TAKE, struct.pack("<Q", begins + 1))
    connection.send(PING)
    while (received := connection.receive())[0] == ACCEPTED:
        accepted.append(struct.unpack("<BQ", received[1]))
    assert received == (PONG, b"")
    connection.send(TAKE, struct.pack("<Q", begins))
    kind, payload = connection.receive()
    assert (kind, len(payload), struct.unpack_from("<Q", payload)) == (ENTRIES, 16 + size, (begins,))
    assert f"{process} xxx".encode() in payload and accepted[-1] == (0, 2)
    assert f"{process + 1} xxx".encode() not in entries + payload
    # Another client is refused until the first one has disconnected.
    again = AgentConnection(launch["listen"]["unix"])
    assert again.hello(launch["token"])[0] == REFUSED
    connection.close()
    eventually(lambda: AgentConnection(launch["listen"]["unix"]).hello(launch["token"])[0] == WELCOME, "the agent is free")
    again.close()


def test_ipykernel_waits_while_its_agent_has_no_room(start_gateway: Start) -> None:
    gateway = start_gateway("--agent-spool-mib", "1", port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        client.run("x = 'y' * 1000")
    lines = 12_000
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, f"for i in range({lines}): print(i, x, flush=True)", msg_id=msg_id)
    gateway.stop(signal.SIGKILL)
    agent = agent_pid(gateway, kernel_id)
    before = anonymous_kib(agent)
    spool = agent_folder(gateway, kernel_id) / "spool"

    def size() -> int:
        return sum(file.stat().st_size for file in spool.rglob("*") if file.is_file())

    sizes = [0]

    def has_stopped_growing() -> bool:
        sizes.append(size())
        return len(sizes) > 4 and sizes[-1] == sizes[-2] == sizes[-3] > 1 << 20

    eventually(has_stopped_growing, "the agent has no more room", 60)
    assert sizes[-1] < 4 << 20
    assert anonymous_kib(agent) - before < 24 << 10
    gateway.start()
    execution = wait_ended(gateway, kernel_id, msg_id, 120)
    assert_whole(execution, "".join(f"{i} {'y' * 1000}\n" for i in range(lines)))
    assert losses(gateway, kernel_id) == []


def test_a_kernel_that_cannot_wait_gets_a_gap_when_its_agent_has_no_room(
    start_gateway: Start, make_home: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = make_home("specs") / "kernels" / "dropping"
    folder.mkdir(parents=True)
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "dropping",
        "language": "python",
        "metadata": {"kernelmux": {"wait_for_subscriber": False}},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    env = {"JUPYTER_PATH": str(folder.parent.parent)}
    gateway = start_gateway("--agent-spool-mib", "1", port=free_port(), env=env)
    kernel_id = gateway.start_kernel("dropping")["id"]
    with gateway.socket(kernel_id) as client:
        client.run("x = 'y' * 100_000")
    gate, end = tmp_path / "gate", tmp_path / "end"
    lines = 2_400
    code = (
        f"import pathlib, time\nprint('begin', flush=True)\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(.02)\n"
        # Slowly enough for the kernel's socket, which drops messages beyond its own bound.
        f"for i in range({lines}): print(i, x, flush=True); time.sleep(.005)\npathlib.Path({str(end)!r}).touch()\nprint('end')"
    )
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, code, msg_id=msg_id)
    eventually(lambda: "begin" in text_of(get_execution(gateway, kernel_id, msg_id)), "the cell runs")
    gateway.stop(signal.SIGKILL)
    agent = agent_pid(gateway, kernel_id)
    before = anonymous_kib(agent)
    gate.touch()
    eventually(end.exists, "the kernel does not wait", 60)
    assert anonymous_kib(agent) - before < 24 << 10
    spool = agent_folder(gateway, kernel_id) / "spool"
    # The bound may be exceeded by a message of the maximum size, 128 MiB, and by messages that wait for the disk.
    assert sum(file.stat().st_size for file in spool.rglob("*") if file.is_file()) < 180 << 20
    gateway.start()
    execution = wait_ended(gateway, kernel_id, msg_id, 60)
    assert (execution["status"], execution["complete"]) == ("ok", False)
    assert set(losses(gateway, kernel_id)) == {"disconnected"}
    # The log has the first output, a notice in place of the missing lines, and the newest lines in order.
    streams = [e["content"]["text"] for e in entries_of(gateway, kernel_id) if e["header"]["msg_type"] == "stream"]
    notices = [index for index, text in enumerate(streams) if "may be missing" in text]
    assert streams[notices[0] - 1] == "begin\n"
    printed = "".join(streams[notices[-1] + 1 :]).splitlines()
    numbers = [int(line.split()[0]) for line in printed[:-1]]
    assert numbers == list(range(numbers[0], lines)) and numbers[0] > 0 and printed[-1] == "end"


def test_kernels_that_the_gateway_ends_leave_no_agents(start_gateway: Start) -> None:
    gateway = start_gateway(port=free_port())
    idle, printing_kernel = (gateway.start_kernel()["id"] for _ in range(2))
    run(gateway, printing_kernel, "while True: print('x' * 100)")
    eventually(lambda: entries_of(gateway, printing_kernel), "the cell prints")
    assert gateway.stop(signal.SIGINT) == 0
    # The agents ended by themselves, because their last entries were acknowledged.
    assert "killing it" not in gateway.output and "did not finish" not in gateway.output
    assert not pids_mentioning(f"agents/{idle}") and not pids_mentioning(f"agents/{printing_kernel}")
    assert list((gateway.data_dir / "kernels" / "agents").iterdir()) == []


def test_orphaned_agents_end_and_leave_no_files(start_gateway: Start) -> None:
    gateway = start_gateway("--agent-orphan-timeout", "2", port=free_port())
    idle = gateway.start_kernel()["id"]
    with gateway.socket(idle) as client:
        client.run("1")
    busy = gateway.start_kernel()["id"]
    mark = gateway.home / "mark"
    run(gateway, busy, f"import time\nopen({str(mark)!r}, 'w')\ntime.sleep(6)")
    eventually(mark.exists, "the cell runs")
    busy_agent = agent_pid(gateway, busy)
    gateway.stop(signal.SIGKILL)
    eventually(lambda: not pids_mentioning(f"agents/{idle}"), "the idle kernel's agent has ended")
    # A busy kernel is not an orphan.
    assert alive(busy_agent)
    gateway.wait_no_kernels(60)
    gateway.start()
    assert gateway.rest("GET", "api/kernels").json() == []
    assert list((gateway.data_dir / "kernels" / "agents").iterdir()) == []
    assert list((gateway.data_dir / "kernels" / "s").iterdir()) == []


def test_agents_can_be_turned_off_and_on_and_kernels_survive_the_change(start_gateway: Start) -> None:
    gateway = start_gateway("--agent", "off", port=free_port())
    direct = gateway.start_kernel()["id"]
    with gateway.socket(direct) as client:
        client.run("kept = 40")
    gateway.stop(signal.SIGTERM)
    gateway.args = ["--agent", "auto"]
    gateway.start()
    with gateway.socket(direct) as client:
        assert client.run("kept + 2") == "42"
    under_agent = gateway.start_kernel()["id"]
    assert agent_pid(gateway, under_agent)
    gateway.stop(signal.SIGTERM)
    gateway.args = ["--agent", "off"]
    gateway.start()
    with gateway.socket(under_agent) as client:
        assert client.run("6 * 7") == "42"
    for kernel_id in (direct, under_agent):
        assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    gateway.wait_no_kernels()


def test_a_kernels_arguments_are_those_of_its_kernelspec(start_gateway: Start) -> None:
    gateway = start_gateway(port=free_port())
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        arguments = json.loads(client.run("import json, sys; print(json.dumps(sys.argv[1:]))"))
        assert len(arguments) == 2 and arguments[0] == "-f"
        assert client.run("__import__('os').getppid()") == str(agent_pid(gateway, kernel_id))
