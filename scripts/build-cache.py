#!/usr/bin/env python3
"""Shares built third-party crates between checkouts, through the user's cache.

    build-cache.py restore     before a build: copies them into the target folder, if that has no build yet
    build-cache.py save        after a build: copies them into the cache, if it does not have them yet

The workspace's own crates are not cached: cargo compares the modification times of their files, which differ between
checkouts. Cargo identifies third-party crates by name, version, features and profile.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernelmux"
BUILT = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug"
KEPT = "build-"


def key() -> str:
    """Returns a hash of the compiler, dependencies and profiles."""
    compiler = subprocess.check_output(["rustc", "-vV"])
    files = [Path(name).read_bytes() for name in ("Cargo.lock", "Cargo.toml")]
    return hashlib.sha256(b"\0".join([compiler, *files])).hexdigest()[:16]


def copy(source: Path, target: Path) -> None:
    """Copies a file or folder with its modification times, which cargo compares. Shares blocks if the disk can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.check_call(["cp", "-a", "--reflink=auto", str(source), str(target)])


@contextmanager
def locked() -> Iterator[None]:
    """Holds a lock that is shared by all checkouts."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "build.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def restore() -> None:
    saved = CACHE / f"{KEPT}{key()}"
    if not saved.is_dir() or BUILT.exists():
        return
    partial = BUILT.with_name(f"debug.{os.getpid()}")
    try:
        copy(saved, partial)
        if not BUILT.exists():
            partial.rename(BUILT)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save() -> None:
    saved = CACHE / f"{KEPT}{key()}"
    if saved.exists() or not BUILT.is_dir():
        return
    metadata = subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version", "1", "--locked"])
    own = {package["name"] for package in json.loads(metadata)["packages"]}
    own |= {f"embedder-{path.name}" for path in Path("tests/embedders").iterdir()}
    units = {
        unit.name.rpartition("-")[2]
        for unit in (BUILT / ".fingerprint").iterdir()
        if unit.name.rpartition("-")[0] not in own
    }
    partial = CACHE / f"partial-{os.getpid()}"
    try:
        for folder in (".fingerprint", "build", "deps"):
            (partial / folder).mkdir(parents=True, exist_ok=True)
            # `name-UNIT`, `libname-UNIT.rlib`
            kept = [file for file in (BUILT / folder).iterdir() if file.name.rpartition("-")[2].split(".")[0] in units]
            for start in range(0, len(kept), 200):
                files = [str(file) for file in kept[start : start + 200]]
                subprocess.check_call(["cp", "-a", "--reflink=auto", *files, str(partial / folder)])
        for old in CACHE.glob(f"{KEPT}*"):
            shutil.rmtree(old, ignore_errors=True)
        partial.rename(saved)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    commands = {"restore": restore, "save": save}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        with locked():
            commands[sys.argv[1]]()
    except (OSError, subprocess.CalledProcessError) as error:
        # Not an error: without the cache, the build only takes longer.
        print(f"the cache of built crates is not used: {error}", file=sys.stderr)
