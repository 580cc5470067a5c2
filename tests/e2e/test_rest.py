"""The REST API that kernelmux shares with jupyter_server: its routes, models, tokens and CORS headers."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from harness.gateway import TOKEN, Gateway
from harness.waiting import eventually

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# The exact format that jupyter_server's gateway client parses with strptime.
ACTIVITY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z")
STATES = {"starting", "idle", "busy", "restarting", "dead"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def check_kernel(model: dict[str, Any], name: str = "python3") -> None:
    required = {"id", "name", "last_activity", "execution_state", "connections"}
    assert required <= set(model) <= required | {"reason", "kernelmux"}
    assert UUID4.fullmatch(model["id"])
    assert model["name"] == name
    assert ACTIVITY.fullmatch(model["last_activity"])
    parsed = datetime.strptime(model["last_activity"], "%Y-%m-%dT%H:%M:%S.%fZ")
    age = datetime.now(timezone.utc) - parsed.replace(tzinfo=timezone.utc)
    assert -5 < age.total_seconds() < 3600
    assert model["execution_state"] in STATES
    assert isinstance(model["connections"], int) and model["connections"] >= 0


def check_error(response: requests.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["Content-Type"].startswith("application/json")
    body = response.json()
    assert {"reason", "message"} <= set(body) <= {"reason", "message", "traceback"}
    assert isinstance(body["reason"], str) and isinstance(body["message"], str)
    assert not body.get("traceback")
    assert "Traceback" not in response.text and "panicked" not in response.text
    return dict(body)


# --- /api, /api/status, /api/me, descriptions, metrics


def test_api(gateway: Gateway) -> None:
    body = gateway.rest("GET", "api").json()
    assert re.match(r"\d+\.\d+", body["version"])
    assert re.match(r"\d+\.\d+", body["gateway_version"])


def test_status(gateway: Gateway) -> None:
    before = gateway.rest("GET", "api/status").json()
    assert set(before) == {"started", "last_activity", "kernels", "connections"}
    assert ACTIVITY.fullmatch(before["started"]) and ACTIVITY.fullmatch(before["last_activity"])
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id, "status") as client:
        client.run("1")
        during = gateway.rest("GET", "api/status").json()
        assert during["kernels"] == before["kernels"] + 1
        assert during["connections"] == before["connections"] + 1
        assert during["last_activity"] >= before["last_activity"]


def test_me(gateway: Gateway) -> None:
    body = gateway.rest("GET", "api/me").json()
    assert {"identity", "permissions"} <= set(body)
    assert body["identity"]["username"]


def test_metrics(gateway: Gateway) -> None:
    response = gateway.rest("GET", "metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    for line in response.text.splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r'[a-zA-Z_:][\w:]*(\{[^}]*\})? [-+0-9.eEInfNa]+', line), line


def test_descriptions(gateway: Gateway) -> None:
    response = gateway.rest("GET", "api/spec.yaml")
    assert response.status_code == 200
    description = gateway.rest("GET", "api/swagger.json").json()
    assert yaml.safe_load(response.text) == description
    paths = description["paths"]
    joined = " ".join(paths)
    for part in ("kernels", "kernelspecs", "sessions", "interrupt", "restart"):
        assert part in joined


@pytest.mark.parametrize("path", ["nothing", "api/nothing", "api/kernels/x/y/z", "api/kernelspecs/a/b"])
def test_unknown_paths_are_404(gateway: Gateway, path: str) -> None:
    body = check_error(gateway.rest("GET", path), 404)
    assert body["reason"] == "Not Found"


# --- kernelspecs


def test_kernelspecs(gateway: Gateway) -> None:
    body = gateway.rest("GET", "api/kernelspecs").json()
    assert set(body) == {"default", "kernelspecs"}
    assert body["default"] == "python3"
    assert {"python3", "bash", "deno"} <= set(body["kernelspecs"])
    python = body["kernelspecs"]["python3"]
    assert set(python) == {"name", "spec", "resources"}
    assert python["name"] == "python3"
    spec = python["spec"]
    assert {"argv", "env", "display_name", "language", "interrupt_mode", "metadata"} <= set(spec)
    assert spec["argv"][-1] == "{connection_file}"
    assert spec["language"] == "python"
    assert spec["interrupt_mode"] == "signal"
    assert spec["env"] == {}
    assert spec["metadata"]["debugger"] is True
    resources = python["resources"]
    assert resources["logo-64x64"] == "/kernelspecs/python3/logo-64x64.png"
    assert body["kernelspecs"]["deno"]["spec"]["language"] == "typescript"


def test_kernelspecs_of_a_user(gateway: Gateway) -> None:
    everyone = gateway.rest("GET", "api/kernelspecs").json()
    assert gateway.rest("GET", "api/kernelspecs?user=bob").json() == everyone


def test_one_kernelspec(gateway: Gateway) -> None:
    all_specs = gateway.rest("GET", "api/kernelspecs").json()["kernelspecs"]
    assert gateway.rest("GET", "api/kernelspecs/python3").json() == all_specs["python3"]
    check_error(gateway.rest("GET", "api/kernelspecs/nothing"), 404)


def test_a_kernelspec_name_appended_to_the_user_is_accepted(gateway: Gateway) -> None:
    # If KERNEL_USERNAME is set, jupyter_server appends the kernelspec's name to the query.
    spec = gateway.rest("GET", "api/kernelspecs?user=bob/python3").json()
    assert spec == gateway.rest("GET", "api/kernelspecs/python3").json()
    check_error(gateway.rest("GET", "api/kernelspecs?user=bob/nothing"), 404)


def test_kernelspec_resources(gateway: Gateway) -> None:
    resources = gateway.rest("GET", "api/kernelspecs/python3").json()["resources"]
    for path in resources.values():
        got = gateway.rest("GET", path)
        assert got.status_code == 200
        head = gateway.rest("HEAD", path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["Content-Length"] == str(len(got.content))
        if path.endswith(".png"):
            assert got.content.startswith(b"\x89PNG")
            assert got.headers["Content-Type"] == "image/png"
        if path.endswith(".svg"):
            assert got.headers["Content-Type"].startswith("image/svg+xml")
    check_error(gateway.rest("GET", "kernelspecs/python3/nothing.png"), 404)
    check_error(gateway.rest("GET", "kernelspecs/nothing/logo-64x64.png"), 404)


# --- kernels


def test_kernel_lifecycle(gateway: Gateway) -> None:
    before = {k["id"] for k in gateway.rest("GET", "api/kernels").json()}
    response = gateway.rest("POST", "api/kernels", json={"name": "python3"})
    assert response.status_code == 201
    model = response.json()
    check_kernel(model)
    kernel_id = model["id"]
    assert response.headers["Location"].endswith(f"/api/kernels/{kernel_id}")
    assert kernel_id not in before

    listed = gateway.rest("GET", "api/kernels").json()
    assert kernel_id in {k["id"] for k in listed}
    for kernel in listed:
        check_kernel(kernel, kernel["name"])

    got = gateway.rest("GET", f"api/kernels/{kernel_id}")
    assert got.status_code == 200
    check_kernel(got.json())
    gateway.wait_state(kernel_id, "idle")

    with gateway.socket(kernel_id, "life") as client:
        assert client.run("kept = 6; print(kept * 7)") == "42\n"
        eventually(
            lambda: (gateway.model(kernel_id) or {}).get("connections") == 1, "one connection"
        )
        interrupted = gateway.rest("POST", f"api/kernels/{kernel_id}/interrupt")
        assert interrupted.status_code == 204 and interrupted.content == b""
        restarted = gateway.rest("POST", f"api/kernels/{kernel_id}/restart", json={})
        assert restarted.status_code == 200
        check_kernel(restarted.json())
        assert restarted.json()["id"] == kernel_id
        # The connection now leads to the new process.
        assert client.run("'kept' in globals()") == "False"

    deleted = gateway.rest("DELETE", f"api/kernels/{kernel_id}")
    assert deleted.status_code == 204 and deleted.content == b""
    for method, tail in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/interrupt"),
        ("POST", "/restart"),
    ):
        check_error(gateway.rest(method, f"api/kernels/{kernel_id}{tail}"), 404)


@pytest.mark.parametrize("agent", ["off", "auto"])
def test_the_usage_of_a_kernel_and_its_processes(start_gateway: Callable[..., Gateway], agent: str) -> None:
    gateway = start_gateway("--agent", agent)
    kernel_id = gateway.start_kernel()["id"]
    path = f"api/kernels/{kernel_id}"
    assert "usage" not in gateway.rest("GET", path).json()["kernelmux"]

    def usage() -> dict[str, float]:
        return dict(gateway.rest("GET", f"{path}?usage=true").json()["kernelmux"]["usage"])

    before = usage()
    assert 0 < before["cpu_seconds"] < 60 and 10 << 20 < before["memory_bytes"] < 1 << 30
    with gateway.socket(kernel_id) as client:
        client.run("import subprocess, sys, time\nown = b'x' * (100 << 20)\nwhile time.process_time() < 3: pass")
        code = "x = b'x' * (100 << 20); print('ready', flush=True); input()"
        client.run(f"child = subprocess.Popen([sys.executable, '-c', {code!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)")
        client.run("child.stdout.readline()")
        after = usage()
        assert after["memory_bytes"] - before["memory_bytes"] > 200 << 20
        assert after["cpu_seconds"] >= 3
        client.run("child.kill(); child.wait()")
        assert after["memory_bytes"] - usage()["memory_bytes"] > 100 << 20
    assert gateway.rest("GET", f"{path}?usage=1").status_code == 400


def test_kernel_state_follows_execution(gateway: Gateway, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id, "state") as client:
        before = gateway.wait_state(kernel_id, "idle")["last_activity"]
        msg_id = client.execute(
            f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(.02)"
        )
        gateway.wait_state(kernel_id, "busy")
        gate.touch()
        client.finish(msg_id)
        assert gateway.wait_state(kernel_id, "idle")["last_activity"] > before


@pytest.mark.parametrize("body", [b"", b"{}", b'{"name": null}', b'{"path": "x"}'])
def test_the_default_kernel_starts_without_a_name(gateway: Gateway, body: bytes) -> None:
    response = gateway.rest("POST", "api/kernels", data=body)
    assert response.status_code == 201, response.text
    check_kernel(response.json())
    gateway.rest("DELETE", f"api/kernels/{response.json()['id']}")


def test_the_client_can_choose_the_kernel_id(gateway: Gateway) -> None:
    by_env, by_body = str(uuid.uuid4()), str(uuid.uuid4())
    with gateway.kernel(env={"KERNEL_ID": by_env}) as kernel_id:
        assert kernel_id == by_env
        again = gateway.rest("POST", "api/kernels", json={"env": {"KERNEL_ID": by_env}})
        assert again.status_code == 409, again.text
        check_error(again, 409)
        # The running kernel is not affected.
        with gateway.socket(kernel_id, "named") as client:
            assert client.run("6 * 7") == "42"
    with gateway.kernel(kernel_id=by_body) as kernel_id:
        assert kernel_id == by_body


def test_an_unknown_kernelspec_is_a_client_error(gateway: Gateway) -> None:
    response = gateway.rest("POST", "api/kernels", json={"name": "nothing"})
    assert response.status_code in (400, 404), response.status_code
    body = check_error(response, response.status_code)
    assert "nothing" in body["message"]


def test_environment_of_a_kernel(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway(
        env={"SERVER_SECRET": "hidden", "GIT_AUTH_TOKEN": "hidden", "KERNELMUX_LOG": "info"}
    )
    env = {"KERNEL_USERNAME": "ada", "KERNEL_EXTRA": "x=y z", "NOT_ALLOWED": "no"}
    with gateway.kernel(env=env) as kernel_id, gateway.socket(kernel_id, "env") as client:
        text = client.run(
            "import os, json; print(json.dumps(dict(os.environ)))",
        )
        import json

        seen = json.loads(text)
    assert seen["KERNEL_USERNAME"] == "ada"
    assert seen["KERNEL_EXTRA"] == "x=y z"
    assert seen["KERNEL_GATEWAY"] == "1"
    assert seen["KERNEL_ID"] == kernel_id
    assert "NOT_ALLOWED" not in seen
    assert "SERVER_SECRET" not in seen
    assert not [name for name in seen if name.endswith("_AUTH_TOKEN")]
    # The gateway's configuration, which includes its token, must not reach kernels.
    assert not [name for name in seen if name.startswith("KERNELMUX_")]
    assert TOKEN not in text


def test_concurrent_starts_keep_their_environments_apart(gateway: Gateway) -> None:
    results: dict[str, str] = {}

    def start(user: str) -> None:
        env = {"KERNEL_USERNAME": user, f"KERNEL_ONLY_{user.upper()}": "1"}
        model = requests.post(
            gateway.url + "api/kernels", json={"env": env}, headers=gateway.headers(), timeout=60
        ).json()
        with gateway.socket(model["id"], user) as client:
            results[user] = client.run(
                "import os; print(sorted(k + '=' + v for k, v in os.environ.items()"
                " if k.startswith('KERNEL_ONLY') or k == 'KERNEL_USERNAME'))"
            ).strip()
        gateway.rest("DELETE", f"api/kernels/{model['id']}")

    users = ["ada", "bob", "eve"]
    threads = [threading.Thread(target=start, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert results == {
        user: f"['KERNEL_ONLY_{user.upper()}=1', 'KERNEL_USERNAME={user}']" for user in users
    }


def test_working_directory(gateway: Gateway, tmp_path: Path) -> None:
    env = {"KERNEL_WORKING_DIR": str(tmp_path)}
    with gateway.kernel(env=env) as kernel_id, gateway.socket(kernel_id, "cwd") as client:
        assert client.run("import os; print(os.getcwd())").strip() == str(tmp_path)


def test_a_missing_working_directory_is_ignored(gateway: Gateway) -> None:
    # JupyterLab sends a directory of its own machine, which may not exist here.
    with gateway.kernel(env={"KERNEL_WORKING_DIR": "/nowhere/at/all"}) as kernel_id:
        with gateway.socket(kernel_id, "cwd") as client:
            assert client.run("6 * 7") == "42"


def test_a_failed_start_reports_the_cause(start_gateway: Callable[..., Gateway], make_home: Any) -> None:
    import json

    specs = make_home("specs")
    for name, argv in {
        "missing": ["/nowhere/python", "{connection_file}"],
        "dies": ["python", "-c", "import sys; sys.exit('the licence has run out')"],
    }.items():
        folder = specs / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": argv, "display_name": name, "language": "x"}
        (folder / "kernel.json").write_text(json.dumps(spec))
    gateway = start_gateway(env={"JUPYTER_PATH": str(specs)})
    for name, evidence in {"missing": "/nowhere/python", "dies": "the licence has run out"}.items():
        response = gateway.rest("POST", "api/kernels", json={"name": name})
        assert response.status_code >= 400, response.text
        body = check_error(response, response.status_code)
        assert evidence in body["message"], body
    assert gateway.rest("GET", "api/kernels").json() == []
    assert not gateway.kernel_pids()


# --- sessions


def check_session(model: dict[str, Any], path: str, name: str = "", kind: str = "notebook") -> None:
    assert {"id", "path", "name", "type", "kernel"} <= set(model)
    assert set(model) <= {"id", "path", "name", "type", "kernel", "notebook"}
    assert (model["path"], model["name"], model["type"]) == (path, name, kind)
    check_kernel(model["kernel"], model["kernel"]["name"])
    if kind == "notebook":
        assert model["notebook"] == {"path": path, "name": name}


def test_session_lifecycle(gateway: Gateway) -> None:
    body = {"path": "a/b.ipynb", "type": "notebook", "name": "b", "kernel": {"name": "python3"}}
    response = gateway.rest("POST", "api/sessions", json=body)
    assert response.status_code == 201, response.text
    model = response.json()
    check_session(model, "a/b.ipynb", "b")
    session_id, kernel_id = model["id"], model["kernel"]["id"]
    assert response.headers["Location"].endswith(f"/api/sessions/{session_id}")
    assert session_id in {s["id"] for s in gateway.rest("GET", "api/sessions").json()}
    check_session(gateway.rest("GET", f"api/sessions/{session_id}").json(), "a/b.ipynb", "b")

    # Creating a session for the same path returns the existing one.
    again = gateway.rest("POST", "api/sessions", json=body)
    assert again.status_code == 201 and again.json()["id"] == session_id

    renamed = gateway.rest("PATCH", f"api/sessions/{session_id}", json={"path": "c.ipynb", "name": "c"})
    assert renamed.status_code == 200, renamed.text
    check_session(renamed.json(), "c.ipynb", "c")
    assert renamed.json()["kernel"]["id"] == kernel_id

    moved = gateway.rest(
        "PATCH", f"api/sessions/{session_id}", json={"kernel": {"name": "bash"}}
    )
    assert moved.status_code == 200, moved.text
    assert moved.json()["kernel"]["name"] == "bash"

    deleted = gateway.rest("DELETE", f"api/sessions/{session_id}")
    assert deleted.status_code == 204
    check_error(gateway.rest("GET", f"api/sessions/{session_id}"), 404)
    check_error(gateway.rest("DELETE", f"api/sessions/{session_id}"), 404)
    assert gateway.model(moved.json()["kernel"]["id"]) is None
    gateway.rest("DELETE", f"api/kernels/{kernel_id}")


def test_a_session_can_use_a_running_kernel(gateway: Gateway) -> None:
    with gateway.kernel() as kernel_id:
        body = {"path": "x", "type": "console", "kernel": {"id": kernel_id}}
        model = gateway.rest("POST", "api/sessions", json=body).json()
        check_session(model, "x", "", "console")
        assert model["kernel"]["id"] == kernel_id
        gateway.rest("DELETE", f"api/kernels/{kernel_id}")
        gone = gateway.rest("DELETE", f"api/sessions/{model['id']}")
        assert gone.status_code in (404, 410), gone.status_code


def test_the_legacy_session_body_is_accepted(gateway: Gateway) -> None:
    body = {"notebook": {"path": "old.ipynb"}, "kernel": {"name": "python3"}}
    response = gateway.rest("POST", "api/sessions", json=body)
    assert response.status_code == 201, response.text
    check_session(response.json(), "old.ipynb")
    gateway.rest("DELETE", f"api/sessions/{response.json()['id']}")


def test_session_errors(gateway: Gateway) -> None:
    body = check_error(gateway.rest("POST", "api/sessions", json={"type": "notebook"}), 400)
    assert body["message"] == "Missing field in JSON data: path"
    nothing = {"path": "p", "type": "notebook", "kernel": {"name": "nothing"}}
    check_error(gateway.rest("POST", "api/sessions", json=nothing), 501)
    for method in ("GET", "PATCH", "DELETE"):
        check_error(gateway.rest(method, f"api/sessions/{UNKNOWN}", json={}), 404)


# --- authentication, origins, methods


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"token {TOKEN}"},
        {"Authorization": f"Token {TOKEN}"},
        {"Authorization": f"TOKEN {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"bearer {TOKEN}"},
    ],
)
def test_token_in_the_header(gateway: Gateway, headers: dict[str, str]) -> None:
    assert gateway.rest("GET", "api/kernels", headers=headers).status_code == 200


def test_token_in_the_query(gateway: Gateway) -> None:
    assert gateway.rest("GET", f"api/kernels?token={TOKEN}", headers={}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "token"},
        {"Authorization": "token "},
        {"Authorization": "token wrong"},
        {"Authorization": f"token {TOKEN}x"},
        {"Authorization": f"token {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
)
@pytest.mark.parametrize(
    "method,path",
    [
        ("GET", "api/kernels"),
        ("POST", "api/kernels"),
        ("GET", "api/kernelspecs"),
        ("GET", "kernelspecs/python3/logo-64x64.png"),
        ("GET", "api/sessions"),
        ("GET", "api/status"),
        ("GET", f"api/kernels/{UNKNOWN}/channels"),
        ("DELETE", f"api/kernels/{UNKNOWN}"),
    ],
)
def test_requests_without_a_valid_token_are_refused(
    gateway: Gateway, headers: dict[str, str], method: str, path: str
) -> None:
    response = gateway.rest(method, path, headers=headers)
    assert response.status_code in (401, 403), response.status_code
    check_error(response, response.status_code)
    assert TOKEN not in response.text


def test_a_wrong_token_in_the_query_is_refused(gateway: Gateway) -> None:
    for query in ("token=wrong", "token=", f"token={TOKEN}x", f"Token={TOKEN}"):
        response = gateway.rest("GET", f"api/kernels?{query}", headers={})
        assert response.status_code in (401, 403), query


def test_no_auth_accepts_any_token(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(token=None)
    for headers in ({}, {"Authorization": "token"}, {"Authorization": "token anything"}):
        assert gateway.rest("GET", "api/kernels", headers=headers).status_code == 200
    with gateway.kernel() as kernel_id, gateway.socket(kernel_id) as client:
        assert client.run("6 * 7") == "42"


def test_base_url(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(base_url="/some/where/")
    assert gateway.url.endswith("/some/where/")
    spec = gateway.rest("GET", "api/kernelspecs/python3").json()
    logo = spec["resources"]["logo-64x64"]
    assert logo == "/some/where/kernelspecs/python3/logo-64x64.png"
    root = gateway.url.removesuffix("/some/where/")
    headers = gateway.headers()
    assert requests.get(root + logo, headers=headers, timeout=30).status_code == 200
    assert requests.get(root + "/api/kernels", headers=headers, timeout=30).status_code == 404
    response = gateway.rest("POST", "api/kernels", json={})
    assert response.headers["Location"].endswith(f"/some/where/api/kernels/{response.json()['id']}")
    with gateway.socket(response.json()["id"]) as client:
        assert client.run("6 * 7") == "42"


def test_options_needs_no_token(gateway: Gateway) -> None:
    for path in ("api/kernels", "api/sessions", "api/kernelspecs", f"api/kernels/{UNKNOWN}"):
        response = gateway.rest("OPTIONS", path, headers={})
        assert response.status_code in (200, 204), (path, response.status_code)


def test_cors_headers_are_sent_to_allowed_origins_only(
    gateway: Gateway, start_gateway: Callable[..., Gateway]
) -> None:
    origin = "http://lab.example:1234"
    preflight = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    plain = gateway.rest("OPTIONS", "api/kernels", headers=preflight)
    assert "Access-Control-Allow-Origin" not in plain.headers
    allowing = start_gateway("--allow-origin", origin)
    response = allowing.rest("OPTIONS", "api/kernels", headers=preflight)
    assert response.status_code in (200, 204)
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed and "content-type" in allowed
    got = allowing.rest("GET", "api/kernels", headers={**allowing.headers(), "Origin": origin})
    assert got.headers["Access-Control-Allow-Origin"] == origin
    # The page can also read errors.
    wrong = allowing.rest("GET", "api/kernels/x", headers={**allowing.headers(), "Origin": origin})
    assert wrong.headers["Access-Control-Allow-Origin"] == origin
    other = {**allowing.headers(), "Origin": "http://evil.example"}
    assert allowing.rest("GET", "api/kernels", headers=other).headers.get(
        "Access-Control-Allow-Origin"
    ) in (None, origin)


def test_head(gateway: Gateway) -> None:
    for path in ("api", "api/kernels", "api/kernelspecs"):
        response = gateway.rest("HEAD", path)
        assert response.status_code == 200 and response.content == b"", path


@pytest.mark.parametrize(
    "method,path",
    [
        ("PUT", "api/kernels"),
        ("DELETE", "api/kernels"),
        ("PATCH", f"api/kernels/{UNKNOWN}"),
        ("POST", "api/kernelspecs"),
        ("GET", f"api/kernels/{UNKNOWN}/interrupt"),
        ("GET", f"api/kernels/{UNKNOWN}/restart"),
        ("PUT", f"api/sessions/{UNKNOWN}"),
    ],
)
def test_wrong_method(gateway: Gateway, method: str, path: str) -> None:
    check_error(gateway.rest(method, path), 405)
