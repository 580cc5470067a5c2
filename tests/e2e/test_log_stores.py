"""Log stores through the gateway: a full disk, a read-only disk, damaged files, and NATS shared by several gateways."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import skip_or_fail
from harness.reconnecting import entries_of, log_of
from harness.executions import run, wait_ended
from harness.gateway import Gateway, clean_env, free_port
from harness.waiting import eventually

pytestmark = pytest.mark.timeout(180)

LINES = 25
FLOOD = "for i in range({}):\n    print(f'{{i:05}}' + 'x' * 999_995, flush=True)"


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mounts a tmpfs at `folder` and yields a function that changes its mount options."""
    folder.mkdir(mode=0o700, parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "kernelmux-test", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, text=True)
        problem = mounted.stderr if mounted.returncode else ""
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        skip_or_fail(f"a tmpfs cannot be mounted: {problem.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def home(built: None, make_home: Callable[[str], Path]) -> Path:
    return make_home("stores")


def run_to_end(gateway: Gateway, kernel_id: str, code: str) -> dict[str, Any]:
    """Runs code without a client, and returns the ended execution."""
    return wait_ended(gateway, kernel_id, run(gateway, kernel_id, code)["msg_id"], 60)


def texts(execution: dict[str, Any]) -> list[str]:
    """The printed lines of an execution."""
    return "".join(output["text"] for output in execution["outputs"]).splitlines()


def test_a_full_disk_only_suspends_the_recording(home: Path) -> None:
    gateway = Gateway(home, "--agent", "off")
    with small_disk(gateway.data_dir / "logs", "size=64m") as remount:
        try:
            gateway.start()
            flooding, other = (gateway.start_kernel()["id"] for _ in range(2))
            before = run_to_end(gateway, other, "print('before')")
            with gateway.socket(flooding, "reads") as reader:
                # Fills the disk and prints 20 more lines. The client keeps up and receives each of them.
                refused = 0
                while refused < 20:
                    assert len(reader.run(FLOOD.format(1))) == 1_000_001
                    reader.seen.clear()
                    refused += "no room" in gateway.output
                # Nothing more can be written, but connected clients are not affected.
                assert reader.run("print(6 * 7)").strip() == "42"
                assert gateway.output.count("is not being recorded") <= 4, "the log must not have a line for each entry"
                [stored] = [log for log in gateway.rest("GET", "api/logs").json() if log["kernel_id"] == flooding]
                remount("size=1g")

                def recorded() -> bool:
                    reader.run("print('more')")
                    start = f"{stored['epoch']}:{stored['head']}"
                    log = gateway.rest("GET", f"api/kernels/{flooding}/log?follow=false&from={start}").text
                    return "event: gap" in log and '"event":"not_recorded"' in log.replace(" ", "")

                eventually(recorded, "the log continues after a gap", 60)
                whole = gateway.rest("GET", f"api/kernels/{flooding}/log?follow=false").text
                *_, last_gap = re.findall(r"^id: (\S+)\nevent: gap", whole, re.MULTILINE)
                rest = gateway.rest("GET", f"api/kernels/{flooding}/log?follow=false&from={last_gap}").text
                assert rest.startswith("id: ") and "event: gap" not in rest, "a gap must be reported once"
            after = run_to_end(gateway, flooding, "print('after')")
            assert (after["complete"], texts(after)) == (True, ["after"])
            again = wait_ended(gateway, other, before["msg_id"], 60)
            assert (again["complete"], texts(again)) == (True, ["before"])
            assert texts(run_to_end(gateway, other, "print('continues')")) == ["continues"]
        finally:
            gateway.close()


def test_a_full_disk_delays_the_recording_and_loses_nothing(home: Path) -> None:
    gateway = Gateway(home, "--agent", "auto")
    with small_disk(gateway.data_dir / "logs", "size=64m") as remount:
        try:
            gateway.start()
            kernel_id = gateway.start_kernel()["id"]
            path = home / "marks"
            # More than fits; the rest waits at the agent, on another disk.
            code = f"for i in range(150):\n    print(str(i) * 250_000, flush=True)\n    open({str(path)!r}, 'a').write('x')"
            flood = run(gateway, kernel_id, code)["msg_id"]
            eventually(
                lambda: "is not being recorded" in gateway.output or "no room" in gateway.output, "the disk is full", 60
            )
            eventually(lambda: path.exists() and len(path.read_text()) == 150, "the kernel goes on", 60)
            remount("size=1g")
            done = wait_ended(gateway, kernel_id, flood, 120)
            assert (done["status"], done["complete"]) == ("ok", True)
            log = gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false").text
            assert "event: gap" not in log and "not_recorded" not in log
            streams = [e["content"] for e in entries_of(gateway, kernel_id) if e["header"]["msg_type"] == "stream"]
            printed = "".join(content["text"] for content in streams if content["name"] == "stdout")
            assert printed == "".join(f"{str(i) * 250_000}\n" for i in range(150))
            assert texts(run_to_end(gateway, kernel_id, "print('after')")) == ["after"]
        finally:
            gateway.close()


def test_a_read_only_disk_prevents_the_start_and_kernels_survive(home: Path) -> None:
    gateway = Gateway(home)
    with small_disk(gateway.data_dir / "logs", "size=200m") as remount:
        try:
            gateway.start()
            kernel_id = gateway.start_kernel()["id"]
            kept = run_to_end(gateway, kernel_id, "x = 6")
            gateway.stop(signal.SIGTERM)
            remount("ro")
            refused = subprocess.run(gateway.argv(), env=clean_env(home), capture_output=True, text=True, timeout=60)
            assert refused.returncode not in (0, 101), refused
            error = refused.stderr.strip().splitlines()[-1]
            assert "Read-only" in error and str(gateway.data_dir / "logs") in error, refused
            remount("rw")
            gateway.start()
            # The kernel and its log have survived.
            execution = wait_ended(gateway, kernel_id, kept["msg_id"], 60)
            assert execution["status"] == "ok"
            assert texts(run_to_end(gateway, kernel_id, "print(x * 7)")) == ["42"]
        finally:
            gateway.close()


def test_a_damaged_log_is_reported_and_other_kernels_are_unaffected(home: Path) -> None:
    gateway = Gateway(home)
    try:
        gateway.start()
        damaged, sound = (gateway.start_kernel()["id"] for _ in range(2))
        for _ in range(2):
            run_to_end(gateway, damaged, FLOOD.format(LINES))
        kept = run_to_end(gateway, sound, "print('sound')")
        gateway.stop(signal.SIGTERM)
        segments = sorted((gateway.data_dir / "logs" / damaged).glob("*.log"))
        overwrite(segments, lambda size: range(50_000, size, 100_000))
        gateway.start()
        # The damaged blocks are missing, and the log continues.
        assert texts(run_to_end(gateway, damaged, "print('continues')")) == ["continues"]
        assert "something else" not in gateway.rest("GET", f"api/kernels/{damaged}/log?follow=false").text
        reports = [line for line in gateway.output.splitlines() if "a part of the log is damaged" in line]
        assert reports and all(damaged in line for line in reports), gateway.output
        execution = wait_ended(gateway, sound, kept["msg_id"], 60)
        assert (execution["complete"], texts(execution)) == (True, ["sound"])
        assert texts(run_to_end(gateway, sound, "print('continues')")) == ["continues"]
        gateway.stop(signal.SIGTERM)
        segments = sorted((gateway.data_dir / "logs" / damaged).glob("*.log"))
        overwrite(segments, lambda size: [20])
        gateway.start()
        reports = [line for line in gateway.output.splitlines() if f"the log of kernel {damaged} is damaged" in line]
        assert len(reports) == 1, gateway.output
        assert texts(run_to_end(gateway, sound, "print('still')")) == ["still"]
        # The kernel of the damaged log still runs, and is available again after the log is deleted.
        assert gateway.rest("DELETE", f"api/logs/{damaged}").status_code == 204
        gateway.stop(signal.SIGTERM)
        gateway.start()
        assert texts(run_to_end(gateway, damaged, "print('still')")) == ["still"]
        assert "panicked" not in gateway.output
    finally:
        gateway.close()


def test_quotas_drop_the_logs_of_ended_kernels_and_trim_those_of_running_ones(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway("--log-quota", "60", "--log-quota-per-user", "30")

    def start(user: str, mebibytes: int) -> str:
        kernel_id: str = gateway.start_kernel(env={"KERNEL_USERNAME": user})["id"]
        print_mebibytes(kernel_id, mebibytes)
        return kernel_id

    def print_mebibytes(kernel_id: str, count: int) -> None:
        assert run_to_end(gateway, kernel_id, FLOOD.format(count))["status"] == "ok"

    def logs() -> dict[str, dict[str, Any]]:
        return {log["kernel_id"]: log for log in gateway.rest("GET", "api/logs").json()}

    def wait_for(kept: set[str]) -> None:
        eventually(lambda: logs().keys() == kept, f"only these logs are kept: {kept}", 60)

    of_ada, of_bob, running = start("ada", 10), start("bob", 10), start("ada", 10)
    for ended in (of_ada, of_bob):
        assert gateway.rest("DELETE", f"api/kernels/{ended}").status_code == 204
    # The owners of logs survive a restart, and no log is dropped before running kernels are found again.
    gateway.stop(signal.SIGTERM)
    gateway.start()
    assert logs().keys() == {of_ada, of_bob, running}
    print_mebibytes(running, 13)
    wait_for({of_bob, running})
    # The log of a running kernel loses its oldest entries, and requests for them are refused.
    print_mebibytes(running, 15)
    eventually(
        lambda: logs()[running]["earliest"] > 1 and logs()[running]["bytes"] <= 30 << 20, "the largest log is trimmed", 60
    )
    before = f"{logs()[running]['epoch']}:1"
    assert gateway.rest("GET", f"api/kernels/{running}/log?follow=false&from={before}").status_code == 410
    assert texts(run_to_end(gateway, running, "print('continues')")) == ["continues"]
    wait_for({of_bob, running})
    # Over the quota of all logs, the oldest log is dropped, regardless of its owner.
    of_eve = start("eve", 25)
    wait_for({running, of_eve})
    found = gateway.rest("GET", f"api/kernels/{of_bob}/log?follow=false")
    assert found.status_code == 404, found.text
    assert "panicked" not in gateway.output


def test_a_quota_is_refused_for_logs_that_other_gateways_write(home: Path) -> None:
    gateway = Gateway(home, "--log-quota", "60", "--log-nats", "nats://127.0.0.1:1")
    refused = subprocess.run(gateway.argv(), env=clean_env(home), capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "--log-nats" in refused.stderr, refused


def overwrite(files: list[Path], places: Callable[[int], Iterable[int]]) -> None:
    """Overwrites some bytes of each file, at the places that `places` returns for its size."""
    assert files, "there is no file to damage"
    for path in files:
        with path.open("r+b") as file:
            for at in places(path.stat().st_size):
                file.seek(at)
                file.write(b"something else")


class Nats:
    """A NATS server for one test."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
        if found is None:
            skip_or_fail("no nats-server: install Debian's package nats-server")
        assert found is not None
        self.port = free_port()
        self.argv = [found, "-js", "-a", "127.0.0.1", "-p", str(self.port), "-sd", str(folder)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self.answers, "nats-server answers", 60)

    def answers(self) -> bool:
        assert self.process.poll() is None, "nats-server ended"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def flags(self) -> list[str]:
        return ["--log-nats", f"nats://127.0.0.1:{self.port}"]


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    server = Nats(tmp_path / "jetstream")
    yield server
    server.kill()


def test_gateways_share_logs_in_nats(
    nats: Nats, start_gateway: Callable[..., Gateway]
) -> None:
    first, second = (start_gateway(*nats.flags) for _ in range(2))
    kernel_id = first.start_kernel()["id"]
    kept = run_to_end(first, kernel_id, "print('kept')")
    assert not (first.data_dir / "logs").exists(), "the log must not be on this disk"
    before = log_of(first, kernel_id)
    first.stop(signal.SIGKILL)
    first.start()
    # The restarted gateway continues the same log.
    assert log_of(first, kernel_id)[: len(before)] == before
    assert texts(run_to_end(first, kernel_id, "print('continues')")) == ["continues"]
    assert first.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    log = f"api/kernels/{kernel_id}/log?follow=false"
    eventually(
        lambda: '"execution_state":"dead"' in first.rest("GET", log).text.replace(" ", ""), "the kernel's end is stored"
    )
    # The other gateway has never run this kernel.
    listed = second.rest("GET", "api/logs").json()
    assert kernel_id in str(listed)
    execution = wait_ended(second, kernel_id, kept["msg_id"], 60)
    assert (execution["complete"], texts(execution)) == (True, ["kept"])
    assert log_of(second, kernel_id) == log_of(first, kernel_id)


def test_kernels_keep_running_while_nats_is_down(nats: Nats, start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(*nats.flags)
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id, "reads") as reader:
        assert reader.run("print('before')").strip() == "before"
        nats.kill()
        assert reader.run("print('meanwhile')", 60).strip() == "meanwhile"
        nats.start()

        def recorded() -> bool:
            msg_id = reader.execute("print('after')")
            reader.finish(msg_id, 60)
            found = gateway.rest("GET", f"api/kernels/{kernel_id}/executions/{msg_id}")
            return found.status_code == 200 and found.json()["complete"] is True

        eventually(recorded, "output is recorded again", 60)
    assert "panicked" not in gateway.output
