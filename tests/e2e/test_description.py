"""The gateway's answers match its API description, for generated valid and invalid requests, with and without rights."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateway import VENV, Gateway
from harness.users import Users, bearer

# Two server errors are expected: 501 for an unknown kernelspec, as in Enterprise Gateway, and 503 for lack of capacity.
CONFIGURATION = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 501, 503]
"""
CHECKS = "not_a_server_error,status_code_conformance,response_schema_conformance,response_headers_conformance"
# A WebSocket, and event streams.
ENDLESS = r"/(channels|log|events)$"


def generate(gateway: Gateway, folder: Path, headers: dict[str, str], examples: int) -> str:
    """Sends generated requests with these headers and checks the answers. Returns a log of all of them."""
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    log = folder / "requests.yaml"
    description = folder / "openapi.json"
    description.write_text(gateway.rest("GET", "api/swagger.json").text)
    result = subprocess.run(
        [
            VENV / "bin" / "schemathesis",
            f"--config-file={configuration}",
            "run",
            str(description),
            f"--url={gateway.url}",
            *(f"--header={name}: {value}" for name, value in headers.items()),
            f"--checks={CHECKS}",
            f"--exclude-path-regex={ENDLESS}",
            "--phases=coverage,fuzzing",
            f"--max-examples={examples}",
            "--generation-deterministic",
            "--continue-on-failure",
            "--warnings=off",
            "--request-timeout=120",
            "--no-color",
            f"--report-vcr-path={log}",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr
    return log.read_text()


def answers(log: str) -> set[tuple[str, str, int]]:
    """The methods, paths and statuses in a log of requests."""
    found = re.findall(
        r"""uri: '?https?://[^/]+(/[^'\s?]*).*?\n    method: '?(\w+).*?\n    status:\n      code: '?(\d+)""", log, re.DOTALL
    )
    return {(method, path, int(status)) for path, method, status in found}


def test_answers_match_the_api_description(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = start_gateway("--max-kernels", "2", "--cull-idle-timeout", "5", "--cull-interval", "1")
    generate(gateway, tmp_path, gateway.headers(), 10)


@pytest.mark.parametrize("role", ["none", "viewer", "user", "operator", "admin"])
def test_answers_match_the_api_description_with_the_rights_of(
    role: str, start_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    users = Users(tmp_path)
    # Wrong tokens are answered slowly, so the client without rights sends none.
    rights = {} if role == "none" else bearer(users.add("ada", "--role", role))
    gateway = start_gateway("--users-file", str(users.file), "--max-kernels", "3")
    # Somebody else's kernel and log.
    kernel = gateway.start_kernel(env={"KERNEL_USERNAME": "bob"})["id"]
    found = answers(generate(gateway, tmp_path, rights, 2))
    assert len(found) > 50, found
    # Preflight requests of browsers need no rights, and do nothing.
    succeeded = {(method, path) for method, path, status in found if status < 300 and method != "OPTIONS"}
    changes = {(method, path) for method, path in succeeded if method not in ("GET", "HEAD")}
    of_other = {(method, path) for method, path in succeeded if kernel in path}
    if role == "none":
        assert {path for _, path in succeeded} == {"/healthz"}
    if role in ("none", "viewer"):
        assert changes == set()
    if role == "operator":
        # The state and the life cycle of all kernels, but no content.
        assert of_other, "the operator did not find the kernel"
        assert {path.rpartition("/")[2] for _, path in of_other} <= {kernel, "interrupt", "restart", "progress"}
    if role in ("none", "viewer", "user"):
        assert of_other == set()
        assert gateway.rest("GET", f"api/kernels/{kernel}").status_code == 200
    if role in ("user", "admin"):
        assert changes
