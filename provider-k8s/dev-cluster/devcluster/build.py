"""Builds Kubernetes' programs from their Go modules, and container images. Both are cached."""

import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

from . import prerequisites
from .layout import CACHE, PAUSE_IMAGE, PYTHON_IMAGE, SOURCE
from .problem import Problem

DEBIAN = "trixie"
PACKAGES = "python3-ipykernel,python3-ipywidgets,python3-numpy"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def digest(*parts: bytes) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()[:16]


@contextmanager
def locked(name: str):
    """Holds a lock that is shared with other work trees. Removes the remains of builds that were killed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for rest in CACHE.glob(f"building-{name}-*"):
            shutil.rmtree(rest, ignore_errors=True)
        yield


def programs() -> Path:
    """Returns the directory with Kubernetes' programs, `kubectl` and `pause`. Builds them if they are not cached."""
    source = SOURCE / "components"
    version = re.search(r"k8s\.io/kubernetes (v\S+)", (source / "go.mod").read_text(encoding="ascii"))
    # Kubernetes' own build sets this too, and clients read it.
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion={version.group(1) if version else 'v0.0.0'}"
    packages = {"kubernetes": ".", "kubectl": "./kubectl", "pause": "./pause"}
    files = ["go.mod", "go.sum", "main.go", "kubectl/main.go", "pause/main.go"]
    return _built("programs", source, files, flags, packages, "Kubernetes' programs: this takes 6 minutes or more")


def helm() -> Path:
    """Returns the program `helm`. Builds it if it is not cached."""
    packages = {"helm": "helm.sh/helm/v4/cmd/helm"}
    files = ["go.mod", "go.sum"]
    return _built("helm", SOURCE / "helm", files, "-s -w", packages, "Helm: this takes 3 minutes or more") / "helm"


def _built(name: str, source: Path, files: list[str], flags: str, packages: dict[str, str], about: str) -> Path:
    """Returns the directory with the programs of these Go packages. The contents of `files` decide whether they are
    built again."""
    key = digest(platform.machine().encode(), flags.encode(), *((source / file).read_bytes() for file in files))
    place = CACHE / f"{name}-{key}"
    with locked(name):
        if place.is_dir():
            return place
        go = prerequisites.go()
        say(f"building {about}, but only once; they are kept in {place}")
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"building-{name}-") as folder:
            # Use a temporary compiler cache. Go's default cache would keep gigabytes that only this build uses.
            environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOCACHE": f"{folder}-go"}
            for program, package in packages.items():
                command = [go, "build", "-trimpath", "-ldflags", flags, "-o", f"{folder}/{program}", package]
                if subprocess.call(command, cwd=source, env=environment, stdout=sys.stderr) != 0:
                    raise Problem(f"cannot build {name}; see the Go compiler's output above")
            shutil.rmtree(f"{folder}-go")
            os.chmod(folder, 0o755)
            os.rename(folder, place)
            os.mkdir(folder)  # for the context manager to remove
    return place


def images(programs_folder: Path) -> dict[str, Path]:
    """Returns the images' archives by name. Builds them if they are not cached."""
    made = {}
    with locked("images"):
        made[PAUSE_IMAGE] = _pause(programs_folder)
        made[PYTHON_IMAGE] = _python()
    return made


def _pause(programs_folder: Path) -> Path:
    binary = programs_folder / "pause"
    place = CACHE / f"image-pause-{digest(binary.read_bytes())}.tar"
    if not place.exists():
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(binary, "pause", filter=_owned_by_root)
        with tempfile.NamedTemporaryFile(dir=CACHE) as file:
            file.write(layer.getvalue())
            file.flush()
            _archive(PAUSE_IMAGE, Path(file.name), place, {"Entrypoint": ["/pause"], "User": "65535:65535"})
    return place


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = "root"
    return info


def _python() -> Path:
    hooks = ['chroot "$1" useradd --create-home --uid 1000 --gid 100 jovyan']
    command = ["mmdebstrap", "--variant=minbase", "--quiet", f"--include={PACKAGES}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
    command += [f"--customize-hook={hook}" for hook in hooks]
    config = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/home/jovyan", "LANG=C.UTF-8"],
        "User": "1000:100",
        "WorkingDir": "/home/jovyan",
        "Cmd": ["python3"],
    }
    place = CACHE / f"image-python-{digest(json.dumps([command, DEBIAN, config]).encode())}.tar"
    if not place.exists():
        say(f"building a kernel image with Debian's {PACKAGES}; this takes about 2 minutes, but only once")
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-images-") as folder:
            # mmdebstrap's unprivileged user needs access.
            os.chmod(folder, 0o755)
            root = Path(folder) / "root.tar"
            if subprocess.call([*command, DEBIAN, str(root)], stdout=sys.stderr) != 0:
                raise Problem("cannot build the kernel image; see mmdebstrap's output above")
            _archive(PYTHON_IMAGE, root, place, config)
    return place


def _archive(name: str, layer: Path, place: Path, config: dict) -> None:
    """Wraps a root file system into an archive in the format of `docker save`, which containerd can import."""
    content = hashlib.sha256()
    with open(layer, "rb") as file:
        while part := file.read(1 << 20):
            content.update(part)
    about = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{content.hexdigest()}"]},
        "history": [{"created_by": "kernelmux dev-cluster"}],
    }
    config_name = f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    unfinished = place.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w") as tar:
        for file, value in ((config_name, about), ("manifest.json", manifest)):
            encoded = json.dumps(value).encode()
            info = tarfile.TarInfo(file)
            info.size = len(encoded)
            tar.addfile(info, io.BytesIO(encoded))
        tar.add(layer, "layer.tar", filter=_owned_by_root)
    os.rename(unfinished, place)
