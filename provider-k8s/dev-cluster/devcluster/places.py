"""Where things are, and the cluster's addresses."""

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernelmux" / "dev-cluster"
# One cluster a machine, whichever work tree it was started from: another tree's `up` finds it, or its remains.
STATE = Path(os.environ.get("KERNELMUX_DEV_CLUSTER") or "/var/tmp/kernelmux-dev-cluster")

KUBECONFIG = STATE / "kubeconfig"
# Beside the KUBECONFIG, for machines that have none.
KUBECTL = STATE / "kubectl"
LOGS = STATE / "log"
# Made by the first process inside when all is up.
READY = STATE / "ready"
# The first process, as this side sees it.
PID = STATE / "pid"
# What `down` must put back.
BEFORE = STATE / "before.json"
SOCKET = STATE / "containerd.sock"

NODE = "dev"
# The device on this side; its peer inside is the node's.
DEVICE = "kernelmux-dev"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 6443

PROGRAMS = ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet"]
# A namespace for kernels.
KERNELS = "kernels"
PYTHON_IMAGE = "localhost/kernelmux/python:dev"
PAUSE_IMAGE = "localhost/kernelmux/pause:dev"


class Net:
    """The addresses: a number in 10.N.0.0/16 that is free on this machine."""

    def __init__(self, number: int):
        self.number = number
        self.outside = f"10.{number}.1.1"
        self.node = f"10.{number}.1.2"
        self.link = f"10.{number}.1.0/30"
        self.pods = f"10.{number}.0.0/24"
        self.gateway = f"10.{number}.0.1"

    @property
    def server(self) -> str:
        return f"https://{self.node}:{API_PORT}"
