"""What the machine must have."""

import os
import shutil
import subprocess
import sys

from .problem import Problem

# Program to Debian package. Those in sbin are not on everyone's PATH.
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

os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/go/bin"


def missing() -> dict[str, str]:
    return {program: package for program, package in PROGRAMS.items() if not shutil.which(program)}


def provide() -> None:
    """Makes sure that all is there. As root on Debian and its like, installs what is not."""
    if os.geteuid() != 0:
        raise Problem("must be run as root (it makes namespaces and containers); or set KUBECONFIG to use another cluster")
    lacking = missing()
    if lacking and shutil.which("apt-get"):
        packages = sorted(set(lacking.values()))
        print(f"installing {', '.join(packages)}", file=sys.stderr)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # Services that packages start would be a second etcd and a second containerd.
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
        lacking = missing()
    if lacking:
        named = ", ".join(f"{program} (Debian package {package})" for program, package in lacking.items())
        raise Problem(f"missing: {named}; install them, or set KUBECONFIG to use another cluster")


def go() -> str:
    """The Go compiler, needed when the programs are not in the cache."""
    found = shutil.which("go")
    if not found:
        raise Problem(
            "missing: go, to build Kubernetes' programs from source (Debian package golang, or Go's own archive, "
            "unpacked to /usr/local/go); or set KUBECONFIG to use another cluster"
        )
    return found
