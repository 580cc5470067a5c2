"""Executions over HTTP: running code without a client, lists of executions, logs of ended kernels, the event stream."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from harness.reconnecting import log_of
from harness.executions import get_execution, run, wait_ended
from harness.gateway import Gateway, alive, python_pid
from harness.waiting import eventually
from harness.wire import execute_request, message, parent_of

UNKNOWN = str(uuid.uuid4())
OTHER_LOG = "9f86d081884c7d659a2feaa0c55ad015"


@pytest.fixture(scope="module")
def gateway(make_home: Callable[[str], Path], built: None) -> Iterator[Gateway]:
    gateway = Gateway(make_home("executions")).start()
    yield gateway
    gateway.close()


@pytest.fixture
def kernel(gateway: Gateway) -> Iterator[str]:
    with gateway.kernel() as kernel_id:
        yield kernel_id


def test_code_runs_once_and_without_a_client(gateway: Gateway, kernel: str) -> None:
    code = "n = globals().get('n', 0) + 1\nprint(f'run {n}')\nn"
    first = run(gateway, kernel, code, msg_id="mine", cellId="cell-1")
    assert first["status"] in ("queued", "running", "ok")
    again = run(gateway, kernel, code, msg_id="mine")
    assert again["url"] == first["url"]
    other = {"code": "print('another')", "msg_id": "mine"}
    refused = gateway.rest("POST", f"api/kernels/{kernel}/executions", json=other)
    assert refused.status_code == 409 and "mine" in refused.json()["message"], refused.text
    done = wait_ended(gateway, kernel, "mine")
    assert done["status"] == "ok" and done["execution_count"] == 1 and done["cellId"] == "cell-1"
    assert done["code"] == code
    assert done["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "run 1\n"},
        {"output_type": "execute_result", "execution_count": 1, "data": {"text/plain": "1"}, "metadata": {}},
    ]
    assert done["complete"] is True and done["truncated"] is False
    # The same message over a WebSocket is neither executed nor answered again.
    with gateway.socket(kernel, "s") as client:
        request = message("execute_request", execute_request(code))
        request["header"]["msg_id"] = "mine"
        client.send(request)
        assert client.run("n") == "1"
        assert not [msg for msg in client.seen if parent_of(msg) == "mine"]


def test_executions_are_listed_by_cell_status_time_and_page(gateway: Gateway, kernel: str) -> None:
    for number, code in enumerate(["1", "1/0", "print(3)", "4"]):
        run(gateway, kernel, code, msg_id=f"m{number}", cellId=f"c{number % 2}")
        wait_ended(gateway, kernel, f"m{number}")

    def listed(query: str) -> list[str]:
        response = gateway.rest("GET", f"api/kernels/{kernel}/executions?{query}")
        assert response.status_code == 200, response.text
        return [execution["msg_id"] for execution in response.json()["executions"]]

    assert listed("") == ["m3", "m2", "m1", "m0"]
    assert listed("cellId=c0") == ["m2", "m0"]
    assert listed("status=error") == ["m1"]
    assert listed("status=ok,error&cellId=c1") == ["m3", "m1"]
    requested = get_execution(gateway, kernel, "m2")["requested"]
    assert listed(f"since={requested}") == ["m3", "m2"]
    assert listed(f"until={requested}") == ["m1", "m0"]
    paged: list[str] = []
    query = "limit=3"
    while True:
        page = gateway.rest("GET", f"api/kernels/{kernel}/executions?{query}").json()
        paged += [execution["msg_id"] for execution in page["executions"]]
        if page["next"] is None:
            break
        query = f"limit=3&before={page['next']}"
    assert paged == ["m3", "m2", "m1", "m0"]
    error = get_execution(gateway, kernel, "m1")
    assert error["outputs"][0]["ename"] == "ZeroDivisionError"


def test_a_client_that_connects_later_can_answer_an_input_request(gateway: Gateway, kernel: str) -> None:
    run(gateway, kernel, "print('hello ' + input('name? '))", msg_id="asks", session="s", allow_stdin=True)

    def input_request() -> Any:
        return get_execution(gateway, kernel, "asks")["input_request"]

    assert eventually(input_request, "the execution waits for input") == {"prompt": "name? ", "password": False}
    with gateway.socket(kernel, "s") as client:
        client.send(message("input_reply", {"value": "me"}, "stdin", "s"))
        done = wait_ended(gateway, kernel, "asks")
    assert done["input_request"] is None
    assert "hello me\n" in "".join(output["text"] for output in done["outputs"])


def test_a_log_outlives_its_kernel_until_it_is_deleted(gateway: Gateway) -> None:
    with gateway.kernel() as kernel:
        run(gateway, kernel, "print('kept')", msg_id="m")
        before = wait_ended(gateway, kernel, "m")
        assert gateway.rest("DELETE", f"api/logs/{kernel}").status_code == 409
        listed = {log["kernel_id"]: log for log in gateway.rest("GET", "api/logs").json()}
        assert listed[kernel]["running"] is True and listed[kernel]["name"] == "python3"
        # A shutdown interrupts the kernel first. The code ignores that, or it would end with an error.
        code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
        run(gateway, kernel, code, msg_id="unfinished")
    assert gateway.model(kernel) is None
    after = get_execution(gateway, kernel, "m")
    assert after["outputs"] == before["outputs"]
    unfinished = get_execution(gateway, kernel, "unfinished")
    assert (unfinished["status"], unfinished["reason"]) == ("died", "shut down as requested")
    entries = log_of(gateway, kernel)
    assert [seq for seq, _ in entries] == list(range(1, len(entries) + 1))
    listed = {log["kernel_id"]: log for log in gateway.rest("GET", "api/logs").json()}
    assert listed[kernel]["running"] is False and listed[kernel]["head"] == len(entries)
    assert gateway.rest("POST", f"api/kernels/{kernel}/executions", json={"code": "1"}).status_code == 404
    assert gateway.rest("DELETE", f"api/logs/{kernel}").status_code == 204
    for method, path in [
        ("DELETE", f"api/logs/{kernel}"),
        ("GET", f"api/kernels/{kernel}/executions"),
        ("GET", f"api/kernels/{kernel}/executions/m"),
        ("GET", f"api/kernels/{kernel}/log"),
    ]:
        assert gateway.rest(method, path).status_code == 404, path


def test_the_last_output_of_a_dying_kernel_is_recorded(gateway: Gateway, kernel: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "for i in range(200): print(i)\n"
        "import sys; sys.stdout.flush(); time.sleep(1); os._exit(7)"
    )
    with gateway.socket(kernel, "s") as client:
        pid = python_pid(client)
    run(gateway, kernel, code, msg_id="last")
    eventually(lambda: get_execution(gateway, kernel, "last")["status"] == "running", "the cell runs")
    # The kernel prints and ends while the gateway is suspended, so the gateway finds output and end at the same time.
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        go.touch()
        eventually(lambda: not alive(pid), "the kernel has ended")
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    done = wait_ended(gateway, kernel, "last")
    assert (done["status"], done["reason"]) == ("died", "exited with code 7")
    assert done["outputs"][0]["text"] == "".join(f"{i}\n" for i in range(200))


def events(response: requests.Response) -> Iterator[dict[str, str]]:
    """The events of a `text/event-stream`."""
    event: dict[str, str] = {}
    for line in response.iter_lines(chunk_size=None):
        if line:
            name, _, value = line.decode().partition(": ")
            # A line without a name is a comment, which the gateway sends to keep the connection alive.
            if name:
                event[name] = value
        elif event:
            yield event
            event = {}


def test_the_event_stream_follows_a_kernel_to_its_end(gateway: Gateway) -> None:
    with gateway.kernel() as kernel:
        run(gateway, kernel, "print('before')", msg_id="m")
        wait_ended(gateway, kernel, "m")
        address = f"api/kernels/{kernel}/log"
        whole = list(events(gateway.rest("GET", f"{address}?follow=false")))
        assert whole[-1] == {"event": "end", "data": '{"reason":"head"}'}
        middle = whole[len(whole) // 2]["id"]
        for how in ({"params": {"from": middle}}, {"headers": {**gateway.headers(), "Last-Event-ID": middle}}):
            rest = list(events(gateway.rest("GET", f"{address}?follow=false", **how)))
            assert rest == whole[len(whole) // 2 + 1 :]
        stream = gateway.rest("GET", f"{address}?from=head", stream=True)
        assert stream.headers["Content-Type"] == "text/event-stream"
        run(gateway, kernel, "print('after')", msg_id="n")
        following = events(stream)
        entry = next(
            entry for entry in map(lambda event: json.loads(event["data"]), following)
            if entry["header"]["msg_type"] == "stream"
        )
        assert entry["content"]["text"] == "after\n"
        assert all("seq" in json.loads(event["data"]) for event in whole[:-1])
    last = list(following)[-1]
    assert last == {"event": "end", "data": '{"reason":"gone"}'}


def test_curl_can_read_the_event_stream(gateway: Gateway, kernel: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    command = [curl, "-sN", "-H", f"Authorization: token {gateway.token}", f"{gateway.url}api/kernels/{kernel}/log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        killer = threading.Timer(60, process.kill)
        killer.start()
        try:
            run(gateway, kernel, "print('to curl')")
            assert process.stdout is not None
            assert any("to curl\\n" in line for line in process.stdout)
        finally:
            killer.cancel()
            process.kill()


BAD: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "api/kernels/{k}/executions?limit=x", {}, 400),
    ("GET", "api/kernels/{k}/executions?before=-1", {}, 400),
    ("GET", "api/kernels/{k}/executions?since=yesterday", {}, 400),
    ("GET", "api/kernels/{k}/executions?status=great", {}, 400),
    ("GET", "api/kernels/{k}/executions/nothing", {}, 404),
    ("GET", "api/kernels/{k}/executions/%00%ff", {}, 400),
    ("GET", f"api/kernels/{UNKNOWN}/executions", {}, 404),
    ("GET", f"api/kernels/{UNKNOWN}/executions/m", {}, 404),
    ("GET", "api/kernels/nonsense/executions", {}, 404),
    ("POST", "api/kernels/{k}/executions", {"json": {}}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": {"code": 1}}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": []}, 400),
    ("POST", "api/kernels/{k}/executions", {"data": b"{"}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": {"code": "1", "msg_id": ""}}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": {"code": "1", "msg_id": "x" * 257}}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": {"code": "1", "msg_id": 7}}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": {"code": "1", "silent": "yes"}}, 400),
    ("POST", "api/kernels/{k}/executions", {"json": {"code": "1", "cellId": ["c"]}}, 400),
    ("POST", "api/kernels/{k}/executions", {"data": b" " * (2 << 20)}, 413),
    ("POST", f"api/kernels/{UNKNOWN}/executions", {"json": {"code": "1"}}, 404),
    ("DELETE", "api/kernels/{k}/executions", {}, 405),
    ("GET", "api/kernels/{k}/log?from=7", {}, 400),
    ("GET", "api/kernels/{k}/log?from=", {}, 400),
    ("GET", f"api/kernels/{{k}}/log?from={OTHER_LOG}:x", {}, 400),
    ("GET", f"api/kernels/{{k}}/log?from={OTHER_LOG}:18446744073709551616", {}, 400),
    ("GET", f"api/kernels/{{k}}/log?from={OTHER_LOG}:4711", {}, 410),
    ("GET", "api/kernels/{k}/log?follow=maybe", {}, 400),
    ("GET", f"api/kernels/{UNKNOWN}/log", {}, 404),
    ("POST", "api/kernels/{k}/log", {}, 405),
    ("GET", "api/kernels/{k}/channels?resume=7", {}, 400),
    ("DELETE", f"api/logs/{UNKNOWN}", {}, 404),
    ("DELETE", "api/logs/nonsense", {}, 404),
    ("POST", "api/logs", {}, 405),
]


def test_bad_input_is_refused_with_the_matching_status(gateway: Gateway, kernel: str) -> None:
    for method, path, options, status in BAD:
        response = gateway.rest(method, path.replace("{k}", kernel), **options)
        assert response.status_code == status, (method, path, response.status_code, response.text[:300])
        assert set(response.json()) >= {"reason", "message"}, (path, response.text)
    for path in (f"api/kernels/{kernel}/executions", f"api/kernels/{kernel}/log", "api/logs"):
        assert gateway.rest("GET", path, headers={}).status_code in (401, 403), path
    with gateway.socket(kernel, "after") as client:
        assert client.run("1 + 1") == "2"


def test_a_lost_position_is_answered_with_the_earliest_one(gateway: Gateway, kernel: str) -> None:
    response = gateway.rest("GET", f"api/kernels/{kernel}/log?from={OTHER_LOG}:4711")
    assert response.status_code == 410
    body = response.json()
    start = f"{body['epoch']}:{body['earliest'] - 1}"
    again = gateway.rest("GET", f"api/kernels/{kernel}/log?follow=false&from={start}")
    assert again.status_code == 200
    assert next(events(again))["id"] == f"{body['epoch']}:{body['earliest']}"
