"""kernelmux-lab with kernels in pods: slow and failed starts, kernels that run out of memory, and Kubeflow.

The numbers of the scenarios refer to clients/lab/README.md.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conftest import skip_or_fail
from harness.cluster import why_no_cluster, why_no_dev_cluster
from harness.gateway import Gateway
from harness.kubeflow import culled_kernel_leaves_its_outputs, kubeflow_lab, notebook_is_restored
from harness.lab import LAB_TOKEN, Lab, Notebook
from harness.pods import KernelNamespace, PodSteps, kernel_namespace
from harness.restoring import expect_lines, open_page, run_and_close, wait_ended
from harness.waiting import eventually
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.kubernetes

# Long enough for the page to run the cells before the kernel is culled.
IDLE_SECONDS = 20
QUOTA = "16Gi"
# Keeps a pod in each step of its start until the test ends that step.
GATE = "kernelmux.dev/test"
HELD = {
    "pod_template": {
        "spec": {
            "schedulingGates": [{"name": GATE}],
            "volumes": [{"name": "late", "configMap": {"name": "late"}}],
            "containers": [{"name": "kernel", "volumeMounts": [{"name": "late", "mountPath": "/late"}]}],
        }
    }
}
WAITING = "until [ -e /tmp/go ]; do sleep 0.1; done; exec python3 -m ipykernel_launcher -f \"$0\""


@pytest.fixture(scope="module")
def namespace(make_home: Callable[[str], Path]) -> Iterator[KernelNamespace]:
    if reason := why_no_cluster():
        skip_or_fail(reason)
    with kernel_namespace(make_home("cluster")) as namespace:
        namespace.install("python3")
        namespace.install("culled", cull_idle_timeout=IDLE_SECONDS, cull_connected=True)
        namespace.install("small", memory="256Mi")
        namespace.install("greedy", memory="32Gi")
        namespace.install("held", pod_settings=HELD, argv=["sh", "-c", WAITING, "{connection_file}"])
        hard = {"limits.memory": QUOTA}
        namespace.apply(
            {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "memory"}, "spec": {"hard": hard}}
        )
        yield namespace


@pytest.fixture(scope="module")
def gateway(built: None, namespace: KernelNamespace, make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    gateway = Gateway(
        make_home("gw"), "--kubernetes-namespace", namespace.name, "--cull-interval", "1", env=namespace.environment
    ).start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def lab(gateway: Gateway, make_home: Callable[[str], Path], lab_extension: Path) -> Iterator[Lab]:
    # jupyter_server's timeout for a start, in seconds.
    timeout = {"JUPYTER_GATEWAY_REQUEST_TIMEOUT": "150"}
    lab = Lab(make_home("lab"), gateway.url, gateway.token, extension=lab_extension, **timeout)
    yield lab
    lab.close()


@pytest.fixture
def steps(namespace: KernelNamespace) -> PodSteps:
    return PodSteps(namespace)


def open_starting(lab: Lab, page: Page, name: str, kernel: str) -> tuple[Notebook, Locator]:
    """Opens a notebook whose kernel starts slowly or not at all. Returns the notebook and the kernel's status."""
    lab.write_notebook(name, ["6 * 7"], kernel=kernel)
    notebook = Notebook(page, lab, name)
    page.goto(notebook.address)
    return notebook, page.locator(".kernelmux-status").first


def starting_kernel(lab: Lab, name: str) -> str:
    """The id of the kernel that is being started for a notebook."""
    headers = {"Authorization": f"token {LAB_TOKEN}"}
    answer = requests.get(f"{lab.url}/kernelmux/notebook?path={name}.ipynb", headers=headers, timeout=60)
    return str(answer.json()["starting"])


# Scenario 28
def test_running_out_of_memory_while_the_tab_was_closed_leaves_outputs_and_the_cause(
    lab: Lab, page: Page, gateway: Gateway, steps: PodSteps
) -> None:
    code = steps.lines(count=5) + "gate('end')\nb'x' * (1 << 30)"
    closed = run_and_close(lab, page, "memory", [code, "print('next', 6 * 7)"], steps, at="end", kernel="small")
    steps.open("end")
    assert wait_ended(gateway, closed)["status"] == "died"
    notebook = open_page(page, lab, "memory")
    expect_lines(notebook, 0, 5)
    notebook.wait_text(0, "killed because it ran out of memory")
    expect(notebook.prompt(0)).not_to_have_text("[*]:")
    notebook.wait_status("idle", 60)
    notebook.run(1)
    notebook.wait_text(1, "next 42")


