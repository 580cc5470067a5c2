"""The gateway's answers match its API description, for generated valid and invalid requests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from harness.gateway import VENV, Gateway

# Two server errors are expected: 501 for an unknown kernelspec, as in Enterprise Gateway, and 503 for lack of capacity.
CONFIGURATION = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 501, 503]
"""
CHECKS = "not_a_server_error,status_code_conformance,response_schema_conformance,response_headers_conformance"
# A WebSocket, and event streams.
ENDLESS = r"/(channels|log|events)$"


def test_answers_match_the_api_description(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = start_gateway("--max-kernels", "2", "--cull-idle-timeout", "5", "--cull-interval", "1")
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    (authorization,) = gateway.headers().values()
    result = subprocess.run(
        [
            VENV / "bin" / "schemathesis",
            f"--config-file={configuration}",
            "run",
            f"{gateway.url}api/swagger.json",
            f"--header=Authorization: {authorization}",
            f"--checks={CHECKS}",
            f"--exclude-path-regex={ENDLESS}",
            "--phases=coverage,fuzzing",
            "--max-examples=10",
            "--generation-deterministic",
            "--continue-on-failure",
            "--warnings=off",
            "--request-timeout=120",
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr
