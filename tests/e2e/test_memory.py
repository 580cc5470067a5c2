"""What the gateway has in memory is bounded, whatever kernels print at once and however slowly clients read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import requests
from harness.executions import one, run
from harness.gateway import Gateway
from harness.process import own_kib
from harness.waiting import eventually

MIB = 1 << 20
# Of one output, which is one message.
PRINTED = 24 * MIB
PRINT = f"print('x' * {PRINTED}, end='')"


def most_mib(gateway: Gateway) -> int:
    """What the gateway had in memory at most since its start, its program included."""
    for line in Path(f"/proc/{gateway.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    raise AssertionError("no VmHWM")


def wait_until_ended(gateway: Gateway, kernel_id: str) -> None:
    def ended() -> bool:
        found = gateway.rest("GET", f"api/kernels/{kernel_id}/executions").json()["executions"]
        return all(execution["ended"] for execution in found)

    eventually(ended, f"all is printed in {kernel_id}", 120)


def test_large_outputs_of_many_kernels_take_turns(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway("--message-memory-mib", "32")
    kernels = [gateway.start_kernel()["id"] for _ in range(8)]
    before = most_mib(gateway)
    asked = {kernel_id: run(gateway, kernel_id, PRINT)["msg_id"] for kernel_id in kernels}
    for kernel_id in kernels:
        wait_until_ended(gateway, kernel_id)
    grown = most_mib(gateway) - before
    for kernel_id, msg_id in asked.items():
        (output,) = one(gateway, kernel_id, msg_id)["outputs"]
        assert len(output["text"]) == PRINTED
    # One at a time, of which there are copies while it is stored, as many as eight; and not as many as there are kernels.
    assert grown < 256, f"{grown} MiB"


def test_clients_that_stand_still_share_a_large_output(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    with ExitStack() as clients:
        for number in range(12):
            clients.enter_context(gateway.socket(kernel_id, f"still-{number}"))
        run(gateway, kernel_id, PRINT)
        wait_until_ended(gateway, kernel_id)
        # Those that were woken first have read it by now, too.
        assert gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false").status_code == 200
        assert own_kib(gateway.pid) >> 10 < 10 * PRINTED // MIB


def test_an_answer_with_outputs_is_not_held_whole_for_each_client(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    msg_id = run(gateway, kernel_id, PRINT)["msg_id"]
    wait_until_ended(gateway, kernel_id)
    before = most_mib(gateway)
    address = f"{gateway.url}api/kernels/{kernel_id}/executions/{msg_id}"
    answers = [requests.get(address, headers=gateway.headers(), stream=True, timeout=60) for _ in range(6)]
    # They have begun, and nobody reads them.
    assert {answer.status_code for answer in answers} == {200}
    assert gateway.rest("GET", "api").status_code == 200
    grown = most_mib(gateway) - before
    for answer in answers:
        (output,) = answer.json()["outputs"]
        assert len(output["text"]) == PRINTED
    # Each holds the text and a copy that is written from; two are folded at a time.
    assert grown < (6 * 2 + 2 * 2) * PRINTED // MIB, f"{grown} MiB"
