"""deploy/kubernetes on a real cluster: JupyterLab on this machine, the gateway and its kernels in pods."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import skip_or_fail
from harness.cluster import POD, GatewayInCluster, why_no_dev_cluster
from harness.executions import run, wait_ended
from harness.lab import Lab
from harness.waiting import eventually
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.kubernetes

# The test decides when the cell continues, not a clock.
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
    if reason := why_no_dev_cluster():
        skip_or_fail(reason)
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
    """The log's "attached" events: one for each gateway that took over the running kernel."""
    text = gateway.rest("GET", f"api/kernels/{kernel_id}/log?from=start&follow=false").text
    return re.findall(r'"event":"attached"', text)


def evict(gateway: GatewayInCluster, pod: str) -> tuple[str, ...]:
    """The kubectl arguments that evict a pod, as draining its node does."""
    (gateway.home / "eviction.json").write_text(
        json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}})
    )
    path = f"/api/v1/namespaces/{gateway.namespace.name}/pods/{pod}/eviction"
    return "create", f"--raw={path}", f"--filename={gateway.home / 'eviction.json'}"


@pytest.mark.parametrize("how", ["rolled out", "evicted"])
def test_a_cell_survives_the_replacement_of_the_gateways_pod(
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
        assert "disruption budget" in gateway.namespace.kubectl_error(*evict(gateway, kernel_pod))
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
    # The kernel may have printed more while no gateway was connected, so the cell shows a warning.
    assert "may be missing" in text["stderr"]
    notebook.run(1)
    notebook.wait_text(1, "42")
    assert gateway.uid(kernel_pod) == kernels_uid
    after = log(gateway, kernel_id)
    assert (after["epoch"], after["earliest"]) == (before["epoch"], 1)
    assert after["head"] >= before["head"] + 60


def may(gateway: GatewayInCluster, what: str) -> bool:
    """Whether the gateway's service account has this right."""
    account = f"--as=system:serviceaccount:{gateway.namespace.name}:kernelmux-gateway"
    answer = gateway.namespace.try_kubectl("auth", "can-i", *what.split(), account).stdout.strip()
    assert answer in ("yes", "no"), answer
    return answer == "yes"


def test_the_service_account_has_exactly_the_required_rights(gateway: GatewayInCluster) -> None:
    for allowed in ("create pods", "watch events", "get secrets"):
        assert may(gateway, allowed), allowed
    # Without port-forwarding, the gateway must connect to the pods' addresses.
    for refused in (
        "create pods --subresource=portforward",
        "create pods --subresource=exec",
        "list secrets",
        "list pods --all-namespaces",
    ):
        assert not may(gateway, refused), refused


def test_the_token_appears_in_no_log_and_no_object(gateway: GatewayInCluster) -> None:
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


def test_only_the_gateway_can_connect_to_kernels(gateway: GatewayInCluster) -> None:
    # The dev cluster enforces policies if kube-router is started manually in the node's network, as a firewall only.
    # It is not part of the dev cluster, because it blocks each new pod for seconds until its rules are in place.
    if "KERNELMUX_TEST_NETWORK_POLICY" not in os.environ:
        pytest.skip("needs a network that enforces policies; set KERNELMUX_TEST_NETWORK_POLICY=1 if it does")
    with gateway.kernel() as one, gateway.kernel() as other:
        address = gateway.namespace.kubectl("get", "pod", f"kernel-{other}", "--output=jsonpath={.status.podIP}")
        for kernel_id, code in ((one, REACH.replace("{address}", address)), (other, "print('answers')")):
            started = run(gateway, kernel_id, code)
            [output] = wait_ended(gateway, kernel_id, started["msg_id"], 60)["outputs"]
            expected = [f"refused {port}" for port in range(9301, 9306)] if kernel_id == one else ["answers"]
            assert output["text"].splitlines() == expected


# This test must run last, because it gives the gateway more rights.
def test_with_the_right_to_run_commands_a_restart_keeps_the_pod(gateway: GatewayInCluster) -> None:
    with gateway.kernel() as kernel_id:
        before = gateway.uid(f"kernel-{kernel_id}")
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        recreated = gateway.uid(f"kernel-{kernel_id}")
        assert recreated != before
        gateway.apply_manifests("exec")
        # The API server applies new rights with a delay.
        eventually(lambda: may(gateway, "create pods --subresource=exec"), "the gateway may run commands")
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        assert gateway.uid(f"kernel-{kernel_id}") == recreated
        started = run(gateway, kernel_id, "print('answers')")
        [output] = wait_ended(gateway, kernel_id, started["msg_id"], 60)["outputs"]
        assert output["text"] == "answers\n"
