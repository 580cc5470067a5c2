"""Certificates and KUBECONFIG files."""

import base64
import json
from pathlib import Path

from .layout import API_SERVICE, NODE, Net
from .problem import run

# Subject of each client. Kubernetes authorizes these users and groups by default.
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE}",
}


def make(folder: Path, net: Net) -> None:
    """Creates all keys and certificates."""
    folder.mkdir(parents=True, mode=0o700)
    _key(folder / "ca.key")
    run("openssl", "req", "-x509", "-new", "-key", folder / "ca.key", "-subj", "/CN=kernelmux-dev", "-days", "365",
        "-out", folder / "ca.crt")
    names = f"IP:{net.node},IP:127.0.0.1,IP:{API_SERVICE},DNS:kubernetes.default.svc,DNS:kubernetes,DNS:localhost"
    _certificate(folder, "apiserver", "/CN=kube-apiserver", names)
    for name, subject in CLIENTS.items():
        _certificate(folder, name, subject, f"IP:{net.node},DNS:{NODE}" if name == "kubelet" else None)
    run("openssl", "genrsa", "-out", folder / "service-accounts.key", "2048")


def _key(path: Path) -> None:
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)


def _certificate(folder: Path, name: str, subject: str, names: "str | None") -> None:
    key, request, extensions = (folder / f"{name}.{ending}" for ending in ("key", "csr", "ext"))
    _key(key)
    run("openssl", "req", "-new", "-key", key, "-subj", subject, "-out", request)
    extensions.write_text(
        "extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={names}\n" if names else ""), encoding="ascii"
    )
    run("openssl", "x509", "-req", "-in", request, "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key",
        "-CAcreateserial", "-days", "365", "-extfile", extensions, "-out", folder / f"{name}.crt")


def kubeconfig(folder: Path, net: Net, name: str) -> str:
    """Returns a client's KUBECONFIG as JSON, which is valid YAML."""
    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "dev",
            "clusters": [
                {"name": "dev", "cluster": {"server": net.server, "certificate-authority-data": data("ca.crt")}}
            ],
            "users": [
                {
                    "name": name,
                    "user": {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")},
                }
            ],
            "contexts": [{"name": "dev", "context": {"cluster": "dev", "user": name, "namespace": "default"}}],
        },
        indent=1,
    )
