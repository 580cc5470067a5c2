"""A real JupyterHub whose users start kernels with the tokens that it gives them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import websocket
from harness.gateway import Gateway, clean_env, free_port
from harness.process import Process
from harness.waiting import eventually

CONFIG = Path(__file__).parent / "jupyterhub-service" / "jupyterhub_config.py"


class Hub:
    """A JupyterHub without a proxy, of which only the API is used."""

    def __init__(self, home: Path, venv: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.api = f"{self.url}/hub/api"
        token = secrets.token_hex(16)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"token {token}"
        env = clean_env(home, HUB_BIND_URL=self.url, TESTS_TOKEN=token)
        self.process = Process([str(venv / "bin" / "jupyterhub"), "-f", str(CONFIG)], env, home, "the hub")
        eventually(self.is_up, "the hub answers", 60)

    def is_up(self) -> bool:
        assert self.process.running(), self.process.output
        try:
            return self.session.get(self.api, timeout=5).ok
        except requests.ConnectionError:
            return False

    def token(self, user: str, *scopes: str) -> str:
        """A token of this user, with these scopes or all that the user has."""
        self.session.post(f"{self.api}/users/{user}", timeout=30)
        body = {"scopes": scopes} if scopes else {}
        made = self.session.post(f"{self.api}/users/{user}/tokens", json=body, timeout=30)
        assert made.status_code == 201, made.text
        return str(made.json()["token"])

    def revoke_all(self, user: str) -> None:
        tokens = self.session.get(f"{self.api}/users/{user}/tokens", timeout=30).json()["api_tokens"]
        for token in tokens:
            self.session.delete(f"{self.api}/users/{user}/tokens/{token['id']}", timeout=30)

    def close(self) -> None:
        self.process.stop()
        self.session.close()


@pytest.fixture
def hub(make_home: Callable[[str], Path], make_venv: Callable[[str], Path]) -> Iterator[Hub]:
    hub = Hub(make_home("hub"), make_venv("jupyterhub-service"))
    yield hub
    hub.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"token {token}"}


def test_two_users_of_a_hub_cannot_see_each_others_kernels(hub: Hub, start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(
        "--jupyterhub-api", hub.api, "--jupyterhub-service", "kernelmux", "--group-roles", "admins=admin"
    )
    ada, bob = hub.token("ada"), hub.token("bob")
    kernels = {}
    for name, token in (("ada", ada), ("bob", bob)):
        started = gateway.rest("POST", "api/kernels", json={"name": "python3"}, headers=bearer(token))
        assert started.status_code == 201, started.text
        kernels[name] = started.json()["id"]
        with gateway.socket(kernels[name], name, token=token) as client:
            assert client.run("import os; print(os.environ['KERNEL_USERNAME'])").strip() == name
    for token, own, other in ((ada, "ada", "bob"), (bob, "bob", "ada")):
        listed = gateway.rest("GET", "api/kernels", headers=bearer(token)).json()
        assert [kernel["id"] for kernel in listed] == [kernels[own]]
        assert gateway.rest("GET", f"api/kernels/{kernels[other]}", headers=bearer(token)).status_code == 404
        assert gateway.rest("DELETE", f"api/kernels/{kernels[other]}", headers=bearer(token)).status_code == 404
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            gateway.socket(kernels[other], "x", token=token)
        assert refused.value.status_code == 404
    assert gateway.rest("GET", "api/me", headers=bearer(ada)).json()["identity"]["username"] == "ada"

    # A token that the hub gave for something else is not accepted, nor is one that it never gave.
    for wrong in (hub.token("ada", "read:users!user"), secrets.token_hex(16)):
        assert gateway.rest("GET", "api", headers=bearer(wrong)).status_code == 401
    assert ada not in gateway.output and bob not in gateway.output


def test_a_token_that_the_hub_revokes_stops_working(hub: Hub, start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway("--jupyterhub-api", hub.api)
    ada = hub.token("ada")
    assert gateway.rest("GET", "api", headers=bearer(ada)).status_code == 200
    hub.revoke_all("ada")
    # The gateway checks a token again within a minute.
    refused = lambda: gateway.rest("GET", "api", headers=bearer(ada)).status_code == 401
    eventually(refused, "the token is refused", 120, every=1)
