"""Users with their own tokens, with real kernels: whose kernels they see, and what ends when their access ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import websocket
from harness.gateway import Gateway
from harness.users import REVOKED_WITHIN, Users, bearer
from harness.waiting import eventually

@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path)


@pytest.fixture
def team(users: Users, start_gateway: Callable[..., Gateway]) -> tuple[Gateway, str, str]:
    """A gateway, and the tokens of its users ada and bob."""
    ada, bob = users.add("ada", "--group", "staff"), users.add("bob")
    return start_gateway("--users-file", str(users.file)), ada, bob


def test_two_users_cannot_see_each_others_kernels(team: tuple[Gateway, str, str], users: Users) -> None:
    gateway, ada, bob = team
    kernel = gateway.rest("POST", "api/kernels", json={"name": "python3"}, headers=bearer(ada)).json()["id"]
    with gateway.socket(kernel, "a", token=ada) as client:
        assert client.run("import os; print(os.environ['KERNEL_USERNAME'])").strip() == "ada"
    claimed = {"name": "python3", "env": {"KERNEL_USERNAME": "ada"}}
    assert gateway.rest("POST", "api/kernels", json=claimed, headers=bearer(bob)).status_code == 403

    unknown = "00000000-0000-4000-8000-000000000000"
    for method, path in [
        ("GET", "api/kernels/ID"),
        ("GET", "api/kernels/ID/log"),
        ("GET", "api/kernels/ID/executions"),
        ("POST", "api/kernels/ID/interrupt"),
        ("DELETE", "api/kernels/ID"),
        ("DELETE", "api/logs/ID"),
    ]:
        own, none = (
            gateway.rest(method, path.replace("ID", id), headers=bearer(bob)) for id in (kernel, unknown)
        )
        assert own.status_code == 404, (method, path)
        assert own.text.replace(kernel, "ID") == none.text.replace(unknown, "ID")
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        gateway.socket(kernel, "b", token=bob)
    assert refused.value.status_code == 404
    for path in ("api/kernels", "api/logs", "api/sessions"):
        assert gateway.rest("GET", path, headers=bearer(bob)).json() == []
    assert [found["id"] for found in gateway.rest("GET", "api/kernels", headers=bearer(ada)).json()] == [kernel]

    # The owners are known after a restart, also of kernels that have ended.
    gateway.stop()
    gateway.start()
    assert gateway.rest("GET", "api/logs", headers=bearer(bob)).json() == []
    assert [log["kernel_id"] for log in gateway.rest("GET", "api/logs", headers=bearer(ada)).json()] == [kernel]
    assert gateway.rest("GET", f"api/kernels/{kernel}/executions", headers=bearer(ada)).status_code == 200
    assert gateway.rest("GET", f"api/kernels/{kernel}/executions", headers=bearer(bob)).status_code == 404
    assert ada not in gateway.output and bob not in gateway.output and "argon2" not in gateway.output
    assert users.run("list") == "ada\tuser\tstaff\nbob\tuser\t\n"


def test_the_streams_of_a_removed_user_end_while_a_kernel_prints(team: tuple[Gateway, str, str], users: Users) -> None:
    gateway, ada, _ = team
    kernel = gateway.rest("POST", "api/kernels", json={"name": "python3"}, headers=bearer(ada)).json()["id"]
    code = "import time\nfor i in range(100_000):\n    print(i, flush=True)\n    time.sleep(0.01)"
    run = gateway.rest("POST", f"api/kernels/{kernel}/executions", json={"code": code, "msg_id": "m"}, headers=bearer(ada))
    assert run.status_code == 202, run.text
    url = f"{gateway.url}api/kernels/{kernel}/log"
    first, ended = threading.Event(), threading.Event()

    def follow() -> None:
        with requests.get(url, headers=bearer(ada), stream=True, timeout=60) as stream:
            for line in stream.iter_lines():
                if b"stream" in line:
                    first.set()
        ended.set()

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    socket = gateway.socket(kernel, "a", token=ada)
    assert first.wait(60)
    users.run("remove", "ada")
    removed = time.monotonic()
    with pytest.raises(ConnectionError, match="the permission to use the kernel has ended"):
        while True:
            socket.receive()
    assert ended.wait(60)
    assert time.monotonic() - removed < REVOKED_WITHIN
    assert gateway.rest("GET", "api/kernels", headers=bearer(ada)).status_code == 401

    # The kernel goes on, and those who may see it can end it.
    def outputs() -> str:
        return gateway.rest("GET", f"api/kernels/{kernel}/executions/m").text

    before = len(outputs())
    eventually(lambda: len(outputs()) > before, "the kernel prints more")
    olga = users.add("olga", "--role", "operator")
    ended_by_operator = lambda: gateway.rest("DELETE", f"api/kernels/{kernel}", headers=bearer(olga)).status_code
    assert eventually(lambda: ended_by_operator() == 204, "the operator's token works")


def test_a_new_token_replaces_the_old_one(team: tuple[Gateway, str, str], users: Users) -> None:
    gateway, ada, bob = team
    status = lambda token: gateway.rest("GET", "api", headers=bearer(token)).status_code
    assert (status(ada), status(bob)) == (200, 200)
    new = users.add("ada", "--replace", "--role", "viewer")
    eventually(lambda: status(new) == 200, "the new token works")
    assert (status(ada), status(bob)) == (401, 200)
    start = gateway.rest("POST", "api/kernels", json={"name": "python3"}, headers=bearer(new))
    assert start.status_code == 403 and "viewer" in start.json()["message"]