# Scenario 36
def test_the_steps_of_a_slow_start_are_shown(lab: Lab, page: Page, namespace: KernelNamespace) -> None:
    notebook, status = open_starting(lab, page, "slow", "held")
    expect(status).to_contain_text("Kernel is waiting for a node")
    kernel_id = starting_kernel(lab, "slow")
    namespace.kubectl(
        "patch",
        "pod",
        f"kernel-{kernel_id}",
        "--type=json",
        f"--patch={json.dumps([{'op': 'remove', 'path': '/spec/schedulingGates'}])}",
    )
    expect(status).to_contain_text("Kernel has a node")
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}})
    # The kubelet looks for the volume less and less often.
    expect(status).to_contain_text("Kernel is starting", timeout=90_000)
    namespace.run(kernel_id, "touch /tmp/go")
    notebook.wait_ready()
    assert notebook.kernel_id() == kernel_id
    expect(status).to_contain_text(f"pod kernel-{kernel_id}")
    notebook.run(0)
    notebook.wait_text(0, "42")


class HeldRegistry(socketserver.ThreadingTCPServer):
    """An image registry that accepts connections, and closes them when the test releases them."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        self.released = threading.Event()
        super().__init__((address, 0), HeldConnection)
        self.image = f"{address}:{self.server_address[1]}/none:1"


class HeldConnection(socketserver.BaseRequestHandler):
    server: HeldRegistry

    def handle(self) -> None:
        self.server.released.wait(120)


@pytest.fixture
def registry(namespace: KernelNamespace) -> Iterator[HeldRegistry]:
    if reason := why_no_dev_cluster():
        skip_or_fail(reason)
    with HeldRegistry(namespace.address_of_this_machine()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


# Scenario 36
def test_an_image_pull_and_its_failure_are_shown(
    lab: Lab, page: Page, namespace: KernelNamespace, registry: HeldRegistry
) -> None:
    namespace.install("unpullable", pod_settings={"image": registry.image})
    # The gateway notices new kernelspecs by itself.
    eventually(lambda: knows_kernel(lab, "unpullable"), "the kernelspec is known")
    _, status = open_starting(lab, page, "pull", "unpullable")
    expect(status).to_contain_text("Kernel image is being pulled")
    expect(status).to_contain_text(registry.image)
    registry.released.set()
    expect(status).to_contain_text("Kernel did not start", timeout=60_000)
    expect(status).to_contain_text("ErrImagePull")


def knows_kernel(lab: Lab, name: str) -> bool:
    headers = {"Authorization": f"token {LAB_TOKEN}"}
    return name in requests.get(f"{lab.url}/api/kernelspecs", headers=headers, timeout=60).json()["kernelspecs"]


# Scenario 36
def test_an_exceeded_quota_is_shown(lab: Lab, page: Page, namespace: KernelNamespace) -> None:
    hard = "--output=jsonpath={.status.hard}"
    eventually(lambda: QUOTA in namespace.kubectl("get", "resourcequota", "memory", hard), "the quota is in force")
    _, status = open_starting(lab, page, "quota", "greedy")
    expect(status).to_contain_text("Kernel did not start", timeout=60_000)
    expect(status).to_contain_text("exceeded quota")


@pytest.fixture(scope="module")
def kubeflow(gateway: Gateway, make_home: Callable[[str], Path], lab_wheel: Path) -> Iterator[Lab]:
    lab = kubeflow_lab(make_home("kubeflow"), gateway, lab_wheel)
    yield lab
    lab.close()


# Scenario 42
def test_a_notebook_is_restored_on_kubeflow(kubeflow: Lab, page: Page, steps: PodSteps) -> None:
    notebook_is_restored(kubeflow, page, steps)


# Scenario 42
def test_a_culled_kernel_leaves_its_outputs_on_kubeflow(
    kubeflow: Lab, page: Page, gateway: Gateway, steps: PodSteps
) -> None:
    culled_kernel_leaves_its_outputs(kubeflow, page, gateway, steps, "culled")
