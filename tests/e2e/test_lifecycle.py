"""Starting, ending and restarting gateway and kernels; several clients; reconnecting."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import websocket
from harness.executions import wait_ended
from harness.gateway import TOKEN, Gateway, binary, clean_env, python_pid
from harness.process import alive, kill
from harness.proxy import Proxy
from harness.waiting import eventually
from harness.wire import KernelSocket, execute_request, is_idle, message, parent_of, text_of, types

Start = Callable[..., Gateway]


def gated(path: Path, then: str) -> str:
    """Code that prints "on", waits for the file and then runs `then`."""
    return (
        "import pathlib, time\nprint('on', flush=True)\n"
        f"while not pathlib.Path({str(path)!r}).exists(): time.sleep(.02)\n{then}"
    )


def is_text(text: str) -> Callable[[dict], bool]:
    return lambda m: m["header"]["msg_type"] == "stream" and text in m["content"]["text"]


# --- starting and ending


def test_sigint_ends_the_gateway_and_its_kernels(start_gateway: Start) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        pid = python_pid(client)
        # The kernel's child processes must end too.
        child = int(
            client.run(
                "import subprocess, sys\n"
                "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
                "print(child.pid)"
            )
        )
    assert gateway.stop(signal.SIGINT) == 0
    eventually(lambda: not alive(pid), "the kernel has ended")
    eventually(lambda: not alive(child), "the kernel's child has ended")
    gateway.wait_no_kernels()


def test_sigterm_detaches_and_the_next_start_attaches(start_gateway: Start) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id, "one") as client:
        pid = python_pid(client)
        # ipykernel ends with the process that this variable names, so the variable must not name the gateway.
        assert client.run("'JPY_PARENT_PID' in __import__('os').environ") == "True"
        client.run("kept = 40")
    assert gateway.stop(signal.SIGTERM) == 0
    assert alive(pid)
    gateway.start()
    assert [k["id"] for k in gateway.rest("GET", "api/kernels").json()] == [kernel_id]
    with gateway.socket(kernel_id, "two") as client:
        assert client.run("kept + 2") == "42"
        assert python_pid(client) == pid
        # The kernel can still be interrupted, restarted and shut down.
        msg_id = client.execute("print('on')\nwhile True: pass")
        client.until(is_text("on"))
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/interrupt").status_code == 204
        assert "error" in types(client.finish(msg_id))
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        assert client.run("6 * 7") == "42"
    assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    gateway.wait_no_kernels()


def test_sigterm_ends_kernels_with_on_terminate_stop(start_gateway: Start) -> None:
    gateway = start_gateway("--on-terminate", "stop")
    gateway.start_kernel()
    assert gateway.kernel_pids()
    assert gateway.stop(signal.SIGTERM) == 0
    gateway.wait_no_kernels()


def test_a_killed_gateway_attaches_to_its_kernels_on_restart(start_gateway: Start, tmp_path: Path) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id, "before") as client:
        pid = python_pid(client)
        client.run("kept = 40")
        client.execute(gated(tmp_path / "gate", "kept += 1"))
        client.until(is_text("on"))
        gateway.stop(signal.SIGKILL)
    assert alive(pid)
    gateway.start()
    (tmp_path / "gate").touch()
    with gateway.socket(kernel_id, "after") as client:
        assert client.run("kept + 1") == "42"


def log_text(gateway: Gateway, kernel_id: str) -> str:
    return gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false").text


@pytest.mark.parametrize("agent", ["off", "auto"])
def test_kernels_that_ended_while_the_gateway_was_down(start_gateway: Start, agent: str) -> None:
    gateway = start_gateway("--agent", agent)
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        pid = python_pid(client)
    gateway.stop(signal.SIGTERM)
    kill(pid)
    # A gateway attaches to a process that has ended but still exists, and restarts the kernel.
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the kernel's process is gone")
    gateway.start()
    if agent == "off":
        model = gateway.model(kernel_id)
        assert model is None or model["execution_state"] == "dead", model
        return
    # The kernel's agent still runs, so the gateway restarts the kernel.
    eventually(lambda: '"restarted"' in log_text(gateway, kernel_id).replace(" ", ""), "the kernel is restarted")
    with gateway.socket(kernel_id) as client:
        assert python_pid(client) != pid
    assert "killed by signal 9" in log_text(gateway, kernel_id)


def test_sigint_during_a_start_leaves_no_kernel(start_gateway: Start) -> None:
    gateway = start_gateway()
    body = b"{}"
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.sendall(
            b"POST /api/kernels HTTP/1.1\r\nHost: x\r\n"
            + f"Authorization: token {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        eventually(gateway.kernel_pids, "a kernel process")
        gateway.stop(signal.SIGINT)
    gateway.wait_no_kernels()


def startup_error(home: Path, *args: str, env: dict[str, str] | None = None) -> str:
    """Runs a gateway that must fail to start, and returns its standard error."""
    ended = subprocess.run(
        [str(binary()), *args],
        env=clean_env(home, **(env or {})),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode not in (0, 101), ended
    assert "panicked" not in ended.stderr
    return ended.stderr.strip()


def test_an_occupied_port_is_reported(built: None, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error = startup_error(tmp_path, "--port", port, "--data-dir", str(tmp_path / "d"))
    assert len(error.splitlines()) == 1, error
    assert port in error


@pytest.mark.parametrize(
    "args",
    [
        ["--port", "seventy"],
        ["--port", "70000"],
        ["--port", "-1"],
        ["--ip", "nowhere at all"],
        ["--cull-idle-timeout", "soon"],
        ["--cull-interval", "-5"],
        ["--on-terminate", "dance"],
        ["--nothing"],
        ["stray"],
    ],
)
def test_invalid_flags_are_reported(built: None, tmp_path: Path, args: list[str]) -> None:
    error = startup_error(tmp_path, "--data-dir", str(tmp_path / "d"), *args)
    first = error.splitlines()[0]
    assert args[-1] in first or args[0] in first, error


def test_an_invalid_environment_variable_is_reported(built: None, tmp_path: Path) -> None:
    error = startup_error(tmp_path, env={"KERNELMUX_PORT": "seventy"})
    assert "seventy" in error


def test_a_data_directory_that_cannot_be_created_is_reported(built: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = startup_error(tmp_path, "--port", "0", "--data-dir", str(tmp_path / "file" / "d"))
    assert len(error.splitlines()) == 1, error
    assert str(tmp_path / "file") in error


def test_a_second_gateway_on_a_data_directory_is_refused(start_gateway: Start, tmp_path: Path) -> None:
    gateway = start_gateway()
    error = startup_error(tmp_path, "--port", "0", "--data-dir", str(gateway.data_dir))
    assert str(gateway.data_dir) in error
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"


def test_the_url_and_the_command_for_jupyterlab_are_printed(start_gateway: Start) -> None:
    gateway = start_gateway()
    assert gateway.process is not None
    # This line follows the one with the gateway's URL.
    gateway.process.wait_for_line(r"JUPYTER_GATEWAY_URL=|--gateway-url")
    printed = gateway.output
    assert f"http://127.0.0.1:{gateway.port}/" in printed
    assert "JUPYTER_GATEWAY_URL=" in printed or "--gateway-url" in printed
    assert TOKEN in printed  # Printed once for the user; the log never contains it.


def test_a_token_is_generated_by_default(built: None, make_home: Callable[[str], Path]) -> None:
    gateway = Gateway(make_home("gw"), token=None)
    argv = [a for a in gateway.argv() if a != "--no-auth"]
    gateway.argv = lambda: argv  # type: ignore[method-assign]
    try:
        gateway.start()
        assert gateway.process is not None
        token = gateway.process.wait_for_line(r"token=([\w-]{20,})")[1]
        assert gateway.rest("GET", "api/kernels", headers={}).status_code in (401, 403)
        headers = {"Authorization": f"token {token}"}
        assert gateway.rest("GET", "api/kernels", headers=headers).status_code == 200
    finally:
        gateway.close()


def test_the_log_contains_no_secrets(start_gateway: Start) -> None:
    gateway = start_gateway("--log", "trace")
    # The token is printed for the user on standard output. The log begins after that.
    assert gateway.process is not None
    gateway.process.wait_for_line("JUPYTER_GATEWAY_AUTH_TOKEN=")
    printed_length = len(gateway.output)
    gateway.rest("GET", f"api/kernels?token={TOKEN}", headers={})
    gateway.rest("GET", "api/kernels", headers={"Authorization": "token a-wrong-secret"})
    gateway.rest("GET", "api/kernels?token=a-wrong-secret", headers={})
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id, "logs") as client:
        client.run("6 * 7")
    keys = [
        json.loads(path.read_text()).get("key")
        for path in gateway.home.rglob("*.json")
        if "shell_port" in path.read_text(errors="replace")
    ]
    gateway.stop()
    logged = gateway.output[printed_length:]
    assert kernel_id in logged
    assert TOKEN not in logged and "a-wrong-secret" not in logged
    for key in filter(None, keys):
        assert key not in logged
    # Files with keys are readable only by the gateway's user.
    for path in gateway.data_dir.rglob("*"):
        if path.is_file() and b'"key"' in path.read_bytes():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_crashed_kernel_is_restarted_and_clients_are_notified(gateway: Gateway) -> None:
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id, "crash") as client:
        pid = python_pid(client)
        kill(pid)
        status = client.until(
            lambda m: m["header"]["msg_type"] == "status"
            and m["content"]["execution_state"] == "restarting",
            what="status restarting",
        )
        assert status["channel"] == "iopub" and status["parent_header"] == {}
        assert client.run("6 * 7") == "42"
        assert python_pid(client) != pid


def test_a_kernel_that_reads_nothing_can_be_restarted(gateway: Gateway) -> None:
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id) as client:
        pid = python_pid(client)
        kill(pid, signal.SIGSTOP)
        # More than fits into the socket, so the gateway is blocked while sending.
        sent = [client.execute("#" + "x" * (2 << 20)) for _ in range(8)]
        executions = f"api/kernels/{kernel_id}/executions"

        def logged() -> int:
            """How many of these executions are logged, not counting the one that returned the pid."""
            return len(gateway.rest("GET", executions).json()["executions"]) - 1

        # The first two fill the kernel's socket, and the next two wait at its agent and in the gateway. The fifth is
        # logged when its turn to send comes; the others wait for it.
        eventually(lambda: logged() >= 5, "the gateway is sending the fifth execution")
        # An execution over HTTP is refused at a timeout, and not sent later.
        code = {"code": "7 * 6", "msg_id": "once"}
        refused = gateway.rest("POST", executions, json=code)
        assert (refused.status_code, "not received" in refused.text) == (504, True), refused.text
        before = logged()
        response = gateway.rest("POST", f"api/kernels/{kernel_id}/restart")
        assert response.status_code == 200, response.text
        accepted = gateway.rest("POST", executions, json=code)
        assert accepted.status_code == 202, accepted.text
        execution = wait_ended(gateway, kernel_id, "once")
        assert execution["status"] == "ok", execution
        assert execution["outputs"][0]["data"]["text/plain"] == "42"
        # Executions logged before the restart ended with the old process, even if it had not read them. The others run
        # in the new one.
        statuses = [wait_ended(gateway, kernel_id, msg_id)["status"] for msg_id in sent]
        assert statuses == ["died"] * before + ["ok"] * (8 - before)
        with gateway.socket(kernel_id) as other:
            assert other.run("6 * 7") == "42"
            assert python_pid(other) != pid


def test_an_input_reply_reaches_a_kernel_with_a_full_shell_queue(gateway: Gateway) -> None:
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id, "asks") as client:
        msg_id = client.execute("input('name? ')", allow_stdin=True)
        client.until(lambda m: m["header"]["msg_type"] == "input_request")
        with gateway.socket(kernel_id, "floods") as other:
            # ZeroMQ queues a few thousand of these requests on both sides. The others wait in the gateway.
            for _ in range(6_000):
                other.request("comm_info_request")
            client.send(message("input_reply", {"value": "Ann"}, session="asks", channel="stdin"))
            assert "'Ann'" in text_of(client.finish(msg_id))


# ipykernel sends no reply to an execution in a subshell that is deleted while the execution runs.
@pytest.mark.parametrize("agent", ["off", "auto"])
def test_an_execution_in_a_deleted_subshell_is_lost(start_gateway: Start, tmp_path: Path, agent: str) -> None:
    gateway = start_gateway("--agent", agent)
    kernel_id = gateway.start_kernel()["id"]
    gate = tmp_path / "gate"
    with gateway.socket(kernel_id, "s") as client:
        tasks = Path(f"/proc/{python_pid(client)}/task")
        created = client.finish(client.request("create_subshell_request", channel="control"), reply=True)
        subshell = {"subshell_id": next(m for m in created if "subshell_id" in m["content"])["content"]["subshell_id"]}
        running = message("execute_request", execute_request(gated(gate, "print('off')")), session="s")
        running["header"].update(subshell)
        client.send(running)
        client.until(is_text("on"))
        # The kernel deletes the subshell after the cell, when no gateway is connected.
        deleting = client.request("delete_subshell_request", subshell, channel="control")
        client.until(lambda m: parent_of(m) == deleting, what="the kernel received the request")
        threads = len(list(tasks.iterdir()))
        gateway.stop(signal.SIGKILL)
    gate.touch()
    eventually(lambda: len(list(tasks.iterdir())) < threads, "the subshell is gone")
    gateway.start()
    execution = wait_ended(gateway, kernel_id, running["header"]["msg_id"], 60)
    assert execution["status"] == "lost", execution
    if agent == "auto":
        # Before the gateway looked for lost executions, it read all that the agent had recorded.
        outputs = gateway.rest("GET", f"api/kernels/{kernel_id}/executions/{running['header']['msg_id']}").json()["outputs"]
        assert outputs[0]["text"] == "on\noff\n"


def test_sigterm_during_a_restart_keeps_the_kernel(start_gateway: Start) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    for _ in range(3):
        begun = gateway.output.count(": restarting ")
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            path = f"/api/kernels/{kernel_id}/restart"
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: token {TOKEN}\r\n\r\n".encode())
            eventually(lambda: gateway.output.count(": restarting ") > begun, "the kernel restarts")
        # The client has disconnected by now.
        assert gateway.stop(signal.SIGTERM, 60) == 0
        gateway.start()
        assert [k["id"] for k in gateway.rest("GET", "api/kernels").json()] == [kernel_id]
        with gateway.socket(kernel_id) as client:
            assert client.run("6 * 7") == "42"


def test_only_idle_and_unconnected_kernels_are_culled(start_gateway: Start) -> None:
    gateway = start_gateway("--cull-idle-timeout", "15", "--cull-interval", "1")
    # Each kernel is used as soon as it runs, because starting the next one may take as long as the idle timeout.
    connected = gateway.start_kernel()["id"]
    with gateway.socket(connected) as client:
        client.run("1")
        busy = gateway.start_kernel()["id"]
        with gateway.socket(busy) as other:
            other.execute("print('on', flush=True)\nimport time\nwhile True: time.sleep(.1)")
            other.until(is_text("on"))
        idle = gateway.start_kernel()["id"]
        eventually(lambda: gateway.model(idle) is None, "the idle kernel is culled", 90)
        client.run("1")
        # After another round of the culler, the connected and the busy kernel still exist.
        second = gateway.start_kernel()["id"]
        eventually(lambda: gateway.model(second) is None, "the second idle kernel is culled", 90)
        assert gateway.model(connected) is not None
        assert gateway.model(busy) is not None


# --- several clients


def test_replies_go_to_the_requesting_session_and_iopub_to_all(gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        kernel_id = stack.enter_context(gateway.kernel())
        asking = stack.enter_context(gateway.socket(kernel_id, "asking"))
        watching = stack.enter_context(
            gateway.socket(kernel_id, "watching", subprotocols=["v1.kernel.websocket.jupyter.org"])
        )
        watching.run("1")
        msg_id = asking.execute("name = input('Who? '); print('Hello', name)", allow_stdin=True)
        question = asking.until(lambda m: m["header"]["msg_type"] == "input_request")
        assert question["channel"] == "stdin"
        asking.send(message("input_reply", {"value": "Ada"}, "stdin", "asking", parent=question["header"]))
        answers = asking.finish(msg_id)
        assert text_of(answers) == "Hello Ada\n"
        seen = watching.finish(msg_id, reply=False)
        assert text_of(seen) == "Hello Ada\n"
        assert "execute_reply" not in types(seen) and "input_request" not in types(seen)
        # The same holds for the control channel.
        info = asking.request("kernel_info_request", channel="control")
        reply = asking.until(lambda m: parent_of(m) == info and m["channel"] == "control")
        assert reply["header"]["msg_type"] == "kernel_info_reply"
        assert watching.run("6 * 7") == "42"
        assert not [m for m in watching.seen if parent_of(m) == info and m["channel"] == "control"]


def test_two_connections_without_a_session_id_coexist(gateway: Gateway) -> None:
    # nbclient's gateway client sends no session_id.
    with gateway.kernel() as kernel_id:
        with gateway.socket(kernel_id) as one, gateway.socket(kernel_id) as two:
            assert one.run("6 * 7") == "42"
            assert two.run("6 * 7") == "42"


def test_binary_buffers_pass_in_both_directions(gateway: Gateway) -> None:
    listen = (
        "def opened(comm, msg):\n"
        "    comm.send({'sizes': [len(b) for b in msg['buffers']]},"
        " buffers=[bytes(b)[::-1] for b in msg['buffers']])\n"
        "get_ipython().kernel.comm_manager.register_target('reverse', opened)"
    )
    buffers = [bytes(range(256)), b"", b"\xff" * 70_000]
    for subprotocols, as_text in (
        (["v1.kernel.websocket.jupyter.org"], False),
        (None, False),
        (None, True),
    ):
        with gateway.kernel() as kernel_id:
            options = {"headers": ["User-Agent: Mozilla/5.0"], "subprotocols": subprotocols}
            with gateway.socket(kernel_id, "binary", **options) as client:
                client.run(listen)
                opened = message(
                    "comm_open",
                    {"comm_id": uuid.uuid4().hex, "target_name": "reverse", "data": {}},
                    session="binary",
                    buffers=buffers,
                )
                client.send(opened, as_text)
                answer = client.until(lambda m: m["header"]["msg_type"] == "comm_msg")
                assert answer["content"]["data"]["sizes"] == [256, 0, 70_000]
                assert answer["buffers"] == [b[::-1] for b in buffers]


def test_jupyter_servers_client_receives_no_binary_frames(gateway: Gateway) -> None:
    code = (
        "from comm import create_comm\n"
        "create_comm('nothing', data={'x': 1}, buffers=[b'\\xff' * 10])\nprint('after')"
    )
    with gateway.kernel() as kernel_id:
        options = {"headers": ["User-Agent: Tornado/6.6.1"]}
        with gateway.socket(kernel_id, "tornado", **options) as client:
            assert "after" in client.run(code)
            assert set(client.kinds) == {websocket.ABNF.OPCODE_TEXT}
            opened = [m for m in client.seen if m["header"]["msg_type"] == "comm_open"]
            assert len(opened) == 1 and opened[0]["buffers"] == []


# --- reconnecting


def lines(messages: list[dict]) -> list[str]:
    text = "".join(
        m["content"]["text"] for m in messages if m["header"]["msg_type"] == "stream"
    )
    return [line for line in text.splitlines() if line.startswith("line")]


COUNT = 3000
LINES = [f"line {i}" for i in range(COUNT)]
PRINT = f"for i in range({COUNT}): print('line', i, flush=True)"


def until_idle(client: KernelSocket, msg_id: str) -> list[dict]:
    return client.finish(msg_id, timeout=60)


def test_a_reconnecting_session_receives_missed_messages(gateway: Gateway, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    session = uuid.uuid4().hex
    with gateway.kernel() as kernel_id:
        client = gateway.socket(kernel_id, session)
        msg_id = client.execute(gated(gate, PRINT))
        client.until(is_text("on"))
        client.close()
        gate.touch()
        gateway.wait_state(kernel_id, "idle")
        with gateway.socket(kernel_id, session) as again:
            answers = until_idle(again, msg_id)
            assert lines(answers) == LINES
            assert types(answers).count("execute_reply") == 1
            assert again.run("6 * 7") == "42"


def test_nothing_is_lost_over_a_repeatedly_cut_connection(
    gateway: Gateway, make_proxy: Callable[[int], Proxy], tmp_path: Path
) -> None:
    proxy = make_proxy(gateway.port)
    session = uuid.uuid4().hex
    url = f"http://127.0.0.1:{proxy.port}/"
    with gateway.kernel() as kernel_id:
        seen: list[dict] = []
        client = KernelSocket(url, kernel_id, session, TOKEN)
        msg_id = client.execute(PRINT + "\nprint('end')")
        for cut in range(4):
            with contextlib.suppress(ConnectionError, OSError, websocket.WebSocketException):
                if cut < 3:
                    client.until(is_text("line"))
                    proxy.cut()
                    proxy.heal()
                    while True:
                        client.receive(5)
                else:
                    client.until(
                        lambda m: parent_of(m) == msg_id and is_idle(m), 60, "the execution's idle"
                    )
            seen += client.seen
            client.close()
            if cut < 3:
                client = KernelSocket(url, kernel_id, session, TOKEN)
        # Messages may be repeated after a reconnect, so they are counted by id.
        unique = {m["header"]["msg_id"]: m for m in seen if parent_of(m) == msg_id}
        assert lines(list(unique.values())) == LINES


def test_a_slow_reader_loses_nothing_and_delays_no_other_client(gateway: Gateway) -> None:
    # More than the buffers between gateway and client hold.
    count = 8_000
    code = f"for i in range({count}): print('line', i, 'x' * 2_000, flush=True)"
    with gateway.kernel() as kernel_id:
        with gateway.socket(kernel_id, "slow") as slow, gateway.socket(kernel_id, "fast") as fast:
            slow.run("1")
            msg_id = fast.execute(code)
            # The slow client reads nothing until the fast one has everything.
            assert len(lines(fast.finish(msg_id, timeout=120))) == count
            seen = slow.finish(msg_id, timeout=60, reply=False)
            assert [x.split()[1] for x in lines(seen)] == [str(i) for i in range(count)]


def test_a_sessions_older_connection_is_closed(gateway: Gateway) -> None:
    session = uuid.uuid4().hex
    with gateway.kernel() as kernel_id:
        first = gateway.socket(kernel_id, session)
        first.run("1")
        with gateway.socket(kernel_id, session) as second:
            assert second.run("6 * 7") == "42"
            with pytest.raises((ConnectionError, websocket.WebSocketException)):
                first.until(lambda m: False, 60)
        first.close()
