"""The messages a client without a subprotocol receives right after a kernel's start, and the minimum it must send."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.gateway import Gateway
from harness.wire import Message, execute_request, parent_of, reply_of, text_of

KERNELS = 10


@pytest.fixture(scope="module")
def unsolicited(gateway: Gateway) -> list[Message]:
    """The messages without a parent that two connections to each new kernel receive."""

    def start(_: int) -> list[Message]:
        with gateway.kernel() as kernel_id, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(gateway.socket(kernel_id, f"s{n}")) for n in range(2)]
            gateway.wait_state(kernel_id, "idle")
            # Messages arrive in order, so once the reply has arrived, no earlier message is outstanding.
            for client in clients:
                client.finish(client.request("kernel_info_request"))
            return [m for client in clients for m in client.seen if parent_of(m) is None]

    with ThreadPoolExecutor(4) as pool:
        return [m for messages in pool.map(start, range(KERNELS)) for m in messages]


def states(messages: list[Message]) -> set[str]:
    return {m["content"]["execution_state"] for m in messages if m["header"]["msg_type"] == "status"}


def test_clients_receive_no_unsolicited_idle_or_busy_status(unsolicited: list[Message]) -> None:
    assert not states(unsolicited) & {"idle", "busy"}


def test_clients_receive_no_status_of_the_start(unsolicited: list[Message]) -> None:
    # Many clients read `parent_header["msg_id"]` of every message. Messages about the start have none, so the gateway
    # withholds them, as jupyter_server does. Output during the start, such as a warning, is delivered.
    assert not [m["header"]["msg_type"] for m in unsolicited if m["header"]["msg_type"] != "stream"]


@pytest.fixture(scope="module")
def kernel(gateway: Gateway) -> str:
    return str(gateway.start_kernel()["id"])


@pytest.mark.parametrize("kind", ["header only", "with all fields", "no channel"])
def test_a_header_with_only_an_id_and_a_type_is_accepted(gateway: Gateway, kernel: str, kind: str) -> None:
    msg_id = f"minimal {kind}"
    request = {
        "header": {"msg_id": msg_id, "msg_type": "execute_request"},
        "parent_header": {},
        "metadata": {},
        "content": execute_request("6 * 7"),
        "channel": "shell",
    }
    if kind == "header only":
        del request["parent_header"], request["metadata"]
    if kind == "no channel":
        del request["channel"]
    with gateway.socket(kernel, "minimal") as client:
        client.socket.send(json.dumps(request))
        answers = client.finish(msg_id)
        assert reply_of(answers)["content"]["status"] == "ok"
        assert text_of(answers) == "42"
