"""JupyterLab whose kernels keep running: `kernelmux lab`."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("kernelmux")

__all__ = ["__version__"]
