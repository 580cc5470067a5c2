"""jupyter_kernel_client through the gateway."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway import Gateway
from harness.kernel_client import Connect, kernel_clients
from jupyter_kernel_client import JupyterKernelClient


@pytest.fixture(scope="module")
def connect(gateway: Gateway) -> Iterator[Connect]:
    with kernel_clients(gateway) as connect:
        yield connect


@pytest.fixture(scope="module")
def kernel(connect: Connect) -> JupyterKernelClient:
    """A kernel shared by all tests. Each relies only on state that it sets itself."""
    return connect()


def text(reply: dict[str, Any]) -> str:
    """The printed text and the result of a successful execution."""
    assert reply["status"] == "ok", reply
    return "".join(o.get("text") or o["data"]["text/plain"] for o in reply["outputs"])


def test_execute(kernel: JupyterKernelClient) -> None:
    reply = kernel.execute("x = 6\nprint('set')\nx * 7")
    assert text(reply) == "set\n42"
    assert reply["execution_count"] >= 1
    failed = kernel.execute("1/0")
    assert failed["status"] == "error"
    assert failed["outputs"][0]["ename"] == "ZeroDivisionError"


def test_output_is_complete(kernel: JupyterKernelClient) -> None:
    printed = text(kernel.execute("for i in range(5000): print(i, flush=True)", timeout=60))
    assert printed == "".join(f"{i}\n" for i in range(5000))


def test_variables(kernel: JupyterKernelClient) -> None:
    kernel.set_variable("given", {"a": [1, 2, 3]})
    assert text(kernel.execute("given['a'].append(4); given")) == "{'a': [1, 2, 3, 4]}"
    assert kernel.get_variable("given") == {"a": [1, 2, 3, 4]}
    assert "given" in [variable["name"] for variable in kernel.list_variables()]


def test_stdin(kernel: JupyterKernelClient) -> None:
    prompts = []

    def answer(request: dict[str, Any]) -> None:
        prompts.append(request["content"]["prompt"])
        kernel._manager.client.input("Ada")

    code = "name = input('Who? ')\nprint('Hello', name)"
    assert text(kernel.execute(code, allow_stdin=True, stdin_hook=answer)) == "Hello Ada\n"
    assert prompts == ["Who? "]


def test_interrupt(kernel: JupyterKernelClient) -> None:
    running = threading.Event()

    def interrupt() -> None:
        assert running.wait(60)
        kernel.interrupt()

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    reply = kernel.execute_interactive(
        "print('on', flush=True)\nwhile True: pass",
        timeout=60,
        output_hook=lambda message: running.set() if message["msg_type"] == "stream" else None,
    )
    interrupter.join()
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert text(kernel.execute("6 * 7")) == "42"


def test_restart(kernel: JupyterKernelClient) -> None:
    kernel.execute("kept = 1")
    kernel_id = kernel.id
    kernel.restart()
    assert kernel.is_alive() and kernel.id == kernel_id
    assert text(kernel.execute("'kept' in globals()")) == "False"


def test_a_kernels_death_fails_its_cell_and_the_next_one_runs(kernel: JupyterKernelClient) -> None:
    assert kernel.execute("import os; os._exit(1)", timeout=60)["status"] == "error"
    assert text(kernel.execute("6 * 7", timeout=60)) == "42"


def test_a_second_client_connects_to_the_same_kernel(connect: Connect, kernel: JupyterKernelClient) -> None:
    kernel.execute("shared = 42")
    assert kernel.id in [model["id"] for model in kernel.list_kernels()]
    assert text(connect(kernel_id=kernel.id).execute("shared")) == "42"
