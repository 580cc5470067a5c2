"""The commands of `dev-cluster`."""

import fcntl
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from . import build, pki, prerequisites
from .api import Api
from .layout import SAVED, CACHE, DEVICE, KUBECONFIG, KUBECTL, LOGS, PID, READY, SERVICES, SOCKET, SOURCE, STATE, Net
from .problem import Problem, run

__all__ = ["Problem", "down", "helm", "load", "status", "unload", "up"]

# Settings of the whole machine that a kubelet changes.
SYSCTLS = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward"]
UP_DEADLINE = 180.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def up() -> None:
    other = os.environ.get("KUBECONFIG")
    if other and Path(other) != KUBECONFIG:
        use(other)
        return
    prerequisites.provide()
    with _locked():
        if _is_up():
            say(f"the cluster is already running: KUBECONFIG={KUBECONFIG}")
        else:
            _end()
            programs = build.programs()
            images = build.images(programs)
            started = time.monotonic()
            _start(programs, images)
            say(f"the cluster started in {time.monotonic() - started:.0f} s: KUBECONFIG={KUBECONFIG}")
    print(KUBECONFIG)


def use(kubeconfig: str) -> None:
    """Uses another cluster. Checks that it answers, or without `kubectl`, that its KUBECONFIG exists."""
    if shutil.which("kubectl"):
        run("kubectl", "--kubeconfig", kubeconfig, "--request-timeout=20s", "get", "--raw", "/readyz")
    elif not Path(kubeconfig).exists():
        raise Problem(f"KUBECONFIG names {kubeconfig}, which does not exist")
    say(f"using the cluster of KUBECONFIG={kubeconfig}")
    print(kubeconfig)


def down() -> None:
    if not STATE.exists():
        say("no cluster is running")
        return
    if os.geteuid() != 0:
        raise Problem("must run as root, like `up`")
    with _locked():
        _end()
    shutil.rmtree(STATE, ignore_errors=True)
    say("the cluster is down")


def status() -> None:
    if not _is_up():
        raise Problem("no cluster is running; start one with `dev-cluster up`")
    print(KUBECONFIG)


def load(archive: str) -> None:
    say(_images("import", "--digests=false", archive))


def unload(image: str) -> None:
    digests = {line.split()[0]: line.split()[2] for line in _images("ls").splitlines()[1:]}
    if image not in digests:
        raise Problem(f"there is no image {image}")
    others = [name for name, digest in digests.items() if digest == digests[image] and name != image]
    # containerd also names each image by its digest. That name would keep the image.
    last = all(name.startswith("sha256:") for name in others)
    say(_images("rm", image, *(others if last else [])))


def _images(*command: str) -> str:
    """Runs a `ctr images` command on the images that pods can use without a registry."""
    if not _is_up():
        raise Problem("no cluster is running; start one with `dev-cluster up`")
    return run("ctr", "-a", SOCKET, "-n", "k8s.io", "images", *command).strip()


def helm() -> None:
    print(build.helm())


@contextmanager
def _locked():
    STATE.mkdir(parents=True, exist_ok=True, mode=0o755)
    with open(STATE / "lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _first_process() -> "int | None":
    """Returns the id of the first process inside, if it is running. A different start time means a reused id."""
    try:
        pid, start_time = PID.read_text(encoding="ascii").split()
        return int(pid) if _start_time(int(pid)) == start_time else None
    except (OSError, ValueError):
        return None


def _start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]


def _is_up() -> bool:
    if _first_process() is None or not READY.exists():
        return False
    api = Api(STATE / "pki", Net(json.loads(SAVED.read_text(encoding="ascii"))["net"]))
    return api.is_ready() and api.is_node_ready()


