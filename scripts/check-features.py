#!/usr/bin/env python3
"""Runs clippy on every library that has features: with none of them, and with each one alone. Also checks that the
protocol's types alone do not need tokio and build for WebAssembly, and that `provider-k8s` builds for the newest
Kubernetes.

`make lint-rust` checks all features together. A feature that only enables features of other packages is checked in
those packages. Packages with programs are skipped, as are libraries without features.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def implied(chosen: tuple[str, ...], features: dict[str, list[str]]) -> frozenset[str]:
    """The chosen features and all that they enable."""
    on = set()
    waiting = list(chosen)
    while waiting:
        feature = waiting.pop()
        if feature in features and feature not in on:
            on.add(feature)
            waiting += features[feature]
    return frozenset(on)


def is_forwarding(feature: str, features: dict[str, list[str]]) -> bool:
    """Whether a feature only enables features of other packages."""
    return features[feature] != [] and all(
        "/" in switched or (switched in features and is_forwarding(switched, features))
        for switched in features[feature]
    )


metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version", "1"])
)
# Programs and tests enable the oldest Kubernetes version of k8s-openapi, so this check enables the newest.
os.environ["K8S_OPENAPI_ENABLED_VERSION"] = "1.37"
failed = []
for package in metadata["packages"]:
    kinds = {kind for target in package["targets"] for kind in target["kind"]}
    if "lib" not in kinds or "bin" in kinds or not package["features"]:
        continue
    known = package["features"]
    features = sorted(name for name in known if name != "default" and not is_forwarding(name, known))
    checked = set()
    for chosen in [(), *((feature,) for feature in features)]:
        if (all_on := implied(chosen, known)) in checked:
            continue
        checked.add(all_on)
        name = f"{package['name']} [{', '.join(chosen)}]"
        command = ["cargo", "clippy", "--quiet", "--package", package["name"], "--lib"]
        command += ["--no-default-features", "--features", ",".join(chosen)]
        print("clippy", name, flush=True)
        if subprocess.call([*command, "--", "-D", "warnings"]) != 0:
            failed.append(name)
alone = ["cargo", "tree", "--package", "kernelmux-protocol", "--no-default-features"]
needed = subprocess.check_output([*alone, "--edges", "normal", "--prefix", "none"], text=True)
if any(line.startswith("tokio ") for line in needed.splitlines()):
    sys.exit("kernelmux-protocol without default features needs tokio")
WASM = "wasm32-unknown-unknown"
libraries = subprocess.check_output(["rustc", "--print", "target-libdir", "--target", WASM], text=True)
if Path(libraries.strip()).is_dir():
    print("clippy kernelmux-protocol []", WASM, flush=True)
    command = ["cargo", "clippy", "--quiet", "--package", "kernelmux-protocol", "--lib", "--no-default-features"]
    if subprocess.call([*command, "--target", WASM, "--", "-D", "warnings"]) != 0:
        failed.append(f"kernelmux-protocol [] for {WASM}")
else:
    print(f"not checked: kernelmux-protocol for {WASM}, which `rustup target add {WASM}` installs")
if failed:
    sys.exit("clippy fails with: " + "; ".join(failed))
