"""The Helm chart of deploy/helm: what it makes, an installation on a real cluster, and an upgrade under load."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import skip_or_fail
from harness.agents import assert_whole, losses, numbered, text_of
from harness.certificates import Authority
from harness.cluster import IMAGE, POD, run as run_command, why_no_dev_cluster
from harness.executions import run, wait_ended
from harness.gateway import REPO, TOKEN, binary
from harness.helm import CHART, RELEASE, Release, program, refused, template
from harness.reconnecting import EventClient, LogClient, ResumeClient, entries_of
from harness.waiting import eventually

# The first test builds Helm.
pytestmark = pytest.mark.timeout(1200)

PYTHON = {
    "argv": ["python3", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Python 3",
    "language": "python",
    "interrupt_mode": "message",
    "metadata": {"kernelmux": {"kubernetes": {"image": "localhost/kernelmux/python:dev"}}},
}

# Every value that changes what the chart makes.
ALL: dict[str, Any] = {
    "image": {"repository": "registry.example/gateway", "tag": "2"},
    "imagePullSecrets": [{"name": "registry"}],
    "config": {
        "cull-idle-timeout": 86400,
        "max-kernels-per-user": 3,
        "allow-origin": ["https://lab.example"],
        "no-list": True,
        "oidc-issuer": "https://login.example",
        "oidc-audience": "kernelmux",
        "trusted-header": "X-Forwarded-User",
        "trusted-proxy": ["10.1.2.0/24"],
        "group-roles": ["platform=operator"],
    },
    # Their order matters.
    "groups": [
        {"name": "staff", "cull-connected": True},
        {"name": "a \"group\" & more", "max-kernels-per-user": 1, "kernelspecs": ["python3"]},
    ],
    "baseUrl": "/kernels/",
    "token": {"existingSecret": "own-token", "key": "auth"},
    "users": {"secretName": "own-users"},
    "tls": {"secretName": "own-tls", "clientCaSecretName": "own-ca"},
    "auditLog": {"enabled": True},
    "agent": {"image": "registry.example/agent:2"},
    "persistence": {"existingClaim": "own-claim"},
    "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
    "ingress": {"enabled": True, "className": "nginx", "host": "kernels.example", "tlsSecretName": "web"},
    "rbac": {"exec": True},
    "serviceAccount": {"annotations": {"a": "b"}},
    "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboard": True},
    "extraEnv": [{"name": "KERNELMUX_LOG_FORMAT", "value": "json"}],
    "extraVolumes": [{"name": "trusted", "configMap": {"name": "own-trusted"}}],
    "extraVolumeMounts": [{"name": "trusted", "mountPath": "/etc/trusted"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}


# Flags that the chart sets itself, or that would turn off authentication.
NOT_IN_CONFIG = set(
    "config from-enterprise-gateway ip port token token-file no-auth insecure data-dir base-url users-file tls-cert "
    "tls-key tls-client-ca audit-log agent-image kubernetes-namespace".split()
)


@pytest.fixture(scope="module", autouse=True)
def helm() -> None:
    if not shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin"):
        skip_or_fail("needs Go to build Helm")
    program()


def find(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [made for made in objects if made["kind"] == kind and name in made["metadata"]["name"]]
    return found


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = find(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container(objects)["env"]}


def test_the_chart_has_no_lint_and_the_version_of_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(ALL))
    for arguments in ([], ["--values", tmp_path / "all.yaml"]):
        assert "0 chart(s) failed" in run_command(program(), "lint", "--strict", CHART, *arguments)
    version = tomllib.loads((REPO / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_chart_makes_what_the_manifests_have(tmp_path: Path) -> None:
    manifests: list[dict[str, Any]] = []
    folder = REPO / "deploy" / "kubernetes"
    for file in folder.glob("*.yaml"):
        if file.name not in ("kustomization.yaml", "namespace.yaml"):
            manifests += yaml.safe_load_all(file.read_text())
    made = template(tmp_path, {})
    assert {(m["kind"], m["metadata"]["name"]) for m in manifests} < {(m["kind"], m["metadata"]["name"]) for m in made}
    for kind in ("Role", "NetworkPolicy", "PodDisruptionBudget", "Service"):
        path = "rules" if kind == "Role" else "spec"
        expected = find(manifests, kind)[path]
        if kind == "Service":
            expected["type"] = "ClusterIP"
        assert find(made, kind)[path] == expected, kind
    pods = [find(objects, "StatefulSet")["spec"]["template"]["spec"] for objects in (manifests, made)]
    for key in ("securityContext", "terminationGracePeriodSeconds", "serviceAccountName"):
        assert pods[0][key] == pods[1][key], key
    for key in ("securityContext", "resources", "command", "ports", "livenessProbe", "readinessProbe", "startupProbe"):
        expected, found = container(manifests)[key], container(made)[key]
        if key.endswith("Probe"):
            expected["httpGet"]["scheme"] = "HTTP"
        assert found == expected, key
    [image] = yaml.safe_load((folder / "kustomization.yaml").read_text())["images"]
    assert container(made)["image"] == f"{image['newName']}:{image['newTag']}"
    kernelspecs = [find(objects, "ConfigMap")["data"] for objects in (manifests, made)]
    assert json.loads(kernelspecs[0]["python3"]) == json.loads(kernelspecs[1]["python3"])
    component = yaml.safe_load((folder / "exec" / "kustomization.yaml").read_text())
    [added] = yaml.safe_load(component["patches"][0]["patch"])
    more = find(template(tmp_path, {"rbac": {"exec": True}}), "Role")["rules"]
    assert more == [*find(manifests, "Role")["rules"], added["value"]]


def test_all_values_have_an_effect_and_the_gateway_accepts_the_settings(built: None, tmp_path: Path) -> None:
    made = template(tmp_path, ALL)
    settings = find(made, "Secret", "kernelmux-config")["stringData"]["gateway.toml"]
    parsed = tomllib.loads(settings)
    groups = parsed.pop("groups")
    assert parsed == ALL["config"]
    assert type(parsed["cull-idle-timeout"]) is int
    assert [{"name": name, **rules} for name, rules in groups.items()] == ALL["groups"]
    config = tmp_path / "gateway.toml"
    config.touch(mode=0o600)
    config.write_text(settings)
    checked = subprocess.run([binary(), "--config", config, "config", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert [m for m in made if m["kind"] == "PersistentVolumeClaim"] == []
    assert [m["metadata"]["name"] for m in made if m["kind"] == "Secret"] == ["kernelmux-config"]
    pod = find(made, "StatefulSet")["spec"]["template"]["spec"]
    mounted = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert mounted == {"kernelmux-config", "own-token", "own-tls", "own-ca", "own-users"}
    assert {mount["name"] for mount in container(made)["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    probed = container(made)["livenessProbe"]["httpGet"]
    assert probed == {"path": "/kernels/healthz", "port": "http", "scheme": "HTTPS"}
    assert environment(made)["KERNELMUX_KUBERNETES_FORBIDDEN_CLAIMS"] == "own-claim"
    assert find(made, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/kernels/"
    [endpoint] = find(made, "ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["scheme"]) == ("/kernels/metrics", "https")
    monitoring = REPO / "deploy" / "monitoring"
    assert find(made, "PrometheusRule")["spec"] == yaml.safe_load((monitoring / "alerts.yaml").read_text())
    dashboard = find(made, "ConfigMap", "dashboard")["data"]["kernelmux.json"]
    assert json.loads(dashboard) == json.loads((monitoring / "grafana-dashboard.json").read_text())
    # Every flag is a key of `config`, or the chart sets its variable.
    flags = set(re.findall(r"^\| `--([a-z-]+)", (REPO / "docs/src/flags.md").read_text(), re.MULTILINE))
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["config"]["properties"]) == flags - NOT_IN_CONFIG
    set_by_chart = {name.removeprefix("KERNELMUX_").lower().replace("_", "-") for name in environment(made)}
    assert set_by_chart - flags == {"jupyter-path"}
    assert NOT_IN_CONFIG - set_by_chart == {"from-enterprise-gateway", "no-auth", "insecure", "token"}


def test_a_given_token_is_kept_in_the_secret_only(tmp_path: Path) -> None:
    objects = template(tmp_path, {"token": {"value": TOKEN}})
    secret = find(objects, "Secret", "kernelmux-token")
    assert base64.b64decode(secret.pop("data")["token"]).decode() == TOKEN
    assert TOKEN not in json.dumps(objects)
    made = [find(template(tmp_path, {}), "Secret", "kernelmux-token")["data"]["token"] for _ in range(2)]
    assert made[0] != made[1] and all(len(base64.b64decode(token)) == 43 for token in made)


def test_only_settings_that_are_not_reloaded_replace_the_pod(tmp_path: Path) -> None:
    def checksum(**config: Any) -> str:
        pod = find(template(tmp_path, {"config": config}), "StatefulSet")["spec"]["template"]
        return str(pod["metadata"]["annotations"]["checksum/config"])

    source = (REPO / "examples/gateway/src/command/reload.rs").read_text()
    [block] = re.findall(r"const RELOADED: .*?= \[(.*?)\];", source, re.DOTALL)
    reloaded = set(re.findall(r'"([a-z-]+)"', block)) - NOT_IN_CONFIG
    assert len(reloaded) > 20
    assert checksum(**dict.fromkeys(reloaded, "x")) == checksum()
    schema = json.loads((CHART / "values.schema.json").read_text())
    others = set(schema["properties"]["config"]["properties"]) - reloaded
    assert len({checksum(**{key: "x"}) for key in others}) == len(others)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"tokn": {}}, "tokn"),
        ({"token": {"secret": "x"}}, "secret"),
        ({"service": {"port": "http"}}, "port"),
        ({"config": {"token": "secret-in-values"}}, "token"),
        ({"config": {"cull-idle": 60}}, "cull-idle"),
        ({"groups": [{"name": "staff", "max-kernel": 1}]}, "max-kernel"),
        ({"ingress": {"enabled": True}}, "ingress.host"),
        ({"token": {"enabled": False}}, "another way to authenticate"),
        (
            {"monitoring": {"serviceMonitor": True}, "token": {"enabled": False}, "users": {"secretName": "x"}},
            "token.enabled",
        ),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    error = refused(tmp_path, given)
    assert reason in error
    assert "secret-in-values" not in error


@pytest.fixture
def install(built: None, make_home: Callable[[str], Path]) -> Iterator[Callable[..., Release]]:
    """Installs the chart with these values and Secrets."""
    if reason := why_no_dev_cluster():
        skip_or_fail(reason)
    releases = []

    def start(secrets: dict[str, dict[str, str]] | None = None, **given: Any) -> Release:
        release = Release(make_home("helm"), {"kernelspecs": {"python3": PYTHON}, **given}, secrets or {})
        releases.append(release)
        release.start()
        return release

    yield start
    for release in releases:
        release.close()


@pytest.mark.kubernetes
def test_an_installation_runs_cells_and_follows_its_values(install: Callable[..., Release]) -> None:
    release = install()
    assert release.token and len(release.token) == 43
    assert release.token not in release.notes
    # The command of the notes prints the token.
    [command] = re.findall(r"kubectl --namespace \S+ (get secret .*)", release.notes)
    assert release.namespace.kubectl(*shlex.split(command)) == release.token
    with release.kernel() as kernel_id:
        with release.socket(kernel_id) as client:
            assert client.run("6 * 7") == "42"
        # A lower limit takes effect without a restart, and the token stays.
        uid, token = release.uid(POD), release.token
        release.upgrade(config={"max-kernels": 1})
        release.update_volumes()
        eventually(lambda: "max-kernels" in release.output, "the settings are reloaded", 120)
        refusal = release.rest("POST", "api/kernels", json={"name": "python3"})
        assert refusal.status_code == 403 and "1" in refusal.json()["message"], refusal.text
        release.read_token()
        assert (release.uid(POD), release.token) == (uid, token)
        # A setting that is not reloaded replaces the pod, but not the kernel.
        pod = release.uid(f"kernel-{kernel_id}")
        release.upgrade(config={"max-kernels": 1, "log-max-mib": 64})
        release.wait_replaced(uid)
        release.read_token()
        assert release.token == token
        assert "log-max-mib = 64" in release.namespace.kubectl("exec", POD, "--", "kernelmux-gateway", "config", "show")
        # The kernel and the log outlive the chart.
        release.uninstall()
        eventually(lambda: release.uid(POD) == "", "the gateway has ended", 60)
        assert release.uid(f"kernel-{kernel_id}") == pod
        claims = release.namespace.kubectl("get", "persistentvolumeclaims", "--output=name")
        assert claims.strip() == "persistentvolumeclaim/kernelmux-data"
        release.helm("install", RELEASE, CHART, "--values", release.home / "values.yaml")
        release.read_token()
        release.find_address()
        release.wait_replaced("")
        eventually(lambda: [k["id"] for k in release.rest("GET", "api/kernels").json()] == [kernel_id], "it is found")


@pytest.mark.kubernetes
def test_token_users_and_certificates_come_from_secrets(install: Callable[..., Release], tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")

    def server(name: str) -> dict[str, str]:
        certificate, key = authority.server(name)
        return {"tls.crt": certificate.read_text(), "tls.key": key.read_text()}

    users = tmp_path / "users.json"
    add = [binary(), "user", "add", "ada", "--users-file", users]
    ada = {"Authorization": f"token {subprocess.check_output(add, text=True).strip()}"}
    first, renewed = server("first"), server("renewed")
    release = install(
        secrets={
            "own-token": {"auth": TOKEN},
            "own-users": {"users.json": users.read_text()},
            "own-tls": first,
            "own-ca": {"ca.crt": authority.certificate.read_text()},
        },
        token={"existingSecret": "own-token", "key": "auth"},
        users={"secretName": "own-users"},
        tls={"secretName": "own-tls", "clientCaSecretName": "own-ca"},
        auditLog={"enabled": True},
    )
    address = urlsplit(release.url)

    def presented() -> str:
        return ssl.get_server_certificate((str(address.hostname), address.port or 0))

    assert presented() == first["tls.crt"]
    assert release.token == TOKEN
    with release.kernel():
        assert len(release.rest("GET", "api/kernels").json()) == 1
        assert release.rest("GET", "api/kernels", headers=ada).json() == []
        assert release.rest("GET", "api/kernels", headers={}, cert=authority.client("bob", "staff")).json() == []
        assert release.rest("GET", "api/kernels", headers={}).status_code == 401
    # The folder of the volume.
    audit = (release.data_dir / "kernelmux-audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["act"] for line in audit if '"start"' in line] == ["start"]
    uid = release.uid(POD)
    release.apply_secret("own-tls", renewed)
    release.update_volumes()
    eventually(lambda: presented() == renewed["tls.crt"], "the renewed certificate is used", 120)
    assert release.uid(POD) == uid


# Prints until the gate is opened, so that no clock decides whether the upgrade happens meanwhile.
PRINTING = """
import pathlib, time
number = 0
while not pathlib.Path("/tmp/gate").exists():
    print(number, flush=True)
    number += 1
    time.sleep(0.1)
