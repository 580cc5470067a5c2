"""`kernelmux stop`: ends the gateway, its kernels and JupyterLab."""

from __future__ import annotations

import sys

from .errors import KernelmuxError
from .file_lock import held
from .kernel_table import kernel_table
from .lab_servers import running_servers, stop_servers
from .paths import Paths
from .user_gateway import UserGateway


def run_stop(*, confirmed: bool) -> int:
    """Lists the kernels and ends them, after a confirmation if there are any. Returns the exit status.

    Raises:
        KernelmuxError: if the user cannot be asked, or a process does not end.
    """
    paths = Paths.of_user()
    paths.make()
    kernels = list_kernels(paths)
    # The lock is not held while the user decides.
    if kernels and not confirmed and not confirm(f"End {counted(kernels, 'kernel')}?"):
        print("Nothing was ended.")
        return 1
    with held(paths.lock):
        servers = len(running_servers(paths.servers))
        if not stop_servers(paths.servers):
            raise KernelmuxError("a JupyterLab server does not end")
        gateway_ran = UserGateway(paths).stop()
    ended = [counted(kernels, "kernel")] if kernels else []
    ended += ["the gateway"] if gateway_ran else []
    ended += [counted(servers, "JupyterLab")] if servers else []
    print(f"Ended: {', '.join(ended)}." if ended else "Nothing is running.")
    return 0


def list_kernels(paths: Paths) -> int:
    """Prints the kernels and returns their number."""
    with held(paths.lock):
        gateway = UserGateway(paths)
        api = gateway.find()
        if api is None and gateway.has_left_kernels():
            # Only a gateway can find out which kernels are still running, and end them.
            api = gateway.find_or_start()
        kernels = api.kernels() if api else []
        if api and kernels:
            print(kernel_table(api, kernels), flush=True)
        return len(kernels)


def confirm(question: str) -> bool:
    """Asks the user.

    Raises:
        KernelmuxError: if the input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise KernelmuxError("cannot ask for confirmation without a terminal; `kernelmux stop --yes` ends the kernels")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
