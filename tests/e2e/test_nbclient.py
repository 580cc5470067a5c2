"""nbclient through jupyter_server's gateway client."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from harness.gateway import Gateway
from harness.notebooks import in_thread, notebook, stdout
from harness.waiting import eventually
from harness.wire import KernelSocket
from jupyter_server.gateway.managers import GatewayKernelClient, GatewayKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets import Type

pytestmark = pytest.mark.usefixtures("gateway_client")


def nbclient(*cells: str, **options: Any) -> NotebookClient:
    """A client that runs a notebook with these cells."""
    defaults = {"kernel_manager_class": GatewayKernelManager, "timeout": 60, "iopub_timeout": 60}
    return NotebookClient(notebook(*cells), **{**defaults, **options})


def kernels(gateway: Gateway) -> list[dict[str, Any]]:
    return list(gateway.rest("GET", "api/kernels").json())


def test_a_notebook_runs_to_its_end(open_gateway: Gateway) -> None:
    rich = "from IPython.display import HTML, display\ndisplay(HTML('<b>rich</b>'))\nx * 7"
    lines = "for i in range(5000): print(i, flush=True)"
    executions: list[dict[str, Any]] = []

    def look(cell: object, cell_index: int, execute_reply: object) -> None:
        (kernel,) = kernels(open_gateway)
        found = open_gateway.rest("GET", f"api/kernels/{kernel['id']}/executions").json()
        executions[:] = found["executions"]

    client = nbclient("x = 6\nprint('set')", rich, lines, on_cell_executed=look)
    in_thread(client.execute)
    first, second, third = client.nb.cells
    assert stdout(first) == "set\n"
    assert second.outputs[0]["data"]["text/html"] == "<b>rich</b>"
    assert second.outputs[1]["data"]["text/plain"] == "42"
    assert stdout(third) == "".join(f"{i}\n" for i in range(5000))
    # The gateway records the executions, although this client sends the date of its messages as a number.
    assert sorted(e["execution_count"] for e in executions) == [1, 2, 3]
    assert kernels(open_gateway) == []


def test_an_exception_ends_the_run(open_gateway: Gateway) -> None:
    client = nbclient("1/0", "print('not run')")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        in_thread(client.execute)
    assert stdout(client.nb.cells[1]) == ""
    assert kernels(open_gateway) == []


def test_a_kernel_that_exits_during_a_cell_ends_the_run(open_gateway: Gateway) -> None:
    client = nbclient("import os; os._exit(1)", "print('not run')")
    with pytest.raises((CellExecutionError, DeadKernelError)):
        in_thread(client.execute)
    assert stdout(client.nb.cells[1]) == ""
    assert kernels(open_gateway) == []


def test_a_kernel_killed_during_a_cell_ends_the_run(open_gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        watching: list[KernelSocket] = []

        def watch(**_: object) -> None:
            watching.append(stack.enter_context(open_gateway.socket(client.km.kernel_id, "watching")))

        def end(**_: object) -> None:
            printed = watching[0].until(lambda m: m["header"]["msg_type"] == "stream")
            os.kill(int(printed["content"]["text"]), signal.SIGKILL)

        cell = "import os; print(os.getpid(), flush=True)\nwhile True: pass"
        client = nbclient(cell, on_cell_execute=watch, on_cell_complete=end)
        with pytest.raises((CellExecutionError, DeadKernelError)):
            in_thread(client.execute)
    assert stdout(client.nb.cells[0]).strip().isdecimal()
    assert kernels(open_gateway) == []


def test_a_kernel_deleted_during_a_cell_ends_the_run(open_gateway: Gateway) -> None:
    def delete(kernel_id: str) -> None:
        open_gateway.wait_state(kernel_id, "busy")
        assert open_gateway.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204

    client = nbclient("while True: pass", on_cell_complete=lambda **_: delete(client.km.kernel_id))
    # The client sees either the gateway's error reply or its closed connection first.
    with pytest.raises((CellExecutionError, RuntimeError)):
        in_thread(client.execute)
    eventually(lambda: kernels(open_gateway) == [], "no kernel is left")


class LiveClient(GatewayKernelClient):
    async def is_alive(self) -> bool:
        return bool(await self.parent.is_alive())


class LiveManager(GatewayKernelManager):
    """A manager whose client has a working `is_alive`, called at a timeout. The original needs a provisioner."""

    client_factory = Type(LiveClient, klass=GatewayKernelClient)


def test_a_timeout_interrupts_the_cell(open_gateway: Gateway) -> None:
    timeout: Callable[[Any], int] = lambda cell: 5 if "while" in cell.source else 60
    client = nbclient(
        "x = 6\nprint('on', flush=True)\nwhile True: pass",
        "x * 7",
        kernel_manager_class=LiveManager,
        timeout_func=timeout,
        interrupt_on_timeout=True,
        allow_errors=True,
    )
    in_thread(client.execute)
    first, second = client.nb.cells
    assert stdout(first) == "on\n"
    assert first.outputs[-1]["ename"] == "KeyboardInterrupt"
    assert second.outputs[0]["data"]["text/plain"] == "42"
