"""The server extension and the prebuilt lab extension for kernels behind kernelmux.

The server extension gives the page access to the part of the gateway's API that it needs, and keeps the kernels of a
restarted server. Without a kernelmux gateway behind the server, both extensions change nothing.
"""

from __future__ import annotations

from ._version import __version__
from .extension import _load_jupyter_server_extension

__all__ = ["__version__", "_load_jupyter_server_extension"]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "kernelmux_lab"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "@kernelmux/lab"}]
