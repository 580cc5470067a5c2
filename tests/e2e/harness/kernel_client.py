"""Clients of jupyter_kernel_client, over REST and a WebSocket without a subprotocol."""

# The package does not support the v1 subprotocol: it reads a key that v1 messages do not have, and drops the message.

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jupyter_kernel_client import JupyterKernelClient

from harness.gateway import Gateway

Connect = Callable[..., JupyterKernelClient]


@contextlib.contextmanager
def kernel_clients(gateway: Gateway) -> Iterator[Connect]:
    """Yields a function that connects a client to a new kernel, or to an existing one with `kernel_id`."""
    clients: list[JupyterKernelClient] = []

    def connect(**options: Any) -> JupyterKernelClient:
        client = JupyterKernelClient(server_url=gateway.url.rstrip("/"), token=gateway.token, **options)
        client.start(timeout=60)
        clients.append(client)
        return client

    yield connect
    # Deleting the kernels closes the connections. A client that closes one itself may wait 10 s for its reading thread.
    for kernel_id in {client.id for client in clients}:
        gateway.rest("DELETE", f"api/kernels/{kernel_id}")
    for client in clients:
        client.stop(shutdown_kernel=False)
