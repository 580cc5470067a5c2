"""The project's own kernel, `examples/echo-kernel`, as an installed kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.gateway import REPO

BINARY = Path(os.environ.get("KERNELMUX_ECHO_BIN", REPO / "target" / "debug" / "echo-kernel"))


def install(root: Path) -> dict[str, str]:
    """Puts its kernelspec as it is below `root`; the environment in which it and its program are found."""
    shutil.copytree(REPO / "examples" / "echo-kernel" / "kernelspec", root / "kernels" / "echo")
    return {
        "JUPYTER_PATH": str(root),
        "PATH": f"{BINARY.parent}{os.pathsep}{os.environ['PATH']}",
    }
