"""The first process inside the namespaces.

Sets up the node's network and directories, starts all programs, and exits when one of them exits. Only the kubelet is
restarted, as on any node.

Called as `python3 -m devcluster.inside NUMBER PROGRAMS CONTAINERD IMAGE=ARCHIVE...`; see `cluster._start`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from . import pki
from .api import Api
from .layout import (
    API_PORT,
    KERNELS,
    LOGS,
    NODE,
    PAUSE_IMAGE,
    PROGRAMS,
    READY,
    SERVICES,
    SOCKET,
    STATE,
    Net,
)
from .problem import Problem, run

PKI = STATE / "pki"
CNI = STATE / "cni"
ETCD = "http://127.0.0.1:2379"


# A kubelet that exits sooner after its start is not restarted.
MIN_RUNTIME_SECONDS = 2


class Node:
    def __init__(self, net: Net, programs: Path, containerd: Path):
        self.net, self.programs, self.containerd = net, programs, containerd
        self.names: dict[int, str] = {}
        self.kubelet: list = []
        self.kubelet_started = 0.0

    def start(self, name: str, *command) -> None:
        with open(LOGS / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=STATE
            )
        self.names[process.pid] = name

    def reap(self, wait: bool = False) -> None:
        """Reaps ended processes. Restarts the kubelet; fails if another program has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                raise Problem("no process is running") from None
            if pid == 0:
                return
            if pid in self.names:
                name = self.names.pop(pid)
                if name == "kubelet" and time.monotonic() - self.kubelet_started > MIN_RUNTIME_SECONDS:
                    self.run_kubelet()
                    continue
                lines = (LOGS / f"{name}.log").read_text(errors="replace").strip().splitlines()
                raise Problem(f"{name} ended ({os.waitstatus_to_exitcode(status)}): {lines[-1] if lines else 'no output'}")

    def until(self, what: str, is_so, seconds: float = 90) -> None:
        """Polls a condition, because the programs do not announce when they are ready."""
        deadline = time.monotonic() + seconds
        while not is_so():
            self.reap()
            if time.monotonic() > deadline:
                raise Problem(f"{what} is not ready after {seconds:.0f} s; see {LOGS}")
            time.sleep(0.05)

    def mount_directories(self) -> None:
        """Redirects writes to /var/lib and /var/log into the state directory, and writes to /run into memory."""
        run("mount", "--make-rprivate", "/")
        for path in ("/var/lib", "/var/log"):
            own = STATE / path.strip("/").replace("/", "-")
            own.mkdir()
            run("mount", "--bind", own, path)
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        run("mount", "--make-rshared", "/")

    def make_network(self) -> None:
        """Sets up the pods' bridge, and the network device that `cluster` creates here."""
        net = self.net
        self.until("the node's network device", lambda: Path("/sys/class/net/node").exists() or _has_device("node"))
        for command in (
            "ip link set lo up",
            f"ip addr add {net.node}/30 dev node",
            "ip link set node up",
            "ip link add pods type bridge",
            f"ip addr add {net.gateway}/24 dev pods",
            "ip link set pods up",
            # Traffic to other addresses goes through the machine.
            f"ip route add default via {net.outside}",
        ):
            run(*command.split())
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")

    def run_containerd(self) -> None:
        CNI.mkdir()
        plugin = {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(STATE / "addresses"),
                "ranges": [[{"subnet": self.net.pods, "gateway": self.net.gateway}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        conflist = {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin, {"type": "portmap", "capabilities": {"portMappings": True}}]}
        (CNI / "10-pods.conflist").write_text(json.dumps(conflist), encoding="ascii")
        # In a container, containerd may not be allowed to lower OOM scores, and AppArmor may be missing.
        (STATE / "containerd.toml").write_text(
            f"""
version = 2
root = "{self.containerd}"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{CNI}"
""",
            encoding="ascii",
        )
        self.start("containerd", "containerd", "--config", STATE / "containerd.toml")

    def import_images(self, archives: dict[str, str]) -> None:
        self.until("containerd", lambda: subprocess.call(["ctr", "-a", SOCKET, "version"], stdout=-3, stderr=-3) == 0)
        ctr = ("ctr", "-a", SOCKET, "-n", "k8s.io")
        # The label names the archive from which an image was imported.
        listed = run(*ctr, "images", "ls").splitlines()
        for name, archive in archives.items():
            label = f"kernelmux.archive={Path(archive).name}"
            if not any(line.startswith(f"{name} ") and label in line for line in listed):
                run(*ctr, "images", "import", "--digests=false", archive)
                run(*ctr, "images", "label", name, label)

    def run_control_plane(self) -> None:
        net, config = self.net, STATE / "config"
        config.mkdir(mode=0o700)
        for name in pki.CLIENTS:
            (config / name).write_text(pki.kubeconfig(PKI, net, name), encoding="ascii")
        for name in PROGRAMS:
            (STATE / name).symlink_to(self.programs / "kubernetes")
        # The data is removed with the cluster, so it does not need to be synced to disk.
        self.start("etcd", "etcd", "--unsafe-no-fsync", "--data-dir", STATE / "etcd",
                   "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD)
        self.start(
            "kube-apiserver", STATE / "kube-apiserver", f"--etcd-servers={ETCD}", "--bind-address=0.0.0.0",
            f"--advertise-address={net.node}", f"--secure-port={API_PORT}",
            f"--tls-cert-file={PKI}/apiserver.crt", f"--tls-private-key-file={PKI}/apiserver.key",
            f"--client-ca-file={PKI}/ca.crt", f"--kubelet-certificate-authority={PKI}/ca.crt",
            f"--kubelet-client-certificate={PKI}/admin.crt", f"--kubelet-client-key={PKI}/admin.key",
            "--kubelet-preferred-address-types=InternalIP", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
            f"--service-cluster-ip-range={SERVICES}", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={PKI}/service-accounts.key",
            f"--service-account-signing-key-file={PKI}/service-accounts.key", "--profiling=false",
        )

    def run_controllers(self) -> None:
        config = STATE / "config"
        self.start(
            "kube-controller-manager", STATE / "kube-controller-manager", f"--kubeconfig={config}/controller-manager",
            "--leader-elect=false", "--use-service-account-credentials=true", f"--root-ca-file={PKI}/ca.crt",
            f"--service-account-private-key-file={PKI}/service-accounts.key",
        )
        self.start("kube-scheduler", STATE / "kube-scheduler", f"--kubeconfig={config}/scheduler", "--leader-elect=false")

    def run_node(self) -> None:
        config = STATE / "config"
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "authentication": {
                "x509": {"clientCAFile": f"{PKI}/ca.crt"},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{PKI}/kubelet.crt",
            "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
            # The disk is shared with the machine and may be nearly full.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "200Mi", "imagefs.available": "200Mi"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "clusterDomain": "cluster.local",
            "maxPods": 200,
            # The default limits, which protect the API server of a large cluster, would slow down this single node.
            "kubeAPIQPS": 500,
            "kubeAPIBurst": 1000,
            "serializeImagePulls": False,
        }
        (STATE / "kubelet.json").write_text(json.dumps(settings), encoding="ascii")
        self.kubelet = [
            STATE / "kubelet", f"--config={STATE}/kubelet.json", f"--kubeconfig={config}/kubelet",
            f"--hostname-override={NODE}", f"--node-ip={self.net.node}", f"--root-dir={STATE}/kubelet-data",
        ]
        self.run_kubelet()
        self.start(
            "kube-proxy", STATE / "kube-proxy", f"--kubeconfig={config}/proxy", f"--hostname-override={NODE}",
            "--proxy-mode=iptables", f"--cluster-cidr={self.net.pods}", "--conntrack-max-per-core=0",
        )


    def run_kubelet(self) -> None:
        self.kubelet_started = time.monotonic()
        self.start("kubelet", *self.kubelet)


def _has_device(name: str) -> bool:
    return subprocess.call(["ip", "link", "show", name], stdout=-3, stderr=-3) == 0


def main() -> None:
    number, programs, containerd, *images = sys.argv[1:]
    net = Net(int(number))
    node = Node(net, Path(programs), Path(containerd))
    try:
        node.mount_directories()
        node.make_network()
        pki.make(PKI, net)
        node.run_containerd()
        node.run_control_plane()
        api = Api(PKI, net)
        node.until("the API", api.is_ready)
        node.run_controllers()
        node.import_images(dict(image.split("=", 1) for image in images))
        node.run_node()
        node.until("the node", api.is_node_ready)
        api.make_namespace(KERNELS)
        node.until("the namespace's service account", lambda: api.has_default_account(KERNELS))
        READY.touch()
        node.reap(wait=True)
    except Problem as problem:
        sys.exit(f"dev-cluster: {problem}")


main()
