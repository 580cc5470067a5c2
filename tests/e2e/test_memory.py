"""The gateway's memory is bounded, even for large outputs and slow clients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import requests
from conftest import skip_or_fail
from harness import echo
from harness.executions import get_execution, run
from harness.gateway import Gateway
from harness.process import anonymous_kib
from harness.waiting import eventually

MIB = 1 << 20
# The size of one output, which is one message.
PRINTED = 24 * MIB
PRINT = f"print('x' * {PRINTED}, end='')"


def peak_mib(gateway: Gateway) -> int:
    """The gateway's peak resident memory since its start, including its program."""
    for line in Path(f"/proc/{gateway.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    raise AssertionError("/proc/PID/status has no VmHWM")


def wait_until_ended(gateway: Gateway, kernel_id: str) -> None:
    """Waits for the end of all executions of a kernel, without reading their outputs."""

    def ended() -> bool:
        found = gateway.rest("GET", f"api/kernels/{kernel_id}/executions").json()["executions"]
        return all(execution["ended"] for execution in found)

    eventually(ended, f"the executions of {kernel_id} have ended", 120)


def test_large_outputs_of_many_kernels_are_recorded_one_at_a_time(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway("--message-memory-mib", "32")
    kernels = [gateway.start_kernel()["id"] for _ in range(8)]
    before = peak_mib(gateway)
    msg_ids = {kernel_id: run(gateway, kernel_id, PRINT)["msg_id"] for kernel_id in kernels}
    for kernel_id in kernels:
        wait_until_ended(gateway, kernel_id)
    grown = peak_mib(gateway) - before
    for kernel_id, msg_id in msg_ids.items():
        (output,) = get_execution(gateway, kernel_id, msg_id)["outputs"]
        assert len(output["text"]) == PRINTED
    print(f"peak memory grew by {grown} MiB")
    # One output at a time, in one copy, and what the allocator keeps.
    assert grown < 64, f"{grown} MiB"


def test_stalled_clients_share_a_large_output(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    with ExitStack() as clients:
        for number in range(12):
            clients.enter_context(gateway.socket(kernel_id, f"stalled-{number}"))
        run(gateway, kernel_id, PRINT)
        wait_until_ended(gateway, kernel_id)
        # By the end of this answer, the clients' tasks, which were woken before, have read the output too.
        assert gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false").status_code == 200
        assert anonymous_kib(gateway.pid) >> 10 < 10 * PRINTED // MIB


def test_answers_with_large_outputs_use_bounded_memory(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    kernel_id = gateway.start_kernel()["id"]
    msg_id = run(gateway, kernel_id, PRINT)["msg_id"]
    wait_until_ended(gateway, kernel_id)
    before = peak_mib(gateway)
    address = f"{gateway.url}api/kernels/{kernel_id}/executions/{msg_id}"
    answers = [requests.get(address, headers=gateway.headers(), stream=True, timeout=60) for _ in range(6)]
    # The answers have begun, and are not read yet.
    assert {answer.status_code for answer in answers} == {200}
    assert gateway.rest("GET", "api").status_code == 200
    grown = peak_mib(gateway) - before
    for answer in answers:
        (output,) = answer.json()["outputs"]
        assert len(output["text"]) == PRINTED
    # Each answer holds the text and a copy from which it is written. At most two are built from the log at a time.
    assert grown < (6 * 2 + 2 * 2) * PRINTED // MIB, f"{grown} MiB"


def test_kernels_that_have_ended_take_no_memory_and_little_space(
    built: None, make_home: Callable[[str], Path]
) -> None:
    if not echo.BINARY.exists():
        skip_or_fail(f"no echo-kernel at {echo.BINARY}: build it, or set KERNELMUX_ECHO_BIN")
    gateway = Gateway(make_home("gw"), env=echo.install(make_home("echo")))
    gateway.start()
    try:

        def start_and_end(count: int) -> list[str]:
            kernels = []
            for _ in range(count):
                kernels.append(gateway.start_kernel("echo")["id"])
                assert gateway.rest("DELETE", f"api/kernels/{kernels[-1]}").status_code == 204
            return kernels

        start_and_end(100)
        before, used_before = anonymous_kib(gateway.pid), disk_kib(gateway.data_dir)
        ended = start_and_end(200)
        grown = anonymous_kib(gateway.pid) - before
        print(f"200 kernels: memory grew by {grown} KiB")
        assert grown < 4 * 1024, f"{grown} KiB"
        # The agents of the last kernels may be ending.
        eventually(lambda: disk_kib(gateway.data_dir) - used_before < 200 * 32, "logs without output take little space")
        for kernel_id in ended:
            assert gateway.rest("DELETE", f"api/logs/{kernel_id}").status_code == 204
        eventually(lambda: disk_kib(gateway.data_dir) - used_before < 200, "the files of ended kernels are removed")
    finally:
        gateway.close()


def disk_kib(folder: Path) -> int:
    """The disk space that a folder occupies, in KiB."""
    blocks = 0
    for path in folder.rglob("*"):
        # Files of kernels that have just ended may be removed during this loop.
        with suppress(FileNotFoundError):
            blocks += path.lstat().st_blocks
    return blocks // 2
