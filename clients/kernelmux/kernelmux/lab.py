"""`kernelmux lab`: JupyterLab with the kernels of the user's gateway."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from types import FrameType
from typing import Any

from . import __version__
from .file_lock import held
from .lab_servers import registered
from .paths import Paths
from .user_gateway import State, UserGateway

NOTICE = """\
Ctrl-C, or closing this terminal, ends JupyterLab. Kernels keep running, and `kernelmux lab` finds them again.
`kernelmux status` lists them, `kernelmux stop` ends them."""


def run_lab(args: list[str]) -> None:
    """Starts the gateway if it is not running, and runs JupyterLab with `args` until a signal ends it.

    Raises:
        KernelmuxError: if the gateway does not start.
    """
    paths = Paths.of_user()
    paths.make()
    with ExitStack() as registration:
        with held(paths.lock):
            gateway = UserGateway(paths)
            url = gateway.find_or_start().url
            # Registers while the lock is held, so that `kernelmux stop` also ends this server.
            registration.enter_context(registered(paths.servers))
        if gateway.state:
            warn_of_differences(gateway.state)
        serve(url, args)


def warn_of_differences(state: State) -> None:
    """Warns if the running gateway was started by another installation of kernelmux."""
    if (state.prefix, state.version) != (sys.prefix, __version__):
        print(
            f"The gateway was started by kernelmux {state.version} in {state.prefix}, and runs kernels of that Python "
            f"installation. After `kernelmux stop`, kernelmux {__version__} in {sys.prefix} starts its own gateway.",
            file=sys.stderr,
        )


def serve(gateway_url: str, args: list[str]) -> None:
    """Runs JupyterLab in this process until a signal ends it."""
    # These variables may configure another gateway.
    for name in [name for name in os.environ if name.startswith("JUPYTER_GATEWAY_")]:
        del os.environ[name]
    from jupyterlab.labapp import LabApp  # type: ignore[import-untyped]

    server: Any = LabApp.initialize_server(
        argv=[
            f"--GatewayClient.url={gateway_url}",
            "--GatewayClient.gateway_token_renewer_class=kernelmux.token_renewer.FileTokenRenewer",
            "--ServerApp.ip=127.0.0.1",
            # Ctrl-C loses nothing, so it needs no confirmation.
            "--ServerApp.answer_yes=True",
            # At the level INFO, the server logs that it shuts down the kernels, although they keep running.
            "--ServerApp.log_level=WARN",
            "--LabApp.log_level=WARN",
            *args,
        ]
    )
    stop_on_hangup(server)
    if not server.identity_provider.token_generated:
        # JupyterLab prints its address only with a generated token.
        print(f"JupyterLab is at {server.public_url}")
    print(NOTICE, flush=True)
    server.start()


def stop_on_hangup(server: Any) -> None:
    """Makes SIGHUP end the server as SIGTERM does, unless the process ignores it, as with `nohup`."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        # The terminal is gone, and writing to it would fail.
        devnull = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(devnull, descriptor)
        server.stop(from_signal=True)

    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
