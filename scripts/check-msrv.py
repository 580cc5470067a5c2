#!/usr/bin/env python3
"""Checks the stated minimum Rust version: no dependency states a later one, and everything builds with that toolchain
if it is installed. (Clippy's incompatible_msrv checks the use of std.)"""

import json
import subprocess
import sys


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in (text.split(".") + ["0", "0"])[:3])


metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked"])
)
members = set(metadata["workspace_members"])
stated = {p["rust_version"] for p in metadata["packages"] if p["id"] in members}
if len(stated) != 1 or None in stated:
    sys.exit(f"each package of the workspace must state the same rust-version, not {stated}")
msrv = stated.pop()

newer = [
    f"{p['name']} {p['version']} needs {p['rust_version']}"
    for p in metadata["packages"]
    if p["rust_version"] and version(p["rust_version"]) > version(msrv)
]
if newer:
    sys.exit(f"rust-version is {msrv}, but " + "; ".join(newer))

toolchains = subprocess.run(["rustup", "toolchain", "list"], capture_output=True, text=True)
installed = [line.split()[0] for line in toolchains.stdout.splitlines() if line.startswith(msrv)]
if installed:
    check = ["cargo", f"+{installed[0]}", "check", "--quiet", "--workspace", "--all-targets"]
    check += ["--target-dir", "target/msrv"]
    sys.exit(subprocess.call(check))
print(f"MSRV {msrv}: no dependency needs a later one (toolchain {msrv} is not installed: not built)")
