"""Which origins may open a WebSocket: any with the token, as in jupyter_server; otherwise only the gateway's own."""

from __future__ import annotations

import pytest
import websocket
from harness.gateway import Gateway
from harness.wire import V1

FOREIGN = "Origin: http://evil.example"


def status(gateway: Gateway, kernel_id: str, *headers: str, **options: object) -> int:
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        gateway.socket(kernel_id, "page", headers=list(headers), **options)
    return int(refused.value.status_code)


@pytest.fixture(scope="module")
def kernel(gateway: Gateway) -> str:
    return str(gateway.start_kernel()["id"])


@pytest.mark.parametrize("subprotocols", [None, [V1]])
@pytest.mark.parametrize("origin", [FOREIGN, "Origin: null", "Origin: http://127.0.0.1.evil.example"])
def test_a_foreign_origin_with_the_token_is_accepted(
    gateway: Gateway, kernel: str, origin: str, subprotocols: list[str] | None
) -> None:
    with gateway.socket(kernel, "page", headers=[origin], subprotocols=subprotocols) as client:
        assert client.run("6 * 7") == "42"


def test_a_foreign_origin_with_the_token_in_a_header_is_accepted(gateway: Gateway, kernel: str) -> None:
    token = f"Authorization: token {gateway.token}"
    with gateway.socket(kernel, "page", headers=[FOREIGN, token], token=None) as client:
        assert client.run("6 * 7") == "42"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_foreign_origin_without_the_token_is_refused(gateway: Gateway, kernel: str, token: str | None) -> None:
    assert status(gateway, kernel, FOREIGN, token=token) in (401, 403)


# Otherwise any page in the user's browser could run code, including one that uses DNS rebinding.
@pytest.mark.parametrize("token", [None, "any"])
def test_without_access_control_only_the_gateways_origin_is_accepted(open_gateway: Gateway, token: str | None) -> None:
    with open_gateway.kernel() as kernel_id:
        for origin in (FOREIGN, "Origin: null", f"Origin: http://rebound.example:{open_gateway.port}"):
            assert status(open_gateway, kernel_id, origin, token=token) == 403
        own = f"Origin: {open_gateway.url.rstrip('/')}"
        with open_gateway.socket(kernel_id, "page", headers=[own], token=token) as client:
            assert client.run("6 * 7") == "42"
