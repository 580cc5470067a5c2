"""The gateway's program and its environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jupyter_core.paths import jupyter_path

from .errors import KernelmuxError


def gateway_program() -> Path:
    """The program in the wheel.

    Raises:
        KernelmuxError: if it is missing.
    """
    program = Path(__file__).parent / "bin" / "kernelmux-gateway"
    if not os.access(program, os.X_OK):
        raise KernelmuxError(f"{program} is missing: install kernelmux from its wheel")
    return program


def gateway_environment() -> dict[str, str]:
    """This process's environment, with the variables to find this Python installation's programs and kernels."""
    environment = dict(os.environ)
    scripts = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([scripts, environment.get("PATH", os.defpath)])
    environment["JUPYTER_PATH"] = os.pathsep.join(jupyter_path())
    return environment
