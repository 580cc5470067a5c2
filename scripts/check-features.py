#!/usr/bin/env python3
"""Runs clippy over every combination of features of every library of the workspace, and sees that the protocol's types
alone do not need tokio."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any


def implied(chosen: tuple[str, ...], features: dict[str, list[str]]) -> frozenset[str]:
    """The features that are on where these are chosen."""
    on = set()
    waiting = list(chosen)
    while waiting:
        feature = waiting.pop()
        if feature in features and feature not in on:
            on.add(feature)
            waiting += features[feature]
    return frozenset(on)


def combinations(package: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One for each set of features that can be on."""
    features = sorted(set(package["features"]) - {"default"})
    known = set()
    for size in range(len(features) + 1):
        for chosen in itertools.combinations(features, size):
            all_on = implied(chosen, package["features"])
            if all_on not in known:
                known.add(all_on)
                yield chosen


def check(job: tuple[str, tuple[str, ...]]) -> str | None:
    """The combination, where it fails."""
    package, chosen = job
    name = f"{package} [{', '.join(chosen)}]"
    target = targets.get()
    command = ["cargo", "clippy", "--quiet", "--locked", "--package", package, "--lib", "--target-dir", target]
    command += ["--no-default-features", "--features", ",".join(chosen), "--", "-D", "warnings"]
    print("clippy", name, flush=True)
    passed = subprocess.call(command) == 0
    targets.put(target)
    return None if passed else name


metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version", "1"])
)
jobs = [
    (package["name"], chosen)
    for package in metadata["packages"]
    if any("lib" in target["kind"] for target in package["targets"])
    for chosen in combinations(package)
]
# A crate is checked by one core. Each of those who work side by side has its own folder: cargo lets one in at a time.
targets: Queue[str] = Queue()
for worker in range(min(os.cpu_count() or 1, 4)):
    targets.put(f"{metadata['target_directory']}/features-{worker}")
with ThreadPoolExecutor(targets.qsize()) as workers:
    failed = [name for name in workers.map(check, jobs) if name]
alone = ["cargo", "tree", "--package", "jupyter-protocol", "--no-default-features"]
needed = subprocess.check_output([*alone, "--edges", "normal", "--prefix", "none"], text=True)
if any(line.startswith("tokio ") for line in needed.splitlines()):
    sys.exit("jupyter-protocol without default features needs tokio")
if failed:
    sys.exit("these combinations of features fail: " + "; ".join(failed))
