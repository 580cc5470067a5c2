"""Agents in pods: no message is lost while the gateway is killed, and kernels are controlled over the link."""

from __future__ import annotations

import ast
import base64
import json
import os
import random
import signal
import socket
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import skip_or_fail
from harness.agents import REFUSED, AgentConnection, assert_whole, losses, numbered, printing, text_of
from harness.executions import get_execution, run, wait_ended
from harness.cluster import why_no_dev_cluster
from harness.gateway import Gateway, free_port
from harness.pods import KernelNamespace, kernel_namespace
from harness.reconnecting import EventClient, ResumeClient, entries_of
from harness.waiting import eventually

LONG = bool(os.environ.get("KERNELMUX_LONG"))
pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1800 if LONG else 300)]

Start = Callable[..., Gateway]


@pytest.fixture(scope="module")
def namespace(agent_image: str, make_home: Callable[[str], Path]) -> Iterator[KernelNamespace]:
    with kernel_namespace(make_home("cluster")) as namespace:
        namespace.install("python3")
        namespace.install("small", memory="256Mi")
        namespace.install("warm", pod_settings={"warm_pool": {"size": 1, "without": ["KERNEL_USERNAME"]}})
        yield namespace


@pytest.fixture
def gateway(start_gateway: Start, namespace: KernelNamespace, agent_image: str) -> Gateway:
    flags = ["--kubernetes-namespace", namespace.name, "--agent-image", agent_image]
    return start_gateway(*flags, port=free_port(), env=namespace.environment)


def pod_of(namespace: KernelNamespace, kernel_id: str) -> dict[str, Any]:
    """The kernel's pod, whichever name it has. Waits until the cluster, too, reports that it runs."""

    def running() -> dict[str, Any] | None:
        selector = f"--selector=kernelmux.dev/kernel-id={kernel_id}"
        (pod,) = json.loads(namespace.kubectl("get", "pods", selector, "--output=json"))["items"]
        return dict(pod) if pod["status"]["phase"] == "Running" else None

    pod = eventually(running, "the pod runs")
    assert pod
    return pod


def uid_of(namespace: KernelNamespace, kernel_id: str) -> str:
    return str(pod_of(namespace, kernel_id)["metadata"]["uid"])


def test_no_line_is_lost_or_repeated_while_the_gateway_is_killed(gateway: Gateway, namespace: KernelNamespace) -> None:
    seed = int(os.environ.get("KERNELMUX_SEED", time.time_ns() % 1_000_000))
    print(f"KERNELMUX_SEED={seed}")
    chance = random.Random(seed)
    kills, lines = (30, 60_000) if LONG else (5, 3_000)
    kernels = [gateway.start_kernel()["id"] for _ in range(2)]
    started = [(kernel_id, uuid.uuid4().hex) for kernel_id in kernels]
    for kernel_id, msg_id in started:
        run(gateway, kernel_id, printing(lines, 300), msg_id=msg_id)
    readers = [kind(gateway, kernel_id, gateway.port) for kernel_id in kernels for kind in (ResumeClient, EventClient)]
    try:
        for reader in readers:
            reader.start()
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 0.8))
            gateway.stop(signal.SIGKILL)
            time.sleep(chance.uniform(0.0, 0.8))
            gateway.start()
            # All connections to pods are lost too.
            namespace.api.cut()
            namespace.api.heal()
        for kernel_id, msg_id in started:
            assert_whole(wait_ended(gateway, kernel_id, msg_id, 120), numbered(lines))
            assert losses(gateway, kernel_id) == []
            assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
        for reader in readers:
            reader.finish(120)
            kept = [entry["header"]["msg_id"] for entry in entries_of(gateway, reader.kernel_id)]
            assert reader.seen == kept
    finally:
        for reader in readers:
            reader.stopping.set()
    selector = "--selector=!kernelmux.dev/warm-pool"
    eventually(lambda: "kernel-" not in namespace.kubectl("get", "pods", selector), "no pods are left", 60)


def test_requests_of_a_killed_gateway_run_once(gateway: Gateway) -> None:
    kernel_id = gateway.start_kernel()["id"]
    asked = []
    for number in range(6):
        for part in range(3):
            msg_id = uuid.uuid4().hex
            file = f"/tmp/{number}-{part}"
            run(gateway, kernel_id, f"print(open({file!r}, 'a').write('x'))", msg_id=msg_id)
            asked.append((msg_id, file))
        gateway.stop(signal.SIGKILL)
        gateway.start()
    for msg_id, _ in asked:
        assert_whole(wait_ended(gateway, kernel_id, msg_id, 60), "1\n")
    with gateway.socket(kernel_id) as client:
        files = [file for _, file in asked]
        assert client.run(f"{{open(file).read() for file in {files}}}") == "{'x'}"
    assert losses(gateway, kernel_id) == []


def test_a_kernel_is_interrupted_and_restarted_in_its_pod(gateway: Gateway, namespace: KernelNamespace) -> None:
    # The shipped Role has no right to run commands in pods.
    kernel_id = gateway.start_kernel()["id"]
    uid = uid_of(namespace, kernel_id)
    with gateway.socket(kernel_id) as client:
        client.run("kept = open('/tmp/kept', 'w').write('x')")
    endless = uuid.uuid4().hex
    run(gateway, kernel_id, "while True: pass", msg_id=endless)
    eventually(lambda: get_execution(gateway, kernel_id, endless)["started"], "it runs")
    assert gateway.rest("POST", f"api/kernels/{kernel_id}/interrupt").status_code == 204
    assert wait_ended(gateway, kernel_id, endless)["status"] == "error"
    assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
    with gateway.socket(kernel_id) as client:
        assert client.run("'kept' in globals(), open('/tmp/kept').read()") == "(False, 'x')"
    # A crash keeps the pod too.
    crash = uuid.uuid4().hex
    run(gateway, kernel_id, "print('last words', flush=True)\nimport os, time; time.sleep(1); os._exit(7)", msg_id=crash)
    execution = wait_ended(gateway, kernel_id, crash)
    assert execution["status"] == "died" and "exited with code 7" in execution["reason"], execution
    assert text_of(execution) == "last words\n"
    with gateway.socket(kernel_id) as client:
        assert client.run("open('/tmp/kept').read()") == "'x'"
    assert uid_of(namespace, kernel_id) == uid
    assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    gateway.wait_no_kernels()


