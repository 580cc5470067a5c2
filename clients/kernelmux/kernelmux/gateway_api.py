"""Requests to the gateway."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from .errors import KernelmuxError

# Timeout of a request, in seconds.
TIMEOUT = 10.0


@dataclass(frozen=True)
class Kernel:
    """A kernel as the gateway lists it."""

    id: str
    name: str
    state: str
    last_activity: str


class GatewayApi:
    """The REST API of a gateway on this machine."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token
        # Ignores the user's proxy settings, because proxies cannot reach this machine's loopback address.
        self._opener = build_opener(ProxyHandler({}))

    def get(self, path: str, **query: str) -> Any:
        """The decoded response.

        Raises:
            KernelmuxError: if there is no response, or not a successful one.
        """
        url = f"{self.url}{path}?{urlencode(query)}" if query else f"{self.url}{path}"
        request = Request(url, headers={"Authorization": f"token {self._token}"})
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                return json.load(response)
        except HTTPError as error:
            raise KernelmuxError(f"the gateway at {self.url} refused a request: {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise KernelmuxError(f"the gateway at {self.url} does not answer: {error}") from error

    def answers(self) -> bool:
        """Whether a gateway that accepts the token answers."""
        try:
            return isinstance(self.get("api/kernels"), list)
        except KernelmuxError:
            return False

    def kernels(self) -> list[Kernel]:
        """All kernels of the gateway, the longest inactive first."""
        kernels = [
            Kernel(model["id"], model["name"], model["execution_state"], model["last_activity"])
            for model in self.get("api/kernels")
        ]
        return sorted(kernels, key=lambda kernel: kernel.last_activity)

    def busy_since(self, kernel_id: str) -> str | None:
        """When the kernel's running code was started; `None` if the gateway lists no running code."""
        try:
            running = self.get(f"api/kernels/{kernel_id}/executions", status="running", limit="1")["executions"]
        except KernelmuxError:
            # The kernel may have ended since it was listed.
            return None
        return running[0]["started"] if running else None
