"""Programs that the machine needs."""

import os
import shutil
import subprocess
import sys

from .problem import Problem

# Debian package of each program.
PROGRAMS = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "unshare": "util-linux",
    "openssl": "openssl",
    "mmdebstrap": "mmdebstrap",
}

# Users often do not have sbin on their PATH.
os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/go/bin"


def missing() -> dict[str, str]:
    return {program: package for program, package in PROGRAMS.items() if not shutil.which(program)}


def provide() -> None:
    """Checks that all programs are installed. On Debian-like systems, installs missing ones."""
    if os.geteuid() != 0:
        raise Problem("must run as root to create namespaces and containers; or set KUBECONFIG to use another cluster")
    absent = missing()
    if absent and shutil.which("apt-get"):
        packages = sorted(set(absent.values()))
        print(f"installing {', '.join(packages)}", file=sys.stderr)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # Keep the packages from starting their own etcd and containerd services.
        policy = "/usr/sbin/policy-rc.d"
        own_policy = not os.path.exists(policy)
        if own_policy:
            with open(policy, "w", encoding="ascii") as file:
                file.write("#!/bin/sh\nexit 101\n")
            os.chmod(policy, 0o755)
        try:
            for command in (
                ["apt-get", "update", "-qq"],
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
            ):
                subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        finally:
            if own_policy:
                os.unlink(policy)
        absent = missing()
    if absent:
        named = ", ".join(f"{program} (Debian package {package})" for program, package in absent.items())
        raise Problem(f"missing: {named}; install them, or set KUBECONFIG to use another cluster")


def go() -> str:
    """Finds the Go compiler, which is needed if the programs are not in the cache."""
    found = shutil.which("go")
    if not found:
        raise Problem(
            "missing: go, to build Kubernetes' programs from source (Debian package golang, or Go's own archive, "
            "unpacked to /usr/local/go); or set KUBECONFIG to use another cluster"
        )
    return found
