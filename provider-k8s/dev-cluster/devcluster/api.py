"""A minimal API client for starting the cluster."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from .layout import NODE, Net


class Api:
    def __init__(self, pki: Path, net: Net):
        self.server = net.server
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))
        # Ignore proxies set in the environment.
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def get(self, path: str) -> bytes:
        with self.opener.open(self.server + path, timeout=5) as response:
            return response.read()

    def make_namespace(self, name: str) -> None:
        """Creates a namespace that enforces the `restricted` Pod Security level."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        request = urllib.request.Request(
            self.server + "/api/v1/namespaces", namespace.encode(), {"Content-Type": "application/json"}
        )
        self.opener.open(request, timeout=10).close()

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz") == b"ok"
        except (OSError, urllib.error.URLError):
            return False

    def is_node_ready(self) -> bool:
        try:
            node = json.loads(self.get(f"/api/v1/nodes/{NODE}"))
        except (OSError, urllib.error.URLError):
            return False
        return any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node.get("status", {}).get("conditions", [])
        )

    def has_default_account(self, namespace: str) -> bool:
        """Whether a namespace has its default service account. Pods cannot be created before it exists."""
        try:
            return bool(self.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"))
        except (OSError, urllib.error.URLError):
            return False
