"""A hostile kernel harms neither the gateway nor other kernels."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import requests
from harness import oversized_frames
from harness.gateway import VENV, Gateway
from harness.process import kill, anonymous_kib, pids_mentioning
from harness.waiting import eventually


def test_announced_frame_lengths_cannot_exhaust_the_gateways_memory(
    start_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    claimed = tmp_path / "claims"
    spec = tmp_path / "share" / "kernels" / "hostile"
    spec.mkdir(parents=True)
    argv = [sys.executable, oversized_frames.__file__, "{connection_file}", str(claimed)]
    spec.joinpath("kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "hostile", "language": "none"})
    )
    paths = f"{tmp_path / 'share'}:{VENV / 'share' / 'jupyter'}"
    gateway = start_gateway(env={"JUPYTER_PATH": paths})
    good = gateway.start_kernel()["id"]
    with gateway.socket(good) as client:
        assert client.run("kept = 6") == ""
    before = anonymous_kib(gateway.pid)

    answers: list[requests.Response] = []

    def start_hostile() -> None:
        answers.append(gateway.rest("POST", "api/kernels", json={"name": "hostile"}))

    starting = threading.Thread(target=start_hostile)
    starting.start()
    expected = {"shell", "control", "stdin", "iopub"}
    eventually(
        lambda: claimed.exists() and expected <= set(claimed.read_text().split()),
        "the kernel announced 2^60 bytes on each socket",
    )
    # The gateway reconnects, and the kernel announces the frame again.
    eventually(lambda: claimed.read_text().split().count("shell") > 1, "the gateway has reconnected to shell")
    assert gateway.process is not None and gateway.process.running()
    assert anonymous_kib(gateway.pid) - before < 64 << 10
    with gateway.socket(good) as client:
        assert client.run("kept * 7") == "42"
    for pid in pids_mentioning(str(claimed)):
        kill(pid)
    starting.join()
    assert answers[0].status_code >= 500, answers[0].text
