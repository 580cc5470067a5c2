"""Pictures of the documentation."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Locator


def take_picture(of: Locator, name: str) -> None:
    """Writes `name`.png to the folder that `KERNELMUX_PICTURES` names. Does nothing if it is not set."""
    folder = os.environ.get("KERNELMUX_PICTURES")
    if folder:
        of.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")
