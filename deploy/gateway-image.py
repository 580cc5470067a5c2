#!/usr/bin/env python3
"""Builds an image of the gateway, or of kernels' agents, without Docker: gateway-image.py BINARY OUT.tar [NAME]

The image contains only the binary and the libraries of this machine that it is linked with. `docker load`,
`ctr images import` and registry tools read OUT.tar.
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile

if len(sys.argv) not in (3, 4):
    sys.exit(__doc__.strip())
binary, out = sys.argv[1:3]
program = os.path.basename(binary)
name = sys.argv[3] if len(sys.argv) == 4 else f"localhost/kernelmux/{program.removeprefix('kernelmux-')}:dev"

# A line of `ldd` is `NAME => PATH (address)`, or `PATH (address)` for the loader.
linked = [
    word
    for line in subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout.splitlines()
    for word in line.split()
    if word.startswith("/")
]


def by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = "root"
    return info


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as tar:
    tar.add(binary, f"usr/bin/{program}", filter=by_root)
    for path in sorted(set(linked)):
        tar.add(os.path.realpath(path), path.lstrip("/"), filter=by_root)

config = json.dumps(
    {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin"], "Cmd": [program], "User": "1000:100"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        "history": [{"created_by": "kernelmux deploy/gateway-image.py"}],
    }
).encode()
config_name = f"{hashlib.sha256(config).hexdigest()}.json"
manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
with tarfile.open(out, "w") as tar:
    for file, content in ((config_name, config), ("layer.tar", layer.getvalue()), ("manifest.json", manifest)):
        info = tarfile.TarInfo(file)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