def test_a_kernel_that_dies_while_the_gateway_is_away_leaves_its_last_lines_and_its_cause(
    gateway: Gateway, namespace: KernelNamespace
) -> None:
    kernel_id = gateway.start_kernel()["id"]
    uid = uid_of(namespace, kernel_id)
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, printing(1_000, 1_000) + "time.sleep(1)\nimport os; os._exit(7)", msg_id=msg_id)
    eventually(lambda: "5\n" in text_of(get_execution(gateway, kernel_id, msg_id)), "it prints")
    gateway.stop(signal.SIGKILL)
    count = "grep -sl '/kernelmux/state/[k]ernels/' /proc/[0-9]*/cmdline | wc -l"
    eventually(lambda: namespace.run(kernel_id, count).strip() == "0", "the kernel has ended")
    gateway.start()
    execution = wait_ended(gateway, kernel_id, msg_id)
    assert execution["status"] == "died"
    assert "exited with code 7" in execution["reason"]
    assert text_of(execution) == numbered(1_000)
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"
    assert losses(gateway, kernel_id) == []
    assert uid_of(namespace, kernel_id) == uid


def test_a_kernel_that_runs_out_of_memory_is_restarted_with_the_cause(gateway: Gateway) -> None:
    kernel_id = gateway.start_kernel("small")["id"]
    msg_id = uuid.uuid4().hex
    run(gateway, kernel_id, "x = b'x' * (1 << 30)", msg_id=msg_id)
    execution = wait_ended(gateway, kernel_id, msg_id, 60)
    assert execution["status"] == "died"
    assert "ran out of memory" in execution["reason"], execution
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"


def test_a_warm_pod_is_claimed_with_its_agent(gateway: Gateway, namespace: KernelNamespace) -> None:
    def claimed() -> str | None:
        kernel_id = str(gateway.start_kernel("warm")["id"])
        # A claimed pod keeps its name.
        if pod_of(namespace, kernel_id)["metadata"]["name"] != f"kernel-{kernel_id}":
            return kernel_id
        assert gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
        return None

    kernel_id = eventually(claimed, "a warm pod is claimed", 60)
    assert kernel_id
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"
        assert client.run("import os; 'KERNELMUX_KERNEL_ID' in os.environ") == "False"
    gateway.stop(signal.SIGKILL)
    gateway.start()
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"
    assert losses(gateway, kernel_id) == []


def test_an_agent_refuses_connections_without_its_token(gateway: Gateway, namespace: KernelNamespace) -> None:
    if reason := why_no_dev_cluster():
        skip_or_fail(reason)
    kernel_id = gateway.start_kernel()["id"]
    pod = pod_of(namespace, kernel_id)
    address = (str(pod["status"]["podIP"]), 9300)
    launch = json.loads(namespace.run(kernel_id, "cat /run/kernelmux/launch.json"))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def answer(**hello: Any) -> tuple[int, dict[str, Any]]:
        with context.wrap_socket(socket.create_connection(address, timeout=20)) as stream:
            assert stream.version() == "TLSv1.3"
            certificate = stream.getpeercert(binary_form=True) or b""
            assert base64.b64encode(certificate).decode() == launch["listen"]["tls"]["identity"]["certificate"]
            return AgentConnection(None, stream).hello(**hello)

    assert answer(token="wrong") == (REFUSED, {"reason": "token"})
    assert answer(token=launch["token"]) == (REFUSED, {"reason": "busy"})
    # Neither TLS 1.2 nor plain text is answered.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        answer(token=launch["token"])
    plain = AgentConnection(None, socket.create_connection(address, timeout=20))
    plain.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    while not plain.is_closed():
        pass
    plain.close()
    with gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"


def test_a_kernel_sees_only_its_own_secrets(gateway: Gateway, namespace: KernelNamespace) -> None:
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        # The kernel can read the credentials of its own agent. They are not in its environment.
        launch = json.loads(ast.literal_eval(client.run("open('/run/kernelmux/launch.json').read()")))
        secrets = [launch["token"], launch["listen"]["tls"]["identity"]["key"]]
        assert client.run(f"import os; any(secret in str(os.environ) for secret in {secrets})") == "False"
        assert client.run("import sys; '/kernelmux/state/kernels/' in sys.argv[-1] and len(sys.argv)") == "3"
        listening = client.run(
            "[line.split()[1].split(':')[1] for file in ('/proc/net/tcp', '/proc/net/tcp6') "
            "for line in open(file) if line.split()[3] == '0A' and '0100007F' not in line]"
        )
        # Only the link's port is open.
        assert listening == str([f"{9300:04X}"])
        # Agents cannot be inspected by their kernels.
        assert client.run("os.access('/proc/1/environ', os.R_OK)") == "False"
    pod = json.dumps(pod_of(namespace, kernel_id))
    text = pod + namespace.kubectl("logs", f"kernel-{kernel_id}") + gateway.output
    assert not any(secret in text for secret in secrets)
