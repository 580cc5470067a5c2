"""Paths, names and addresses of the cluster."""

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernelmux" / "dev-cluster"
# One cluster per machine: `up` from any work tree finds a running cluster, or the remains of one.
STATE = Path(os.environ.get("KERNELMUX_DEV_CLUSTER") or "/var/tmp/kernelmux-dev-cluster")

KUBECONFIG = STATE / "kubeconfig"
# For machines without kubectl.
KUBECTL = STATE / "kubectl"
LOGS = STATE / "log"
# Created by the first process inside when everything is running.
READY = STATE / "ready"
# The process id of the first process, seen from outside the namespaces.
PID = STATE / "pid"
# Settings that `down` restores.
SAVED = STATE / "before.json"
SOCKET = STATE / "containerd.sock"

NODE = "dev"
# The network device outside the namespaces. Its peer inside belongs to the node.
DEVICE = "kernelmux-dev"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 6443

PROGRAMS = ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet"]
# The namespace for kernels.
KERNELS = "kernels"
PYTHON_IMAGE = "localhost/kernelmux/python:dev"
PAUSE_IMAGE = "localhost/kernelmux/pause:dev"


class Net:
    """Addresses in 10.N.0.0/16, where N is free on this machine."""

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
