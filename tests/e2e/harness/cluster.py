"""The gateway in a pod of a real cluster, deployed with deploy/kubernetes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import requests
import yaml

from harness.gateway import REPO, TOKEN, Gateway, binary
from harness.waiting import eventually

DEV_CLUSTER = REPO / "provider-k8s" / "dev-cluster" / "dev-cluster"
NAME = "kernelmux-gateway"
POD = f"{NAME}-0"
IMAGE = "localhost/kernelmux/gateway"


def why_no_cluster() -> str | None:
    """The reason to skip tests that need a cluster; None if there is one."""
    if not os.environ.get("KERNELMUX_TEST_KUBERNETES"):
        return "needs a cluster: `make test-k8s` starts one, or uses the cluster of KUBECONFIG"
    return None


def why_no_dev_cluster() -> str | None:
    """The reason to skip tests that need the cluster's node to be this machine; None if it is."""
    if reason := why_no_cluster():
        return reason
    if "KERNELMUX_TEST_POD_ADDRESSES" not in os.environ:
        return "needs the cluster that `make test-k8s` starts, whose node is this machine"
    return None


def run(*command: object, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Namespace:
    """Runs `kubectl` in a namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        bundled = Path(os.environ["KUBECONFIG"]).with_name("kubectl")
        self.program = bundled if bundled.exists() else shutil.which("kubectl")
        assert self.program, "no kubectl on PATH or next to the KUBECONFIG"

    def kubectl(self, *args: object, stdin: str | None = None) -> str:
        return run(self.program, "--namespace", self.name, *args, stdin=stdin)

    def kubectl_error(self, *args: object) -> str:
        """The output of a command that must fail."""
        done = self.try_kubectl(*args)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def try_kubectl(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Runs a command that may fail."""
        command = [str(self.program), "--namespace", self.name, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))


class GatewayPod:
    """Stands in for the gateway's `Process`. Its output is the pod's log."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    @property
    def output(self) -> str:
        return self.namespace.kubectl("logs", POD)

    def running(self) -> bool:
        return True


class GatewayInCluster(Gateway):
    """Deploys the manifests in a new namespace, with this build's image and the log in a folder of this machine."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, port=8888)
        self.namespace = Namespace(f"kmux-test-{uuid.uuid4().hex[:12]}")
        self.image = f"{IMAGE}:{self.namespace.name}"
        self.images: list[str] = []
        self.scheme = "http"

    def start(self, timeout: float = 60.0) -> Gateway:
        self.load_image(self.image)
        self.data_dir.mkdir()
        # The dev cluster has no volume provisioner, so the claim is bound to a folder of its node, this machine.
        self.data_dir.chmod(0o777)
        self.namespace.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": self.namespace.name},
                "spec": {
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "hostPath": {"path": str(self.data_dir)},
                },
            }
        )
        self.deploy()
        self.process = GatewayPod(self.namespace)  # type: ignore[assignment]
        self.find_address()
        self.wait_replaced("", timeout)
        return self

    def find_address(self) -> None:
        """Uses the address of the Service."""
        address = self.namespace.kubectl("get", "service", NAME, "--output=jsonpath={.spec.clusterIP}")
        self.url = f"{self.scheme}://{address}:{self.port}/"

    def load_image(self, name: str) -> None:
        """Loads this build's image under a name, which `close` removes."""
        archive = self.home / "image.tar"
        run(sys.executable, REPO / "deploy" / "gateway-image.py", binary(), archive, name)
        run(DEV_CLUSTER, "load", archive)
        archive.unlink()
        self.images.append(name)

    def deploy(self) -> None:
        self.apply_manifests()
        self.namespace.kubectl("create", "secret", "generic", "kernelmux-token", f"--from-literal=token={TOKEN}")

    def apply_manifests(self, *components: str) -> None:
        """Applies deploy/kubernetes with the given components."""
        claim = [
            {"op": "add", "path": "/spec/storageClassName", "value": ""},
            {"op": "add", "path": "/spec/volumeName", "value": self.namespace.name},
        ]
        overlay = self.home / "overlay"
        overlay.mkdir(exist_ok=True)
        manifests = Path(os.path.relpath(REPO / "deploy" / "kubernetes", overlay))
        kustomization = {
            "namespace": self.namespace.name,
            "resources": [str(manifests)],
            "components": [str(manifests / component) for component in components],
            "images": [{"name": IMAGE, "newTag": self.namespace.name}],
            "patches": [{"target": {"kind": "PersistentVolumeClaim"}, "patch": yaml.safe_dump(claim)}],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        self.namespace.kubectl("apply", "--kustomize", overlay)

    def wait_replaced(self, uid: str, timeout: float = 60.0) -> None:
        """Waits until a pod with another uid serves at the Service's address."""
        eventually(lambda: self.uid(POD) not in ("", uid), "a new pod exists", timeout)
        self.namespace.kubectl("wait", "--for=condition=Ready", f"pod/{POD}", f"--timeout={timeout:.0f}s")
        eventually(self._answers, "the gateway answers", timeout)

    def _answers(self) -> bool:
        try:
            # A connection attempt from before the Service had an endpoint never completes, hence the short timeout.
            return self.rest("GET", "healthz", timeout=2).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    def uid(self, pod: str) -> str:
        """A pod's uid; empty if there is no such pod."""
        return self.namespace.kubectl(
            "get", "pod", pod, "--ignore-not-found", "--output=jsonpath={.metadata.uid}"
        )

    def close(self) -> None:
        try:
            # A Python process with process id 1 ignores SIGTERM, so the gateway shuts the kernels down first.
            for kernel in self.rest("GET", "api/kernels").json() if self.url else []:
                self.rest("DELETE", f"api/kernels/{kernel['id']}")
        finally:
            self.session.close()
            for kind in ("namespace", "persistentvolume"):
                self.namespace.kubectl("delete", kind, self.namespace.name, "--ignore-not-found", "--wait=false")
            for image in self.images:
                run(DEV_CLUSTER, "unload", image)


__all__ = ["POD", "GatewayInCluster", "why_no_dev_cluster"]
