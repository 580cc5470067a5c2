"""Requests that deviate from the specification, and that jupyter_server and Enterprise Gateway accept."""

from __future__ import annotations

import uuid

import pytest
from harness.gateway import Gateway


def runs(gateway: Gateway, kernel_id: str) -> bool:
    with gateway.socket(kernel_id, "runs") as client:
        return client.run("6 * 7") == "42"


def test_a_null_body_starts_the_default_kernel(gateway: Gateway) -> None:
    response = gateway.rest("POST", "api/kernels", data=b"null")
    assert response.status_code == 201, response.text
    assert response.json()["name"] == "python3"
    gateway.rest("DELETE", f"api/kernels/{response.json()['id']}")


def test_a_trailing_slash_is_ignored(gateway: Gateway) -> None:
    with gateway.kernel() as kernel_id:
        gateway.wait_state(kernel_id, "idle")
        for path in ("api", "api/kernels", f"api/kernels/{kernel_id}", "api/kernelspecs", "api/sessions"):
            response = gateway.rest("GET", f"{path}/")
            assert response.status_code == 200, (path, response.text)
            assert response.json() == gateway.rest("GET", path).json()


def test_the_name_python_starts_python3(gateway: Gateway) -> None:
    # jupyter_client also accepts this name. The model has the kernelspec's name.
    with gateway.kernel("python") as kernel_id:
        assert (gateway.model(kernel_id) or {})["name"] == "python3"
        assert runs(gateway, kernel_id)


@pytest.mark.parametrize("version", [1, 5])
def test_kernel_ids_can_be_uuids_of_any_version(gateway: Gateway, version: int) -> None:
    wanted = str(uuid.uuid1() if version == 1 else uuid.uuid5(uuid.NAMESPACE_DNS, str(uuid.uuid4())))
    body = {"kernel_id": wanted} if version == 1 else {"env": {"KERNEL_ID": wanted}}
    with gateway.kernel(**body) as kernel_id:
        assert kernel_id == wanted
        assert runs(gateway, kernel_id)
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/interrupt").status_code == 204
    assert gateway.model(wanted) is None


def test_a_session_with_an_unknown_kernel_id_starts_a_kernel(gateway: Gateway) -> None:
    wanted = str(uuid.uuid4())
    body = {"path": "x", "type": "console", "name": "", "kernel": {"id": wanted}}
    response = gateway.rest("POST", "api/sessions", json=body)
    assert response.status_code == 201, response.text
    session = response.json()
    # The new kernel has the requested id.
    assert session["kernel"]["id"] == wanted
    assert runs(gateway, wanted)
    assert gateway.rest("DELETE", f"api/sessions/{session['id']}").status_code == 204
