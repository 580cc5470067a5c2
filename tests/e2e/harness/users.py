"""Users with tokens of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.gateway import binary

# How soon what a user has open must end.
REVOKED_WITHIN = 2.0


class Users:
    """The file of users, changed with the gateway's own command."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "users.json"

    def run(self, *args: str) -> str:
        argv = [str(binary()), "user", *args, "--users-file", str(self.file)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def add(self, name: str, *args: str) -> str:
        return self.run("add", name, *args).strip()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
