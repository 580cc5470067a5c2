#!/usr/bin/env python3
"""Runs clippy over every combination of features of every library of the workspace."""

import itertools
import json
import subprocess
import sys

metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version", "1"])
)
failed = []
for package in metadata["packages"]:
    if not any("lib" in target["kind"] for target in package["targets"]):
        continue
    features = sorted(set(package["features"]) - {"default"})
    for size in range(len(features) + 1):
        for chosen in itertools.combinations(features, size):
            name = f"{package['name']} [{', '.join(chosen)}]"
            command = ["cargo", "clippy", "--quiet", "--package", package["name"], "--lib"]
            command += ["--no-default-features", "--features", ",".join(chosen)]
            print("clippy", name, flush=True)
            if subprocess.call([*command, "--", "-D", "warnings"]) != 0:
                failed.append(name)
if failed:
    sys.exit("these combinations of features fail: " + "; ".join(failed))
