#!/usr/bin/env python3
"""Runs clippy over every library that is no program's, without features, with each one alone, and with all of them; and
sees that the protocol's types alone do not need tokio."""

import json
import subprocess
import sys


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


metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version", "1"])
)
failed = []
for package in metadata["packages"]:
    kinds = {kind for target in package["targets"] for kind in target["kind"]}
    if "lib" not in kinds or "bin" in kinds:
        continue
    features = sorted(set(package["features"]) - {"default"})
    checked = set()
    for chosen in [(), *((feature,) for feature in features), tuple(features)]:
        if (all_on := implied(chosen, package["features"])) in checked:
            continue
        checked.add(all_on)
        name = f"{package['name']} [{', '.join(chosen)}]"
        command = ["cargo", "clippy", "--quiet", "--package", package["name"], "--lib"]
        command += ["--no-default-features", "--features", ",".join(chosen)]
        print("clippy", name, flush=True)
        if subprocess.call([*command, "--", "-D", "warnings"]) != 0:
            failed.append(name)
alone = ["cargo", "tree", "--package", "jupyter-protocol", "--no-default-features"]
needed = subprocess.check_output([*alone, "--edges", "normal", "--prefix", "none"], text=True)
if any(line.startswith("tokio ") for line in needed.splitlines()):
    sys.exit("jupyter-protocol without default features needs tokio")
if failed:
    sys.exit("with these features it fails: " + "; ".join(failed))
