"""Loads the server extension."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_core.paths import jupyter_data_dir
from jupyter_server.gateway.gateway_client import GatewayClient
from tornado.ioloop import IOLoop
from tornado.web import HTTPError
from traitlets import Bool, Unicode
from traitlets.config import LoggingConfigurable

from . import connection
from .gateway import Gateway
from .proxy import handlers
from .records import Records
from .sessions import SessionKeeper

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

# How long the start of the server waits for the gateway, in seconds.
START_TIMEOUT = 10.0
# The longest pause between two attempts to find the kernels of a gateway that does not answer, in seconds.
MAX_PAUSE = 30.0


class KernelmuxLab(LoggingConfigurable):
    """The settings of the extension."""

    keep_kernels = Bool(
        True, help="Whether kernels keep running when the server ends, and are found when it starts again."
    ).tag(config=True)

    share_url = Unicode(
        "", help="The gateway's address for users of shared pages; by default, the address that the server uses."
    ).tag(config=True)


def _load_jupyter_server_extension(serverapp: ServerApp) -> None:
    """Adds the routes, and takes over the kernels of a previous run of the server."""
    if not GatewayClient.instance().gateway_enabled:
        return
    settings = KernelmuxLab(parent=serverapp)
    gateway = Gateway()
    path = Records.path_for(Path(jupyter_data_dir()), gateway.url, str(serverapp.root_dir))
    records = Records(path, serverapp.log)
    keeper = SessionKeeper(serverapp, gateway, records)
    keeper.install(keep_kernels=settings.keep_kernels)
    web = serverapp.web_app
    routes = handlers(web.settings["base_url"], settings.share_url, gateway=gateway, records=records, keeper=keeper)
    web.add_handlers(".*$", routes)
    page_config = web.settings.setdefault("page_config_data", {})

    async def start() -> None:
        # The lab extension does nothing without this option, so set it even if the gateway does not answer yet.
        page_config["kernelmux"] = True
        try:
            page_config["kernelmux"] = await gateway.is_kernelmux()
            if page_config["kernelmux"]:
                connection.install(web)
            await keeper.adopt()
        except HTTPError as error:
            serverapp.log.warning("kernelmux: the gateway does not answer yet: %s", error)
            IOLoop.current().add_callback(_adopt_later, keeper)

    _before_first_request(start)


def _before_first_request(start: Callable[[], Awaitable[None]]) -> None:
    """Runs `start` before the server serves pages, because a page drops kernels that its server does not list."""
    loop = IOLoop.current()
    if loop.asyncio_loop.is_running():  # type: ignore[attr-defined]
        loop.add_callback(start)
        return
    try:
        loop.run_sync(start, timeout=START_TIMEOUT)
    except TimeoutError:
        loop.add_callback(start)


async def _adopt_later(keeper: SessionKeeper) -> None:
    pause = 1.0
    while True:
        await asyncio.sleep(pause)
        try:
            await keeper.adopt()
        except HTTPError:
            pause = min(2 * pause, MAX_PAUSE)
        else:
            return
