"""The gateway's token: a file that each start of the gateway replaces."""

from __future__ import annotations

import secrets

from .errors import KernelmuxError
from .paths import Paths, write_private


def new_token(paths: Paths) -> str:
    """Makes a token and writes it into its file."""
    token = secrets.token_hex(32)
    write_private(paths.token, token)
    return token


def read_token(paths: Paths) -> str:
    """The token of the gateway that was started last.

    Raises:
        KernelmuxError: if the file is missing or not readable.
    """
    try:
        return paths.token.read_text()
    except OSError as error:
        raise KernelmuxError(f"cannot read the gateway's token: {error}") from error
