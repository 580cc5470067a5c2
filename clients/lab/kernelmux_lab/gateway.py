"""Requests to the gateway behind the server."""

from __future__ import annotations

import json
from typing import Any

from jupyter_server.gateway.gateway_client import GatewayClient, gateway_request
from jupyter_server.utils import url_path_join
from tornado.httpclient import HTTPResponse
from tornado.web import HTTPError


class Gateway:
    """The gateway that jupyter_server is configured with, addressed with its token and TLS settings."""

    def __init__(self) -> None:
        self._is_kernelmux: bool | None = None

    @property
    def url(self) -> str:
        return str(GatewayClient.instance().url or "")

    async def request(self, method: str, path: str, body: Any = None) -> HTTPResponse:
        """Sends a request to a path below the gateway's base URL.

        Raises:
            HTTPError: with the gateway's status if it refuses the request, or 503 if it is not reachable.
        """
        options: dict[str, Any] = {"method": method}
        if body is not None:
            options["body"] = json.dumps(body)
            options["headers"] = {"Content-Type": "application/json"}
        try:
            return await gateway_request(url_path_join(self.url, path), **options)
        except OSError as error:
            raise HTTPError(503, f"The gateway is not reachable: {type(error).__name__}") from error

    async def json(self, method: str, path: str, body: Any = None) -> Any:
        """Like `request`, with the decoded body."""
        return json.loads((await self.request(method, path, body)).body or b"null")

    async def is_kernelmux(self) -> bool:
        """Whether the gateway is kernelmux. The result is cached until the server ends.

        Raises:
            HTTPError: if the gateway does not answer.
        """
        if self._is_kernelmux is None:
            model = await self.json("GET", "api")
            self._is_kernelmux = isinstance(model, dict) and ("kernelmux" in model or await self._has_logs())
        return self._is_kernelmux

    async def _has_logs(self) -> bool:
        """Whether the gateway keeps logs of kernels. Detects versions that do not report `kernelmux` in `GET /api`."""
        try:
            logs = await self.json("GET", "api/logs")
        except HTTPError as error:
            if error.status_code >= 500:
                raise
            return False
        return isinstance(logs, (list, dict))
