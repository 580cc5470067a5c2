"""The server extension of kernelmux-lab: which requests of pages it passes on to the gateway."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from harness.executions import run, wait_ended
from harness.gateway import Gateway
from harness.lab import LAB_TOKEN, Lab


@pytest.fixture(scope="module")
def lab(restoring_lab: Lab) -> Lab:
    return restoring_lab


@pytest.fixture(scope="module")
def other_gateway(make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    gateway = Gateway(make_home("gw-other"), peer="kernel-gateway").start()
    yield gateway
    gateway.close()


def ask(lab: Lab, method: str, path: str, **options: Any) -> requests.Response:
    options.setdefault("headers", {"Authorization": f"token {LAB_TOKEN}"})
    return requests.request(method, f"{lab.url}/{path}", timeout=60, **options)


@pytest.fixture(scope="module")
def kernel_id(lab: Lab) -> str:
    """A kernel of the server."""
    response = ask(lab, "POST", "api/kernels", json={"name": "python3"})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def test_executions_of_own_kernels_are_run_and_read(lab: Lab, gateway: Gateway, kernel_id: str) -> None:
    path = f"kernelmux/api/kernels/{kernel_id}"
    body = {"code": "print(6 * 7)", "cellId": "a-cell"}
    started = ask(lab, "POST", f"{path}/executions", json=body)
    assert started.status_code == 202, started.text
    msg_id = started.json()["msg_id"]
    wait_ended(gateway, kernel_id, msg_id)
    listed = ask(lab, "GET", f"{path}/executions?latest=cell&cellId=a-cell").json()
    assert [execution["msg_id"] for execution in listed["executions"]] == [msg_id]
    one = ask(lab, "GET", f"{path}/executions/{msg_id}").json()
    assert "".join(one["outputs"][0]["text"]) == "42\n"
    assert ask(lab, "GET", path).json()["id"] == kernel_id


def test_one_request_lists_executions_with_outputs_newer_than_the_file(lab: Lab, gateway: Gateway) -> None:
    lab.write_notebook("ended", ["print(6 * 7)"])
    assert ask(lab, "GET", "kernelmux/ended?path=ended.ipynb").json() == {"kernel": None, "executions": []}
    session = {"path": "ended.ipynb", "name": "ended.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    kernel_id = ask(lab, "POST", "api/sessions", json=session).json()["kernel"]["id"]
    msg_id = run(gateway, kernel_id, "print(6 * 7)", cellId="a-cell")["msg_id"]
    wait_ended(gateway, kernel_id, msg_id)

    def ended() -> dict[str, Any]:
        answer = ask(lab, "GET", "kernelmux/ended?path=ended.ipynb").json()
        assert answer["kernel"] == kernel_id
        [execution] = answer["executions"]
        return dict(execution)

    assert ended()["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "42\n"}]
    # Once the document is saved, it contains the outputs.
    lab.write_notebook("ended", ["print(6 * 7)"])
    assert "outputs" not in ended()


def test_kernels_of_other_clients_are_not_found(lab: Lab, gateway: Gateway) -> None:
    with gateway.kernel() as foreign:
        msg_id = run(gateway, foreign, "6 * 7")["msg_id"]
        for path in ("", "/executions", f"/executions/{msg_id}"):
            response = ask(lab, "GET", f"kernelmux/api/kernels/{foreign}{path}")
            assert response.status_code == 404
        response = ask(lab, "POST", f"kernelmux/api/kernels/{foreign}/executions", json={"code": "1"})
        assert response.status_code == 404
        assert ask(lab, "GET", f"kernelmux/api/kernels/{uuid.uuid4()}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "", 405),
        ("POST", "/restart", 404),
        ("POST", "/interrupt", 404),
        ("GET", "/log", 404),
        ("GET", "/channels", 404),
        ("DELETE", "/executions", 405),
        ("GET", "/executions/a/../../..", 404),
    ],
)
def test_other_requests_are_not_passed_on(
    lab: Lab, gateway: Gateway, kernel_id: str, method: str, path: str, status: int
) -> None:
    request = requests.Request(method, lab.url, headers={"Authorization": f"token {LAB_TOKEN}"}).prepare()
    # Set after `prepare`, which would simplify the address.
    request.url = f"{lab.url}/kernelmux/api/kernels/{kernel_id}{path}"
    with requests.Session() as session:
        assert session.send(request, timeout=60).status_code == status
    assert gateway.model(kernel_id) is not None
    for path in ("api/logs", "api/kernels", "api/kernelspecs", "metrics"):
        assert ask(lab, "GET", f"kernelmux/{path}").status_code == 404


def test_only_known_parameters_are_passed_on(lab: Lab, gateway: Gateway, kernel_id: str) -> None:
    path = f"kernelmux/api/kernels/{kernel_id}/executions"
    assert ask(lab, "GET", f"{path}?limit=x").status_code == 400
    assert ask(lab, "GET", f"{path}?unknown=x").status_code == 200


def test_requests_without_a_user_are_refused(lab: Lab, kernel_id: str) -> None:
    own = f"api/kernels/{kernel_id}"
    for path in (own, f"{own}/executions", "notebook?path=a.ipynb", "ended?path=a.ipynb"):
        response = ask(lab, "GET", f"kernelmux/{path}", headers={}, allow_redirects=False)
        assert response.status_code == 403


def test_a_page_of_another_site_cannot_run_code(lab: Lab, gateway: Gateway, kernel_id: str) -> None:
    """A browser sends the user's cookie with requests of other sites, but not the XSRF token."""
    with requests.Session() as browser:
        browser.get(f"{lab.url}/lab?token={LAB_TOKEN}", timeout=60)
        address = f"{lab.url}/kernelmux/api/kernels/{kernel_id}/executions"
        body = json.dumps({"code": "6 * 7"})
        assert browser.get(address, timeout=60).status_code == 200
        refused = browser.post(address, data=body, timeout=60)
        assert refused.status_code == 403
        token = {"X-XSRFToken": browser.cookies["_xsrf"]}
        assert browser.post(address, data=body, headers=token, timeout=60).status_code == 202
        foreign = {**token, "Origin": "https://example.org"}
        assert browser.post(address, data=body, headers=foreign, timeout=60).status_code == 404


def test_without_kernelmux_the_addresses_do_not_exist(
    other_gateway: Gateway, make_home: Callable[[str], Path], lab_extension: Path
) -> None:
    lab = Lab(make_home("lab-other"), other_gateway.url.rstrip("/"), other_gateway.token, extension=lab_extension)
    try:
        kernel = ask(lab, "POST", "api/kernels", json={"name": "python3"}).json()["id"]
        own = f"api/kernels/{kernel}"
        for path in (own, f"{own}/executions", "notebook?path=a.ipynb", "ended?path=a.ipynb"):
            assert ask(lab, "GET", f"kernelmux/{path}").status_code == 404
    finally:
        lab.close()


def test_only_the_user_can_read_the_file_of_kernels(lab: Lab, kernel_id: str) -> None:
    [path] = (lab.home / "data" / "kernelmux-lab").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert kernel_id in json.loads(path.read_text())["kernels"]


def test_no_response_contains_the_gateways_token(lab: Lab, gateway: Gateway, kernel_id: str) -> None:
    assert gateway.token is not None
    for path in (f"api/kernels/{kernel_id}", f"api/kernels/{kernel_id}/executions", f"api/kernels/{uuid.uuid4()}"):
        response = ask(lab, "GET", f"kernelmux/{path}")
        assert gateway.token not in response.text + str(response.headers)
