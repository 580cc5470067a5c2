"""Certificates for TLS, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """Issues certificates. Its own is in the file `certificate`."""

    def __init__(self, folder: Path, name: str = "tests") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / f"{name}-ca.crt"
        self.key = folder / f"{name}-ca.key"
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", str(self.key), "-out", str(self.certificate),
        )  # fmt: skip

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=self.folder)

    def issue(self, name: str, subject: str, *extensions: str) -> tuple[Path, Path]:
        """The files of a new certificate and its key."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        request, rules = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        rules.write_text("\n".join(extensions) + "\n")
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", str(key), "-out", str(request)
        )
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key),
            "-CAcreateserial", "-days", "1", "-extfile", str(rules), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key

    def server(self, name: str = "server") -> tuple[Path, Path]:
        """A certificate for servers on this machine."""
        return self.issue(name, "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")

    def client(self, user: str, group: str) -> tuple[Path, Path]:
        """A certificate that names a user and a group."""
        return self.issue(user, f"/CN={user}/O={group}", "extendedKeyUsage=clientAuth")
