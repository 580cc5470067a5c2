"""Notebooks, and jupyter_server's gateway client, through which nbclient and papermill run them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import nbformat
import pytest
from jupyter_server.gateway.gateway_client import GatewayClient
from nbformat import NotebookNode

from harness.gateway import Gateway

T = TypeVar("T")


def notebook(*cells: str) -> NotebookNode:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return book


def stdout(cell: NotebookNode) -> str:
    return "".join(o["text"] for o in cell.outputs if o.output_type == "stream" and o["name"] == "stdout")


@contextlib.contextmanager
def use_gateway(gateway: Gateway, home: Path) -> Iterator[None]:
    """Connects jupyter_server's gateway client, which is a singleton, to `gateway`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONFIG", "DATA", "RUNTIME"):
            patch.setenv(f"JUPYTER_{name}_DIR", str(home / name.lower()))
        GatewayClient.clear_instance()
        GatewayClient.instance(url=gateway.url.rstrip("/"))
        yield
        GatewayClient.clear_instance()


def in_thread(call: Callable[[], T], timeout: float = 120.0) -> T:
    """Runs `call` in a new thread, because Playwright keeps an event loop running in the main thread."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout)
