"""Puts the programs of the gateway and its agents into the wheel, and sets the wheel's platform tag."""

from __future__ import annotations

import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# `e_machine` of ELF files.
MACHINES = {62: "x86_64", 183: "aarch64"}


class GatewayProgram(BuildHookInterface):  # type: ignore[type-arg]
    """Includes the program that `KERNELMUX_GATEWAY_BINARY` names, by default cargo's release build, and the agent's
    program in the same folder."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        target = Path(os.environ.get("CARGO_TARGET_DIR") or root / "../../target")
        program = Path(os.environ.get("KERNELMUX_GATEWAY_BINARY") or target / "release/kernelmux-gateway").resolve()
        programs = (program, program.with_name("kernelmux-agent"))
        for each in programs:
            if not os.access(each, os.X_OK):
                raise SystemExit(f"{each} is not a program: build it, or set KERNELMUX_GATEWAY_BINARY")
        build_data["pure_python"] = False
        if tag := platform_tag(program):
            build_data["tag"] = f"py3-none-{tag}"
        else:
            build_data["infer_tag"] = True
        for each, name in zip(programs, ("kernelmux-gateway", "kernelmux-agent")):
            build_data["force_include"][str(each)] = f"kernelmux/bin/{name}"
        for name in ("LICENSE-MIT", "LICENSE-APACHE"):
            build_data["force_include"][str(root / "../.." / name)] = f"kernelmux/{name}"


def platform_tag(program: Path) -> str | None:
    """The platform tag of a Linux program, with the oldest glibc that it runs with. `None` for other systems."""
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"\x7fELF":
            return None
        (machine,) = struct.unpack_from("<H", content, 18)
        if machine not in MACHINES:
            return None
        versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", content)
    if not versions:
        # Linked statically, or with another C library.
        return f"linux_{MACHINES[machine]}"
    major, minor = max((int(major), int(minor)) for major, minor in versions)
    # The oldest glibc version that pip accepts in a tag, for both architectures.
    major, minor = max((major, minor), (2, 17))
    return f"manylinux_{major}_{minor}_{MACHINES[machine]}"
