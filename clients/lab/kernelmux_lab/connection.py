"""Closes connections to the gateway whose page has disconnected while they were being opened.

JupyterLab always abandons its first connection to a kernel, because jupyter_server's gateway connection selects no
subprotocol. jupyter_server then leaves its own connection to the gateway open. Without this module, the kernel
would have a client as long as the server runs, and would never be culled.
"""

from __future__ import annotations

from asyncio import Future
from typing import TYPE_CHECKING, Any

from jupyter_server.gateway.connections import GatewayWebSocketConnection

if TYPE_CHECKING:
    from tornado.web import Application

_SETTING = "kernel_websocket_connection_class"


class ClosingConnection(GatewayWebSocketConnection):
    """A connection to the gateway that is closed if it opens after its page has disconnected."""

    def disconnect(self) -> None:  # type: ignore[override]
        if self.ws is None and self.ws_future is not None and not self.ws_future.done():
            # Cancelling the future would not end the connection. It is closed once it is open.
            self.disconnected = True
        else:
            super().disconnect()

    def _connection_done(self, fut: Future[Any]) -> None:
        super()._connection_done(fut)
        if self.disconnected and not fut.cancelled() and fut.exception() is None:
            fut.result().close()


def install(app: Application) -> None:
    """Installs the class, unless the server is configured with another one."""
    if app.settings.get(_SETTING) is GatewayWebSocketConnection:
        app.settings[_SETTING] = ClosingConnection
