"""Enterprise Gateway's own integration tests and client, with its configuration, against this gateway."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateway import REPO, VENV, Gateway, clean_env

EG_VENV = REPO / "target" / "enterprise-gateway-venv"

# As in Enterprise Gateway's documentation and in its images.
CONFIGURATION = """\
c.EnterpriseGatewayApp.ip = "127.0.0.1"
c.EnterpriseGatewayApp.port = 0
c.EnterpriseGatewayApp.list_kernels = True
c.EnterpriseGatewayApp.env_whitelist = ["TEST_VAR"]
c.EnterpriseGatewayApp.max_kernels_per_user = 2
c.RemoteMappingKernelManager.cull_idle_timeout = 3600
c.RemoteMappingKernelManager.cull_interval = 60
c.KernelSpecManager.allowed_kernelspecs = ["python3", "authorization_test"]
"""
VARIABLES = {
    "EG_ALLOW_ORIGIN": "https://lab.example",
    "EG_INHERITED_ENVS": "HOME,LANG",
    "EG_UNAUTHORIZED_USERS": "mallory",
    "KG_DEFAULT_KERNEL_NAME": "python3",
}

# The other integration tests need Spark, R or Scala. Its unit tests run its server in their own process, so they cannot
# test another one.
TESTS = {
    "test_authorization.py::TestAuthorization": 2,
    "test_python_kernel.py::TestPythonKernelLocal": 5,
}


@pytest.fixture
def eg_tests() -> Path:
    """The folder of the integration tests."""
    (found,) = EG_VENV.glob("lib/python*/site-packages/enterprise_gateway/itests")
    return found


@pytest.fixture
def gateway(start_gateway: Callable[..., Gateway], eg_tests: Path, tmp_path: Path) -> Gateway:
    """A gateway with the settings above, and with the kernelspecs of the integration tests."""
    configuration = tmp_path / "jupyter_enterprise_gateway_config.py"
    configuration.write_text(CONFIGURATION)
    paths = {"JUPYTER_PATH": f"{eg_tests}:{VENV / 'share' / 'jupyter'}", "PATH": f"{VENV / 'bin'}:/usr/bin:/bin"}
    flags = (f"--from-enterprise-gateway={configuration}", "--no-auth")
    return start_gateway(*flags, token=None, is_token_in_args=True, env={**VARIABLES, **paths})


def test_its_integration_tests_pass(gateway: Gateway, eg_tests: Path, tmp_path: Path) -> None:
    for name, count in TESTS.items():
        file, _, class_name = name.partition("::")
        done = subprocess.run(
            [
                EG_VENV / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "-q", "--no-header",
                f"{eg_tests / file}::{class_name}",
            ],
            env={
                **clean_env(tmp_path),
                "GATEWAY_HOST": f"127.0.0.1:{gateway.port}",
                "KERNEL_USERNAME": "bob",
                "ITEST_HOSTNAME_PREFIX": socket.gethostname(),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]
        assert f"{count} passed" in done.stdout, done.stdout
    assert gateway.rest("GET", "api/kernels").json() == []


def test_its_settings_are_in_force(gateway: Gateway) -> None:
    origin = {"Origin": "https://lab.example"}
    assert gateway.rest("GET", "api/kernels", headers=origin).headers["Access-Control-Allow-Origin"] == origin["Origin"]
    specs = gateway.rest("GET", "api/kernelspecs").json()["kernelspecs"]
    assert sorted(specs) == ["authorization_test", "python3"]
    mallory = gateway.rest("POST", "api/kernels", json={"env": {"KERNEL_USERNAME": "mallory"}})
    assert mallory.status_code == 403, mallory.text
    env = {"KERNEL_USERNAME": "alice", "TEST_VAR": "of the client", "OTHER_VAR": "not passed on"}
    for _ in range(2):
        started = gateway.rest("POST", "api/kernels", json={"env": env})
        assert started.status_code == 201, started.text
    with gateway.socket(started.json()["id"]) as client:
        assert client.run("import os; [os.environ.get(name) for name in ('TEST_VAR', 'OTHER_VAR')]") == "['of the client', None]"
    refused = gateway.rest("POST", "api/kernels", json={"env": env})
    assert refused.status_code == 403 and "2" in refused.json()["message"], refused.text
