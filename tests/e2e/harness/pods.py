"""A namespace for a gateway on this machine, connected to the cluster through a proxy."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from harness.cluster import Namespace
from harness.gateway import REPO
from harness.proxy import Proxy
from harness.restoring import Steps
from harness.waiting import eventually

RIGHTS = REPO / "deploy" / "kubernetes" / "rights.yaml"
KERNELSPEC = REPO / "provider-k8s" / "dev-cluster" / "share" / "jupyter" / "kernels" / "python3" / "kernel.json"
ACCOUNT = "kernelmux-gateway"


class KernelNamespace(Namespace):
    """A namespace in which a gateway outside the cluster runs kernels.

    `environment` gives the gateway its credentials, the address of the proxy and the kernelspecs. The credentials are
    those of the shipped Role, plus port-forwarding. `api` is the proxy between the gateway and the API server; the
    connections to pods also pass through it.
    """

    def __init__(self, name: str, home: Path) -> None:
        super().__init__(name)
        self.home = home
        config = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
        cluster = config["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        self.api = Proxy((str(server.hostname), server.port or 443))
        cluster["server"] = f"https://127.0.0.1:{self.api.port}"
        cluster.setdefault("tls-server-name", server.hostname)
        config["users"][0]["user"] = {"token": self._account()}
        kubeconfig = home / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(json.dumps(config))
        self.environment = {"KUBECONFIG": str(kubeconfig), "JUPYTER_PATH": str(home / "jupyter")}

    def _account(self) -> str:
        """Creates the namespace and the gateway's service account, and returns the account's token."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted", "app.kubernetes.io/part-of": "kernelmux-tests"}
        metadata = {"name": self.name, "labels": labels}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.kubectl("create", f"--filename={RIGHTS}")
        forward = {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]}
        patch = json.dumps([{"op": "add", "path": "/rules/-", "value": forward}])
        self.kubectl("patch", "role", ACCOUNT, "--type=json", f"--patch={patch}")
        path = f"/api/v1/namespaces/{self.name}/serviceaccounts/{ACCOUNT}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = self.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(request))
        # Pods run as the default service account, so none can be created before it exists.
        eventually(
            lambda: "default" in self.kubectl("get", "serviceaccounts", "--output=name"),
            "the default service account exists",
        )
        return str(json.loads(answer)["status"]["token"])

    def install(
        self,
        name: str,
        memory: str | None = None,
        pod_settings: dict[str, Any] | None = None,
        argv: list[str] | None = None,
        **metadata: Any,
    ) -> None:
        """Installs the dev cluster's kernelspec under this name, with other settings of the pod or another command."""
        spec = json.loads(KERNELSPEC.read_text())
        spec["metadata"].update(metadata)
        spec["argv"] = argv or spec["argv"]
        pod = spec["metadata"]["kernelmux"]["kubernetes"]
        pod["image"] = os.environ.get("KERNELMUX_TEST_IMAGE", pod["image"])
        pod.update(pod_settings or {})
        if memory:
            pod["resources"]["limits"]["memory"] = memory
        folder = self.home / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec))

    def address_of_this_machine(self) -> str:
        """The address at which a cluster on this machine reaches this machine."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Connecting a UDP socket chooses a route and sends no packet.
            probe.connect(self.api.target)
            return str(probe.getsockname()[0])

    def run(self, kernel_id: str, script: str) -> str:
        """Runs a shell script in a kernel's container, without the gateway, and returns its output."""
        return self.kubectl("exec", f"kernel-{kernel_id}", "--", "sh", "-c", script)


class PodSteps(Steps):
    """Gates at which the cells of kernels in pods wait."""

    def __init__(self, namespace: KernelNamespace) -> None:
        super().__init__(PurePosixPath("/tmp"))
        self.namespace = namespace

    def touch(self, file: PurePath) -> None:
        self.namespace.run(self.kernel_id, f"touch {file}")

    def remove(self, file: PurePath) -> None:
        self.namespace.run(self.kernel_id, f"rm {file}")

    def exists(self, file: PurePath) -> bool:
        return bool(self.namespace.run(self.kernel_id, f"if [ -e {file} ]; then echo exists; fi"))

    def read(self, file: PurePath) -> str:
        return self.namespace.run(self.kernel_id, f"cat {file}")


@contextlib.contextmanager
def kernel_namespace(home: Path) -> Iterator[KernelNamespace]:
    """Creates a namespace and deletes it at the end."""
    name = f"kmux-test-{uuid.uuid4().hex[:12]}"
    try:
        namespace = KernelNamespace(name, home)
        yield namespace
        namespace.api.close()
    finally:
        Namespace(name).kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