"""
# They need about 2 GiB of memory, and their starts a minute of two cores.
KERNELS = 20


@pytest.mark.kubernetes
def test_nothing_is_lost_when_the_gateway_is_upgraded_under_load(
    install: Callable[..., Release], agent_image: str
) -> None:
    release = install(agent={"image": agent_image})
    newer = f"{release.namespace.name}-newer"
    release.load_image(f"{IMAGE}:{newer}")
    clients: list[LogClient] = []

    def open_gate(kernel_id: str) -> None:
        release.namespace.kubectl("exec", f"kernel-{kernel_id}", "--", "touch", "/tmp/gate")

    def all_receive(more: int) -> None:
        wanted = [(client, len(client.seen) + more) for client in clients]
        for client, count in wanted:
            eventually(lambda: client.failure or len(client.seen) >= count, "the client receives lines", 120)
            assert client.failure is None, client.failure

    with ThreadPoolExecutor(4) as pool:
        try:
            kernels = [str(kernel["id"]) for kernel in pool.map(lambda _: release.start_kernel(), range(KERNELS))]
            cells = {kernel_id: run(release, kernel_id, PRINTING)["msg_id"] for kernel_id in kernels}
            for number, kernel_id in enumerate(kernels):
                client = (ResumeClient, EventClient)[number % 2](release, kernel_id, release.port)
                client.url = release.url
                clients.append(client)
                client.start()
            all_receive(20)
            uid = release.uid(POD)
            release.upgrade(image={**release.values["image"], "tag": newer})
            release.wait_replaced(uid, 120)
            all_receive(20)
            list(pool.map(open_gate, kernels))
            for kernel_id, msg_id in cells.items():
                execution = wait_ended(release, kernel_id, msg_id, 60)
                assert_whole(execution, numbered(len(text_of(execution).splitlines())))
                assert losses(release, kernel_id) == []
            # The end of a kernel ends its clients.
            for kernel_id in kernels:
                assert release.rest("DELETE", f"api/kernels/{kernel_id}").status_code == 204
            for client in clients:
                client.finish()
                assert client.connections > 1, "the upgrade did not disconnect the client"
                assert client.seen == [entry["header"]["msg_id"] for entry in entries_of(release, client.kernel_id)]
        finally:
            for client in clients:
                client.stopping.set()
