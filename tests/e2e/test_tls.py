"""TLS between the gateway and its usual clients, with a certificate that is renewed while they are connected."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.certificates import Authority
from harness.gateway import TOKEN, Gateway, clean_env
from harness.lab import Lab
from harness.waiting import eventually
from playwright.sync_api import Page


class Secured:
    """A gateway with TLS, and the files of its certificates."""

    def __init__(self, gateway: Gateway, authority: Authority, certificate: Path, key: Path) -> None:
        self.gateway = gateway
        self.authority = authority
        self.certificate = certificate
        self.key = key

    def presented(self) -> str:
        return ssl.get_server_certificate(("127.0.0.1", self.gateway.port))

    def renew(self) -> None:
        before = self.presented()
        certificate, key = self.authority.server("renewed")
        shutil.move(key, self.key)
        shutil.move(certificate, self.certificate)
        eventually(lambda: self.presented() != before, "the new certificate is used")


@pytest.fixture
def secured(start_gateway: Callable[..., Gateway], tmp_path: Path) -> Secured:
    authority = Authority(tmp_path / "certificates")
    certificate, key = authority.server()
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.certificate))
    gateway = start_gateway(*tls)
    gateway.session.verify = str(authority.certificate)
    return Secured(gateway, authority, certificate, key)


def test_jupyterlab_runs_cells_while_the_certificate_is_renewed(
    secured: Secured, make_home: Callable[[str], Path], page: Page
) -> None:
    gateway = secured.gateway
    assert gateway.url.startswith("https://")
    trusted = str(secured.authority.certificate)
    lab = Lab(make_home("lab-tls"), gateway.url, gateway.token, SSL_CERT_FILE=trusted)
    try:
        notebook = lab.open(page, "secured", ["x = 6 * 7\nprint('first', x)", "print('second', x)"])
        notebook.run(0)
        notebook.wait_text(0, "first 42")
        secured.renew()
        # The connection stayed, so the kernel is the same and idle.
        notebook.run(1)
        notebook.wait_text(1, "second 42")
    finally:
        lab.close()


def test_jupyterlab_signs_in_with_a_certificate(
    secured: Secured, make_home: Callable[[str], Path], page: Page
) -> None:
    gateway, authority = secured.gateway, secured.authority
    certificate, key = authority.client("ada", "staff")
    lab = Lab(
        make_home("lab-certificate"),
        gateway.url,
        None,
        JUPYTER_GATEWAY_CA_CERTS=str(authority.certificate),
        JUPYTER_GATEWAY_CLIENT_CERT=str(certificate),
        JUPYTER_GATEWAY_CLIENT_KEY=str(key),
    )
    try:
        notebook = lab.open(page, "certificate", ["import os\nprint('user', os.environ['KERNEL_USERNAME'])"])
        notebook.run(0)
        notebook.wait_text(0, "user ada")
    finally:
        lab.close()


EXECUTE = """
import sys
import nbformat
from jupyter_server.gateway.managers import GatewayClient, GatewayKernelManager
from nbclient import NotebookClient

GatewayClient.instance(url=sys.argv[1], ca_certs=sys.argv[2], client_cert=sys.argv[3], client_key=sys.argv[4])
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")])
NotebookClient(notebook, kernel_manager_class=GatewayKernelManager, timeout=60).execute()
print(notebook.cells[0].outputs[0].text)
"""


def test_nbclient_runs_a_notebook(secured: Secured, make_home: Callable[[str], Path]) -> None:
    home = make_home("nbclient-tls")
    certificate, key = secured.authority.client("ada", "staff")
    files = [str(path) for path in (secured.authority.certificate, certificate, key)]
    argv = [sys.executable, "-c", EXECUTE, secured.gateway.url.rstrip("/"), *files]
    done = subprocess.run(argv, env=clean_env(home), capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "42", done.stderr


def test_curl_and_plain_http(secured: Secured) -> None:
    gateway, trusted = secured.gateway, str(secured.authority.certificate)
    curl = ["curl", "-sS", "-H", f"Authorization: token {TOKEN}"]
    listed = subprocess.run(
        [*curl, "--cacert", trusted, f"{gateway.url}api/kernels"], capture_output=True, text=True, check=True
    )
    assert json.loads(listed.stdout) == []
    refused = subprocess.run([*curl, f"{gateway.url}api/kernels"], capture_output=True, text=True)
    assert refused.returncode == 60, "curl trusts a certificate that it does not know"
    plain = subprocess.run([*curl, gateway.url.replace("https:", "http:")], capture_output=True, text=True, check=True)
    assert "use https://" in plain.stdout
