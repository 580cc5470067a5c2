"""The gateway in a pod of a real cluster, deployed with the Helm chart of deploy/helm."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import yaml

from harness.cluster import DEV_CLUSTER, IMAGE, POD, GatewayInCluster, run
from harness.gateway import REPO

CHART = REPO / "deploy" / "helm" / "kernelmux"
RELEASE = "kmux"


@functools.cache
def program() -> str:
    """The path of `helm`, which is built on the first call."""
    built = subprocess.run([str(DEV_CLUSTER), "helm"], stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    return built.stdout.strip()


def values(home: Path, given: dict[str, Any]) -> Path:
    file = home / "values.yaml"
    file.write_text(yaml.safe_dump(given))
    return file


def template(home: Path, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that the chart makes with these values."""
    text = run(program(), "template", RELEASE, CHART, "--namespace", "kernels", "--values", values(home, given))
    return [made for made in yaml.safe_load_all(text) if made]


def refused(home: Path, given: dict[str, Any]) -> str:
    """Why the chart refuses these values."""
    command = [program(), "template", RELEASE, str(CHART), "--values", str(values(home, given))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stdout
    return done.stderr


class Release(GatewayInCluster):
    """An installed chart. `secrets` has the files of Secrets that it uses, by name."""

    def __init__(self, home: Path, given: dict[str, Any], secrets: dict[str, dict[str, str]]) -> None:
        super().__init__(home)
        self.secrets = secrets
        self.values: dict[str, Any] = {
            "image": {"repository": IMAGE, "tag": self.namespace.name, "pullPolicy": "Never"},
            "persistence": {"volumeName": self.namespace.name},
            **given,
        }
        self.notes = ""
        if "tls" in given:
            self.scheme = "https"
            # The certificate does not name the Service's address, which is chosen later. Tests compare it.
            self.session.verify = False

    def deploy(self) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": self.namespace.name, "labels": labels}
        self.namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        for name, files in self.secrets.items():
            self.apply_secret(name, files)
        self.notes = self.helm("install", RELEASE, CHART, "--values", values(self.home, self.values))
        self.read_token()

    def apply_secret(self, name: str, files: dict[str, str]) -> None:
        self.namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": files})

    def upgrade(self, **changed: Any) -> None:
        self.values.update(changed)
        self.helm("upgrade", RELEASE, CHART, "--values", values(self.home, self.values))

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--wait")

    def helm(self, *command: object) -> str:
        return run(program(), "--namespace", self.namespace.name, *command)

    def read_token(self) -> None:
        """Uses the token of the installed gateway."""
        given = self.values.get("token", {})
        name, key = given.get("existingSecret", "kernelmux-token"), given.get("key", "token")
        secret = json.loads(self.namespace.kubectl("get", "secret", name, "--output=json"))
        self.token = base64.b64decode(secret["data"][key]).decode()

    def update_volumes(self) -> None:
        """Makes the kubelet update the pod's mounted Secrets now. By itself, it does so within about a minute."""
        self.namespace.kubectl("annotate", "pod", POD, "--overwrite", f"test={uuid.uuid4()}")
