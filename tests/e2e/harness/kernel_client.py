"""Clients of jupyter_kernel_client, over REST and a WebSocket without a subprotocol."""

# Not over its `V1`: it formats a log line by a key that its own v1 messages do not have, and drops each of them.

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jupyter_kernel_client import JupyterKernelClient

from harness.gateway import Gateway

Connect = Callable[..., JupyterKernelClient]


@contextlib.contextmanager
def kernel_clients(gateway: Gateway) -> Iterator[Connect]:
    """Makes connected clients: of a new kernel, or with `kernel_id` of that one."""
    clients: list[JupyterKernelClient] = []

    def connect(**options: Any) -> JupyterKernelClient:
        client = JupyterKernelClient(server_url=gateway.url.rstrip("/"), token=gateway.token, **options)
        client.start(timeout=60)
        clients.append(client)
        return client

    yield connect
    # A client that closes the connection itself may wait for 10 s until its reading thread sees that.
    for kernel_id in {client.id for client in clients}:
        gateway.rest("DELETE", f"api/kernels/{kernel_id}")
    for client in clients:
        client.stop(shutdown_kernel=False)