def _free_net() -> Net:
    """Chooses the first number whose addresses this machine has no route to."""
    routes = []
    for line in run("ip", "-4", "route", "show", "table", "all").splitlines():
        for word in line.split()[:2]:
            try:
                routes.append(ipaddress.ip_network(word, strict=False))
                break
            except ValueError:
                continue
    services = ipaddress.ip_network(SERVICES)
    if any(route.prefixlen and route.overlaps(services) for route in routes):
        raise Problem(f"this machine already has a route to {SERVICES}; if it is part of a cluster, set KUBECONFIG")
    for number in range(201, 250):
        wanted = ipaddress.ip_network(f"10.{number}.0.0/16")
        if not any(route.prefixlen and route.overlaps(wanted) for route in routes):
            return Net(number)
    raise Problem("this machine has routes to all of 10.201.0.0 to 10.249.0.0")


def _sysctls() -> dict[str, str]:
    return {name: Path("/proc/sys", name).read_text(encoding="ascii").strip() for name in SYSCTLS}


def _start(programs: Path, images: dict[str, Path]) -> None:
    net = _free_net()
    SAVED.write_text(json.dumps({"net": net.number, "sys": _sysctls()}), encoding="ascii")
    LOGS.mkdir()
    containerd = CACHE / "containerd"
    containerd.mkdir(exist_ok=True)
    log = open(LOGS / "inside.log", "wb")  # noqa: SIM115 (the child uses it)
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command += [sys.executable, "-m", "devcluster.inside", str(net.number), str(programs), str(containerd)]
    command += [f"{name}={archive}" for name, archive in images.items()]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    outer = subprocess.Popen(
        command, cwd=SOURCE, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    deadline = time.monotonic() + UP_DEADLINE
    try:
        first = _child(outer, deadline)
        PID.write_text(f"{first} {_start_time(first)}", encoding="ascii")
        _link(net, first)
        while not READY.exists():
            if outer.poll() is not None:
                output = (LOGS / "inside.log").read_text(errors="replace").strip()
                raise Problem(output or "the first process ended without output")
            if time.monotonic() > deadline:
                raise Problem(f"the cluster did not start within {UP_DEADLINE:.0f} s; see {LOGS}")
            time.sleep(0.05)
        KUBECTL.symlink_to(programs / "kubectl")
        KUBECONFIG.touch(mode=0o600)
        KUBECONFIG.write_text(pki.kubeconfig(STATE / "pki", net, "admin"), encoding="ascii")
    except BaseException:
        # Keep the logs for diagnosis.
        _end(keep_files=True)
        raise


def _child(outer: subprocess.Popen, deadline: float) -> int:
    while time.monotonic() < deadline and outer.poll() is None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text(encoding="ascii").split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise Problem((LOGS / "inside.log").read_text(errors="replace").strip() or "cannot create namespaces")


def _link(net: Net, first: int) -> None:
    run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "node", "netns", str(first))
    run("ip", "addr", "add", f"{net.outside}/30", "dev", DEVICE)
    run("ip", "link", "set", DEVICE, "up")
    # Make pods and services reachable from this machine, as from a node.
    for addresses in (net.pods, SERVICES):
        run("ip", "route", "add", addresses, "via", net.node, "dev", DEVICE)


def _end(keep_files: bool = False) -> None:
    """Stops and removes a cluster, even an incomplete one."""
    first = _first_process()
    if first is not None:
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{first}").exists():
            if time.monotonic() > deadline:
                raise Problem(f"process {first} does not end")
            try:
                # Reaps the process if it is, or has become, a child of this one.
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pass
            time.sleep(0.02)
    # The device is usually removed with its peer's namespace, but not immediately.
    subprocess.call(["ip", "link", "delete", DEVICE], stdout=-3, stderr=-3)
    if SAVED.exists():
        for name, value in json.loads(SAVED.read_text(encoding="ascii"))["sys"].items():
            place = Path("/proc/sys", name)
            if place.read_text(encoding="ascii").strip() != value:
                place.write_text(value, encoding="ascii")
    _remove_control_groups()
    for entry in [] if keep_files else STATE.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _remove_control_groups() -> None:
    """Removes the control groups of pods, deepest first. Groups with running processes stay."""
    for root in Path("/sys/fs/cgroup").glob("**/kubepods"):
        for folder, _, _ in os.walk(root, topdown=False):
            for _ in range(100):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    # A group can only be removed a moment after its last process has ended.
                    time.sleep(0.01)
