"""Gives JupyterLab's server the gateway's token."""

from __future__ import annotations

from typing import Any

from jupyter_server.gateway.gateway_client import GatewayTokenRenewerBase

from .errors import KernelmuxError
from .gateway_token import read_token
from .paths import Paths


class FileTokenRenewer(GatewayTokenRenewerBase):
    """Reads the token from its file for each request.

    jupyter_server logs its environment variables when it starts a kernel, so the token must not be one of them. After a
    restart of the gateway, the file has the new token.
    """

    def get_token(self, auth_header_key: str, auth_scheme: str | None, auth_token: str, **kwargs: Any) -> str:
        try:
            return read_token(Paths.of_user())
        except KernelmuxError:
            # `kernelmux stop` has removed the file.
            return auth_token
