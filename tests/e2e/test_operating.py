"""What operators do with a running gateway: backups, and the systemd unit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness.gateway import REPO, Gateway
from harness.waiting import eventually

LINES = "import time\nfor i in range(100_000):\n    print(f'line {i};', flush=True)\n    time.sleep(0.001)"


def text_of(gateway: Gateway, kernel: str, msg_id: str) -> str:
    execution = gateway.rest("GET", f"api/kernels/{kernel}/executions/{msg_id}").json()
    return "".join(output["text"] for output in execution["outputs"] if output["output_type"] == "stream")


def test_a_backup_of_a_running_gateway_has_all_logs_without_gaps(
    start_gateway: Callable[..., Gateway], make_home: Callable[[str], Path], tmp_path: Path
) -> None:
    gateway = start_gateway()
    kernels = [gateway.start_kernel()["id"] for _ in range(2)]
    for kernel in kernels:
        body = {"code": LINES, "msg_id": f"lines-{kernel}"}
        assert gateway.rest("POST", f"api/kernels/{kernel}/executions", json=body).status_code == 202
    for kernel in kernels:
        eventually(lambda kernel=kernel: "line 500;" in text_of(gateway, kernel, f"lines-{kernel}"), "it prints", 60)
    archive = tmp_path / "backup.tar"
    exclude = ["--exclude", "./kernels", "--exclude", "./gateway.lock"]
    # Exit code 1: a file changed while it was read.
    made = subprocess.run(
        ["tar", "--create", "--file", str(archive), "--directory", str(gateway.data_dir), *exclude, "."],
        capture_output=True,
        text=True,
    )
    assert made.returncode in (0, 1), made.stderr
    for kernel in kernels:
        assert gateway.rest("POST", f"api/kernels/{kernel}/interrupt").status_code == 204

    home = make_home("restored")
    (home / "gateway").mkdir(mode=0o700)
    subprocess.run(["tar", "--extract", "--file", str(archive), "--directory", str(home / "gateway")], check=True)
    restored = Gateway(home).start()
    try:
        assert {log["kernel_id"] for log in restored.rest("GET", "api/logs").json()} == set(kernels)
        for kernel in kernels:
            text = text_of(restored, kernel, f"lines-{kernel}")
            lines = text.split("\n")[:-1]
            assert len(lines) > 500
            assert lines[: len(lines) - 1] == [f"line {i};" for i in range(len(lines) - 1)]
            (execution,) = restored.rest("GET", f"api/kernels/{kernel}/executions").json()["executions"]
            assert execution["status"] == "died"
        assert restored.rest("GET", "api/kernels").json() == []
    finally:
        restored.close()


def test_dashboard_and_alerts_use_metrics_that_exist(start_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("max-kernels = 1\n[groups.staff]\nmax-kernels = 5\n")
    gateway = start_gateway("--config", str(config), "--audit-log", str(tmp_path / "audit.jsonl"))
    gateway.start_kernel()
    # The limit is reached, and the answer is counted.
    assert gateway.rest("POST", "api/kernels", json={"name": "python3"}).status_code == 403
    text = gateway.rest("GET", "metrics").text
    existing = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert 'kernelmux_agent_links{connected="true"} 1' in text
    folder = REPO / "deploy" / "monitoring"
    dashboard = json.loads((folder / "grafana-dashboard.json").read_text())
    used = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"][0]["rules"]
    used += [rule["expr"] for rule in rules]
    assert len(dashboard["panels"]) >= 10 and len(rules) >= 5
    for expression in used:
        names = set(re.findall(r"\b(?:kernelmux|process)_[a-z_]+", expression))
        assert names, expression
        assert names <= existing, f"{expression}: {sorted(names - existing)} do not exist"
        labels = set(re.findall(r"[({,] ?(state|kernelspec|group|outcome|event|limit|status|route|phase|reason|connected)\b", expression))
        for label in labels:
            assert f'{label}="' in text, f"{expression}: there is no label {label}"


def test_the_systemd_unit_is_valid_and_restricted(tmp_path: Path) -> None:
    unit = (REPO / "deploy" / "systemd" / "kernelmux-gateway.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    # Otherwise systemd would kill the kernels, or the gateway before it has left them.
    assert settings["KillMode"] == "process"
    assert int(settings["TimeoutStopSec"]) > 60
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: install Debian's package systemd")
    # The gateway's program is not installed here.
    copy = tmp_path / "kernelmux-gateway.service"
    copy.write_text(unit.replace("/usr/bin/kernelmux-gateway", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    problems = [line for line in verified.stderr.splitlines() if copy.name in line]
    assert not problems, problems
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=35", str(copy)], capture_output=True, text=True
    )
    assert rated.returncode == 0, rated.stdout[-300:]
