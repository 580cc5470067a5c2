"""Where logs are kept, seen through the gateway: a disk that is full, that cannot be written, that holds something else
than was written; and NATS, which several gateways share."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import lacking
from harness.coming_back import log_of
from harness.executions import ended, run
from harness.gateway import Gateway, clean_env, free_port
from harness.waiting import eventually

pytestmark = pytest.mark.timeout(180)

LINES = 25
FLOOD = "for i in range({}):\n    print(f'{{i:05}}' + 'x' * 999_995, flush=True)"


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own at `folder`; gives what changes its mount options."""
    folder.mkdir(mode=0o700, parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "kernelmux-test", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, text=True)
        why = mounted.stderr if mounted.returncode else ""
    except FileNotFoundError as error:
        why = str(error)
    if why:
        lacking(f"a tmpfs cannot be mounted: {why.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def home(built: None, make_home: Callable[[str], Path]) -> Path:
    return make_home("stores")


def detached(gateway: Gateway, kernel_id: str, code: str) -> dict[str, Any]:
    """Runs code with no client; the execution as it ended."""
    return ended(gateway, kernel_id, run(gateway, kernel_id, code)["msg_id"], 60)


def texts(one: dict[str, Any]) -> list[str]:
    return "".join(output["text"] for output in one["outputs"]).splitlines()


def test_a_full_disk_ends_the_recording_for_a_while_and_nothing_else(home: Path) -> None:
    gateway = Gateway(home)
    with small_disk(gateway.data_dir / "logs", "size=64m") as remount:
        try:
            gateway.start()
            flooding, other = (gateway.start_kernel()["id"] for _ in range(2))
            before = detached(gateway, other, "print('before')")
            with gateway.socket(flooding, "reads") as reader:
                # Until there is no room, and twenty more, to a client that keeps up and gets every line of it.
                refused = 0
                while refused < 20:
                    assert len(reader.run(FLOOD.format(1))) == 1_000_001
                    reader.seen.clear()
                    refused += "no room" in gateway.output
                # Nothing more can be written, and who is connected does not notice.
                assert reader.run("print(6 * 7)").strip() == "42"
                assert gateway.output.count("is not being recorded") <= 4, "one clear line, not one for each entry"
                [stored] = [log for log in gateway.rest("GET", "api/logs").json() if log["kernel_id"] == flooding]
                remount("size=1g")

                def recorded() -> bool:
                    reader.run("print('is there room?')")
                    start = f"{stored['epoch']}:{stored['head']}"
                    log = gateway.rest("GET", f"api/kernels/{flooding}/log?follow=false&from={start}").text
                    return "event: gap" in log and '"event":"not_recorded"' in log.replace(" ", "")

                eventually(recorded, "the log goes on, and says where it stopped", 60)
                whole = gateway.rest("GET", f"api/kernels/{flooding}/log?follow=false").text
                *_, behind = re.findall(r"^id: (\S+)\nevent: gap", whole, re.MULTILINE)
                rest = gateway.rest("GET", f"api/kernels/{flooding}/log?follow=false&from={behind}").text
                assert rest.startswith("id: ") and "event: gap" not in rest, "a gap is told once"
            after = detached(gateway, flooding, "print('after')")
            assert (after["complete"], texts(after)) == (True, ["after"])
            again = ended(gateway, other, before["msg_id"], 60)
            assert (again["complete"], texts(again)) == (True, ["before"])
            assert texts(detached(gateway, other, "print('goes on')")) == ["goes on"]
        finally:
            gateway.close()


def test_a_disk_that_turns_read_only_is_told_once_and_kernels_go_on(home: Path) -> None:
    gateway = Gateway(home)
    with small_disk(gateway.data_dir / "logs", "size=200m") as remount:
        try:
            gateway.start()
            kernel_id = gateway.start_kernel()["id"]
            kept = detached(gateway, kernel_id, "x = 6")
            gateway.stop(signal.SIGTERM)
            remount("ro")
            refused = subprocess.run(gateway.argv(), env=clean_env(home), capture_output=True, text=True, timeout=60)
            assert refused.returncode not in (0, 101), refused
            said = refused.stderr.strip().splitlines()
            assert "Read-only" in said[-1] and str(gateway.data_dir / "logs") in said[-1], refused
            remount("rw")
            gateway.start()
            # The kernel lived on, and so does its log.
            one = ended(gateway, kernel_id, kept["msg_id"], 60)
            assert one["status"] == "ok"
            assert texts(detached(gateway, kernel_id, "print(x * 7)")) == ["42"]
        finally:
            gateway.close()


def test_a_damaged_log_is_told_and_other_kernels_do_not_notice(home: Path) -> None:
    gateway = Gateway(home)
    try:
        gateway.start()
        damaged, sound = (gateway.start_kernel()["id"] for _ in range(2))
        # So much that it is in tables, which are files of the kernel's own.
        for _ in range(2):
            detached(gateway, damaged, FLOOD.format(LINES))
        kept = detached(gateway, sound, "print('sound')")
        gateway.stop(signal.SIGTERM)
        keyspaces = [path for path in (gateway.data_dir / "logs" / "keyspaces").iterdir() if path.is_dir()]
        largest = max(keyspaces, key=lambda path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        files = [file for file in largest.rglob("*") if file.is_file() and file.stat().st_size > 100_000]
        assert files, "there are tables"
        for file in files:
            with file.open("r+b") as table:
                for at in range(50_000, file.stat().st_size, 100_000):
                    table.seek(at)
                    table.write(b"something else")
        gateway.start()
        told = [line for line in gateway.output.splitlines() if f"the log of kernel {damaged} is damaged" in line]
        assert len(told) == 1, gateway.output
        one = ended(gateway, sound, kept["msg_id"], 60)
        assert (one["complete"], texts(one)) == (True, ["sound"])
        assert texts(detached(gateway, sound, "print('goes on')")) == ["goes on"]
        assert "something else" not in gateway.rest("GET", f"api/kernels/{damaged}/log?follow=false").text
        # Its kernel runs on, and is there again once the log is not.
        assert gateway.rest("DELETE", f"api/logs/{damaged}").status_code == 204
        gateway.stop(signal.SIGTERM)
        gateway.start()
        assert texts(detached(gateway, damaged, "print('still')")) == ["still"]
        assert "panicked" not in gateway.output
    finally:
        gateway.close()


class Nats:
    """A NATS server of the test's own."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
        if found is None:
            lacking("no nats-server: install Debian's package nats-server")
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
    kept = detached(first, kernel_id, "print('kept')")
    assert not (first.data_dir / "logs").exists(), "nothing of it is on this disk"
    before = log_of(first, kernel_id)
    first.stop(signal.SIGKILL)
    first.start()
    # The same log, in which it goes on.
    assert log_of(first, kernel_id)[: len(before)] == before
    assert texts(detached(first, kernel_id, "print('goes on')")) == ["goes on"]
    assert first.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
    log = f"api/kernels/{kernel_id}/log?follow=false"
    eventually(lambda: '"execution_state":"dead"' in first.rest("GET", log).text.replace(" ", ""), "its end is stored")
    # The other one has never had this kernel.
    listed = second.rest("GET", "api/logs").json()
    assert kernel_id in str(listed)
    one = ended(second, kernel_id, kept["msg_id"], 60)
    assert (one["complete"], texts(one)) == (True, ["kept"])
    assert log_of(second, kernel_id) == log_of(first, kernel_id)


def test_kernels_go_on_while_nats_is_away(nats: Nats, start_gateway: Callable[..., Gateway]) -> None:
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
            one = gateway.rest("GET", f"api/kernels/{kernel_id}/executions/{msg_id}")
            return one.status_code == 200 and one.json()["complete"] is True

        eventually(recorded, "what is said is kept again", 60)
    assert "panicked" not in gateway.output
