"""Installs the project's example kernel, `examples/echo-kernel`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.gateway import REPO

BINARY = Path(os.environ.get("KERNELMUX_ECHO_BIN", REPO / "target" / "debug" / "echo-kernel"))


def install(root: Path) -> dict[str, str]:
    """Copies the kernelspec below `root`. Returns the environment variables to find the kernelspec and the program."""
    shutil.copytree(REPO / "examples" / "echo-kernel" / "kernelspec", root / "kernels" / "echo")
    return {
        "JUPYTER_PATH": str(root),
        "PATH": f"{BINARY.parent}{os.pathsep}{os.environ['PATH']}",
    }
