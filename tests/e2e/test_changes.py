"""One gateway for several users whose token, certificate, limit and access change while their kernels print."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from harness.certificates import Authority
from harness.gateway import Gateway
from harness.users import REVOKED_WITHIN, Users, bearer
from harness.waiting import eventually

PRINTING = "import time\nfor i in range(1_000_000):\n    print(i, flush=True)\n    time.sleep(0.02)"


class Stream(threading.Thread):
    """Follows a kernel's log as one user, over one connection. `lines` has the numbers that were printed."""

    def __init__(self, gateway: Gateway, kernel_id: str, token: str) -> None:
        super().__init__(daemon=True)
        self.gateway, self.kernel_id, self.token = gateway, kernel_id, token
        self.entries: list[int] = []
        self.ended: float | None = None
        self.start()
        self.continues()

    def run(self) -> None:
        url = f"{self.gateway.url}api/kernels/{self.kernel_id}/log?from=start"
        with contextlib.suppress(requests.RequestException):
            verify = self.gateway.session.verify
            with requests.get(url, headers=bearer(self.token), stream=True, timeout=60, verify=verify) as stream:
                for line in stream.iter_lines(chunk_size=None):
                    if line.startswith(b"id: "):
                        self.entries.append(int(line.rpartition(b":")[2]))
        self.ended = time.monotonic()

    def continues(self) -> None:
        before = len(self.entries)
        eventually(lambda: len(self.entries) > before + 10, "the stream continues")
        assert self.ended is None
        assert self.entries == list(range(1, len(self.entries) + 1)), "entries are missing or repeated"

    def ends_within(self, since: float) -> None:
        eventually(lambda: self.ended, "the stream has ended")
        assert self.ended is not None and self.ended - since < REVOKED_WITHIN


def test_what_must_end_ends_and_everything_else_goes_on(
    start_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    users, authority = Users(tmp_path), Authority(tmp_path / "certificates")
    certificate, key = authority.server()
    token_file, config = tmp_path / "token", tmp_path / "gateway.toml"
    for file, text in ((token_file, "first-token"), (config, f'token-file = "{token_file}"\nmax-kernels-per-user = 3\n')):
        file.touch(mode=0o600)
        file.write_text(text)
    tokens = {name: users.add(name) for name in ("ada", "bob")}
    flags = ["--config", str(config), "--users-file", str(users.file)]
    flags += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    gateway = start_gateway(*flags, token="first-token", is_token_in_args=True)
    gateway.session.verify = str(authority.certificate)
    tokens["shared"] = "first-token"

    def ask(name: str, method: str, path: str, **options: Any) -> requests.Response:
        return gateway.rest(method, path, headers=bearer(tokens[name]), **options)

    def start(name: str) -> requests.Response:
        return ask(name, "POST", "api/kernels", json={"name": "python3"})

    kernels = {name: start(name).json()["id"] for name in tokens}
    for name, kernel_id in kernels.items():
        run = ask(name, "POST", f"api/kernels/{kernel_id}/executions", json={"code": PRINTING})
        assert run.status_code == 202, run.text
    streams = {name: Stream(gateway, kernel_id, tokens[name]) for name, kernel_id in kernels.items()}

    # The shared token is rotated: streams that were opened with it end, and the users' streams go on.
    rotated = time.monotonic()
    token_file.write_text("second-token")
    streams["shared"].ends_within(rotated)
    assert ask("shared", "GET", "api/kernels").status_code == 401
    tokens["shared"] = "second-token"
    assert ask("shared", "GET", "api/kernels").status_code == 200
    streams["shared"] = Stream(gateway, kernels["shared"], tokens["shared"])

    # A user's token is rotated.
    rotated = time.monotonic()
    earlier, tokens["bob"] = tokens["bob"], users.add("bob", "--replace")
    streams["bob"].ends_within(rotated)
    assert gateway.rest("GET", "api/kernels", headers=bearer(earlier)).status_code == 401
    eventually(lambda: ask("bob", "GET", "api/kernels").status_code == 200, "the new token works")
    streams["bob"] = Stream(gateway, kernels["bob"], tokens["bob"])

    # The certificate is renewed: all connections go on, and new ones get the new certificate.
    presented = lambda: ssl.get_server_certificate(("127.0.0.1", gateway.port))
    before = presented()
    renewed = authority.server("renewed")
    for new, old in zip(reversed(renewed), (key, certificate), strict=True):
        shutil.move(new, old)
    eventually(lambda: presented() != before, "the new certificate is used")
    for stream in streams.values():
        stream.continues()

    # A limit is lowered: nothing ends, and the next start is refused with the limit and its value.
    config.write_text(config.read_text().replace("max-kernels-per-user = 3", "max-kernels-per-user = 1"))
    eventually(lambda: "max-kernels-per-user" in gateway.output, "the settings are reloaded")
    refused = start("ada")
    assert refused.status_code == 403, refused.text
    assert "1" in refused.json()["message"] and "ada" in refused.json()["message"], refused.text
    for stream in streams.values():
        stream.continues()

    # A user is removed: their streams end, and their kernel goes on.
    removed = time.monotonic()
    users.run("remove", "ada")
    streams["ada"].ends_within(removed)
    assert ask("ada", "GET", "api/kernels").status_code == 401
    for name in ("bob", "shared"):
        streams[name].continues()
    assert ask("shared", "GET", f"api/kernels/{kernels['ada']}").json()["execution_state"] == "busy"
