"""Executions over HTTP: running code without a WebSocket, and reading its status and outputs."""

from __future__ import annotations

from typing import Any

from harness.gateway import Gateway
from harness.waiting import eventually


def run(gateway: Gateway, kernel_id: str, code: str, **body: Any) -> dict[str, Any]:
    """Starts an execution and does not wait for its end."""
    response = gateway.rest("POST", f"api/kernels/{kernel_id}/executions", json={"code": code, **body})
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == response.json()["url"]
    return dict(response.json())


def get_execution(gateway: Gateway, kernel_id: str, msg_id: str) -> dict[str, Any]:
    response = gateway.rest("GET", f"api/kernels/{kernel_id}/executions/{msg_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def latest_of_cell(gateway: Gateway, kernel_id: str, cell_id: str) -> dict[str, Any]:
    """The newest execution of a notebook cell."""
    found = gateway.rest("GET", f"api/kernels/{kernel_id}/executions?cellId={cell_id}").json()
    assert found["executions"], f"no execution of cell {cell_id}"
    return get_execution(gateway, kernel_id, found["executions"][0]["msg_id"])


def wait_ended(gateway: Gateway, kernel_id: str, msg_id: str, timeout: float = 30.0) -> dict[str, Any]:
    """Waits for the end of an execution and returns it."""

    def look() -> dict[str, Any] | None:
        execution = get_execution(gateway, kernel_id, msg_id)
        return execution if execution["ended"] else None

    found = eventually(look, f"{msg_id} has ended", timeout)
    assert found is not None
    return found
