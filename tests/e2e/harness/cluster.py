"""The gateway in a pod of a real cluster, as deploy/kubernetes has it."""

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


def lacks_cluster() -> str | None:
    """Why there is no cluster to test on."""
    if not os.environ.get("KERNELMUX_TEST_KUBERNETES"):
        return "needs a cluster: `make test-k8s` brings one up, or uses that of KUBECONFIG"
    return None


def lacks() -> str | None:
    """Why there is none on this machine."""
    if reason := lacks_cluster():
        return reason
    if "KERNELMUX_TEST_POD_ADDRESSES" not in os.environ:
        return "needs the cluster that `make test-k8s` brings up, whose node is this machine"
    return None


def run(*command: object, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Namespace:
    """`kubectl` in a namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        beside = Path(os.environ["KUBECONFIG"]).with_name("kubectl")
        self.program = beside if beside.exists() else shutil.which("kubectl")
        assert self.program, "no kubectl on PATH, nor beside the KUBECONFIG"

    def kubectl(self, *args: object, stdin: str | None = None) -> str:
        return run(self.program, "--namespace", self.name, *args, stdin=stdin)

    def refused(self, *args: object) -> str:
        """What it says of something that it does not do."""
        done = self.tried(*args)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def tried(self, *args: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.program), "--namespace", self.name, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))


class GatewayPod:
    """In place of the gateway's process."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    @property
    def output(self) -> str:
        return self.namespace.kubectl("logs", POD)

    def running(self) -> bool:
        return True


class GatewayInCluster(Gateway):
    """The manifests with this build's image, in a namespace of their own, with the log in a folder of this machine."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, port=8888)
        self.namespace = Namespace(f"kmux-test-{uuid.uuid4().hex[:12]}")
        self.image = f"{IMAGE}:{self.namespace.name}"

    def start(self, timeout: float = 60.0) -> Gateway:
        archive = self.home / "image.tar"
        run(sys.executable, REPO / "deploy" / "gateway-image.py", binary(), archive, self.image)
        run(DEV_CLUSTER, "load", archive)
        archive.unlink()
        self.data_dir.mkdir()
        # Here is no provisioner: the claim gets a folder of the node, which is this machine.
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
        self.apply_manifests()
        self.namespace.kubectl("create", "secret", "generic", "kernelmux-token", f"--from-literal=token={TOKEN}")
        self.process = GatewayPod(self.namespace)  # type: ignore[assignment]
        address = self.namespace.kubectl("get", "service", NAME, "--output=jsonpath={.spec.clusterIP}")
        self.url = f"http://{address}:{self.port}/"
        self.wait_replaced("", timeout)
        return self

    def apply_manifests(self, *components: str) -> None:
        """What deploy/kubernetes has, with these components of it."""
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
        """Waits until another pod than that of `uid` serves at the Service's address."""
        eventually(lambda: self.uid(POD) not in ("", uid), "there is another pod", timeout)
        self.namespace.kubectl("wait", "--for=condition=Ready", f"pod/{POD}", f"--timeout={timeout:.0f}s")
        eventually(self._answers, "the gateway answers", timeout)

    def _answers(self) -> bool:
        try:
            # A connection that was tried before the Service's address led anywhere is never made.
            return self.rest("GET", "healthz", timeout=2).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    def uid(self, pod: str) -> str:
        """A pod's own id; empty where there is no such pod."""
        return self.namespace.kubectl(
            "get", "pod", pod, "--ignore-not-found", "--output=jsonpath={.metadata.uid}"
        )

    def close(self) -> None:
        try:
            # Python as a pod's first process takes no notice of SIGTERM: the kernels are asked.
            for kernel in self.rest("GET", "api/kernels").json() if self.url else []:
                self.rest("DELETE", f"api/kernels/{kernel['id']}")
        finally:
            self.session.close()
            for kind in ("namespace", "persistentvolume"):
                self.namespace.kubectl("delete", kind, self.namespace.name, "--ignore-not-found", "--wait=false")
            run(DEV_CLUSTER, "unload", self.image)


__all__ = ["POD", "GatewayInCluster", "lacks"]
