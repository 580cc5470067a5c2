"""Files of the commands, all readable by the user only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import KernelmuxError


@dataclass(frozen=True)
class Paths:
    """The gateway's data directory and, in its folder `laptop`, the files of the commands."""

    data_dir: Path

    @classmethod
    def of_user(cls) -> Paths:
        """The paths for the data directory that the gateway uses without `--data-dir`."""
        if chosen := os.environ.get("KERNELMUX_DATA_DIR"):
            return cls(Path(chosen).absolute())
        data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
        if not data_home.is_absolute():
            data_home = Path.home() / ".local" / "share"
        return cls(data_home / "kernelmux")

    @property
    def folder(self) -> Path:
        return self.data_dir / "laptop"

    @property
    def lock(self) -> Path:
        """Locked while a command looks for, starts or ends the gateway."""
        return self.folder / "lock"

    @property
    def state(self) -> Path:
        return self.folder / "gateway.json"

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def log(self) -> Path:
        return self.folder / "gateway.log"

    @property
    def servers(self) -> Path:
        """A locked file for each running JupyterLab, named by its process id."""
        return self.folder / "servers"

    @property
    def gateway_lock(self) -> Path:
        """Locked by the gateway that uses the data directory. It contains the gateway's process id."""
        return self.data_dir / "gateway.lock"

    @property
    def kernel_records(self) -> tuple[Path, ...]:
        """The folders for kernels without and with an agent. Each kernel's subfolder remains while no gateway runs."""
        return (self.data_dir / "kernels" / "kernels", self.data_dir / "kernels" / "agents")

    def make(self) -> None:
        """Creates the folders.

        Raises:
            KernelmuxError: if they cannot be created, or belong to another user.
        """
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.folder, self.servers):
                folder.mkdir(mode=0o700, exist_ok=True)
                if folder.stat().st_uid != os.getuid():
                    raise KernelmuxError(f"{folder} belongs to another user; set KERNELMUX_DATA_DIR")
                folder.chmod(0o700)
        except OSError as error:
            raise KernelmuxError(f"cannot use the data directory {self.data_dir}: {error}") from error


def write_private(path: Path, text: str) -> None:
    """Atomically replaces a file with one that only the user can read."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
    new.replace(path)
