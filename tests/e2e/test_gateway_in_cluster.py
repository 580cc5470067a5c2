"""deploy/kubernetes on a real cluster: JupyterLab here, the gateway in a pod, kernels in pods."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import lacking
from harness.cluster import POD, GatewayInCluster, lacks
from harness.executions import ended, run
from harness.lab import Lab
from harness.waiting import eventually
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.kubernetes

# The test, not a clock, decides when it goes on.
COUNTING = """
import pathlib, time
for number in range(100):
    if number == 40:
        print("[waits]", flush=True)
        while not pathlib.Path("/tmp/{gate}").exists():
            time.sleep(0.02)
    print("line", number, flush=True)
"""


@pytest.fixture(scope="module")
def gateway(built: None, make_home: Callable[[str], Path]) -> Iterator[GatewayInCluster]:
    if reason := lacks():
        lacking(reason)
    gateway = GatewayInCluster(make_home("gw"))
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.close()


@pytest.fixture(scope="module")
def lab(gateway: GatewayInCluster, make_home: Callable[[str], Path]) -> Iterator[Lab]:
    lab = Lab(make_home("lab"), gateway.url, gateway.token)
    yield lab
    lab.close()


def log(gateway: GatewayInCluster, kernel_id: str) -> dict[str, Any]:
    logs = gateway.rest("GET", "api/logs").json()
    return next(dict(log) for log in logs if log["kernel_id"] == kernel_id)


def attached(gateway: GatewayInCluster, kernel_id: str) -> list[str]:
    """How often somebody took over the kernel of somebody who had gone."""
    text = gateway.rest("GET", f"api/kernels/{kernel_id}/log?from=start&follow=false").text
    return re.findall(r'"event":"attached"', text)


def evict(gateway: GatewayInCluster, pod: str) -> tuple[str, ...]:
    """What kubectl takes to evict a pod, as it does with all of a node that is drained."""
    (gateway.home / "eviction.json").write_text(
        json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}})
    )
    path = f"/api/v1/namespaces/{gateway.namespace.name}/pods/{pod}/eviction"
    return "create", f"--raw={path}", f"--filename={gateway.home / 'eviction.json'}"


@pytest.mark.parametrize("how", ["rolled out", "evicted"])
def test_the_gateways_pod_is_replaced_while_a_cell_prints(
    lab: Lab, page: Page, gateway: GatewayInCluster, how: str
) -> None:
    gate = how.replace(" ", "-")
    notebook = lab.open(page, gate, [COUNTING.replace("{gate}", gate), "6 * 7"])
    kernel_id = notebook.kernel_id()
    kernel_pod = f"kernel-{kernel_id}"
    notebook.start(0)
    notebook.wait_text(0, "[waits]")
    before = log(gateway, kernel_id)
    gateways_uid, kernels_uid = gateway.uid(POD), gateway.uid(kernel_pod)

    if how == "evicted":
        assert "disruption budget" in gateway.namespace.refused(*evict(gateway, kernel_pod))
        gateway.namespace.kubectl(*evict(gateway, POD))
    else:
        gateway.namespace.kubectl("rollout", "restart", "statefulset/kernelmux-gateway")
    gateway.wait_replaced(gateways_uid)
    eventually(lambda: attached(gateway, kernel_id), "the kernel is attached again")
    gateway.namespace.kubectl("exec", kernel_pod, "--", "touch", f"/tmp/{gate}")

    notebook.finished(0, timeout=90)
    expect(notebook.prompt(0)).to_have_text("[1]:")
    lines = [f"line {number}" for number in range(100)]
    outputs = notebook.outputs(0)
    text = {
        name: "".join(output["text"] for output in outputs if output["name"] == name) for name in ("stdout", "stderr")
    }
    assert text["stdout"].splitlines() == [*lines[:40], "[waits]", *lines[40:]]
    # Without a gateway nobody knows whether the kernel said anything.
    assert "may be missing" in text["stderr"]
    notebook.run(1)
    notebook.wait_text(1, "42")
    assert gateway.uid(kernel_pod) == kernels_uid
    after = log(gateway, kernel_id)
    assert (after["epoch"], after["earliest"]) == (before["epoch"], 1)
    assert after["head"] >= before["head"] + 60


def may(gateway: GatewayInCluster, what: str) -> bool:
    account = f"--as=system:serviceaccount:{gateway.namespace.name}:kernelmux-gateway"
    answer = gateway.namespace.tried("auth", "can-i", *what.split(), account).stdout.strip()
    assert answer in ("yes", "no"), answer
    return answer == "yes"


def test_it_may_do_what_it_needs_and_no_more(gateway: GatewayInCluster) -> None:
    for allowed in ("create pods", "watch events", "get secrets"):
        assert may(gateway, allowed), allowed
    # The first: so kernels are reached by their pods' addresses, or not at all.
    for refused in (
        "create pods --subresource=portforward",
        "create pods --subresource=exec",
        "list secrets",
        "list pods --all-namespaces",
    ):
        assert not may(gateway, refused), refused


def test_its_token_is_told_nowhere(gateway: GatewayInCluster) -> None:
    assert gateway.token
    assert "kernelmux-gateway is at" in gateway.output
    assert gateway.token not in gateway.output
    assert gateway.token not in gateway.namespace.kubectl("get", "pods,statefulsets,events", "--output=json")
    assert gateway.rest("GET", "healthz", headers={}).status_code == 200
    assert gateway.rest("GET", "api/kernels", headers={}).status_code == 401


REACH = """
import socket
for port in range(9301, 9306):
    try:
        socket.create_connection(("{address}", port), 3).close()
        print("reached", port)
    except OSError:
        print("refused", port)
"""


def test_kernels_are_reached_by_the_gateway_only(gateway: GatewayInCluster) -> None:
    # On the dev cluster kube-router does, started by hand in the node's network with its firewall alone. It is not part
    # of it: each new pod is closed for seconds, until its rules are there.
    if "KERNELMUX_TEST_NETWORK_POLICY" not in os.environ:
        pytest.skip("needs a network that enforces policies; KERNELMUX_TEST_NETWORK_POLICY=1 says that it does")
    with gateway.kernel() as one, gateway.kernel() as other:
        address = gateway.namespace.kubectl("get", "pod", f"kernel-{other}", "--output=jsonpath={.status.podIP}")
        for kernel_id, code in ((one, REACH.replace("{address}", address)), (other, "print('answers')")):
            asked = run(gateway, kernel_id, code)
            [output] = ended(gateway, kernel_id, asked["msg_id"], 60)["outputs"]
            expected = [f"refused {port}" for port in range(9301, 9306)] if kernel_id == one else ["answers"]
            assert output["text"].splitlines() == expected


# The last: the gateway has more rights from here on.
def test_with_the_right_to_run_commands_a_restart_keeps_the_pod(gateway: GatewayInCluster) -> None:
    with gateway.kernel() as kernel_id:
        before = gateway.uid(f"kernel-{kernel_id}")
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        made_anew = gateway.uid(f"kernel-{kernel_id}")
        assert made_anew != before
        gateway.apply_manifests("exec")
        # What is applied is in force a moment later.
        eventually(lambda: may(gateway, "create pods --subresource=exec"), "the gateway may run commands")
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        assert gateway.uid(f"kernel-{kernel_id}") == made_anew
        asked = run(gateway, kernel_id, "print('answers')")
        [output] = ended(gateway, kernel_id, asked["msg_id"], 60)["outputs"]
        assert output["text"] == "answers\n"
