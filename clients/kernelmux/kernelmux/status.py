"""`kernelmux status`: lists the kernels."""

from __future__ import annotations

from .file_lock import held
from .kernel_table import kernel_table
from .lab_servers import running_servers
from .paths import Paths
from .user_gateway import UserGateway


def run_status() -> int:
    """Prints the gateway's address and its kernels. Returns the exit status, 1 if no gateway runs.

    Raises:
        KernelmuxError: if the gateway does not answer.
    """
    paths = Paths.of_user()
    paths.make()
    with held(paths.lock):
        gateway = UserGateway(paths)
        api = gateway.find()
        if api is None:
            print("The gateway is not running.")
            if gateway.has_left_kernels():
                print("It may have left kernels running: `kernelmux lab` finds them, `kernelmux stop` ends them.")
            return 1
        kernels = api.kernels()
        print(f"The gateway is at {api.url}; running JupyterLabs: {len(running_servers(paths.servers))}.")
        print(kernel_table(api, kernels) if kernels else "No kernels are running.")
    return 0
