"""The Helm chart of deploy/helm: what it makes, an installation on a real cluster, and an upgrade under load."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import skip_or_fail
from harness.agents import losses, numbered, text_of
from harness.cluster import IMAGE, POD, run as run_command, why_no_dev_cluster
from harness.executions import run, wait_ended
from harness.gateway import REPO, binary
from harness.helm import CHART, RELEASE, Release, program, refused, template
from harness.reconnecting import EventClient, LogClient, ResumeClient, entries_of
from harness.waiting import eventually

# The first test builds Helm.
pytestmark = pytest.mark.timeout(900)

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
    for kind, path in (("Role", "rules"), ("NetworkPolicy", "spec"), ("PodDisruptionBudget", "spec"), ("Service", "spec")):
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
    assert container(made)["livenessProbe"]["httpGet"] == {"path": "/kernels/healthz", "port": "http", "scheme": "HTTPS"}
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
    assert set(schema["properties"]["config"]["propertyNames"]["enum"]) == flags - NOT_IN_CONFIG
    set_by_chart = {name.removeprefix("KERNELMUX_").lower().replace("_", "-") for name in environment(made)}
    assert set_by_chart - flags == {"jupyter-path"}
    assert NOT_IN_CONFIG - set_by_chart == {"from-enterprise-gateway", "no-auth", "insecure", "token"}


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
    others = set(schema["properties"]["config"]["propertyNames"]["enum"]) - reloaded
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
        ({"monitoring": {"serviceMonitor": True}, "token": {"enabled": False}, "users": {"secretName": "x"}}, "token.enabled"),
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
    (command,) = re.findall(r"kubectl --namespace \S+ (get secret .*)", release.notes)
    secret, template_flag = re.fullmatch(r"(get secret \S+ --output) '(.*)'", command).groups()  # type: ignore[union-attr]
    assert release.namespace.kubectl(*secret.split(), template_flag) == release.token
    with release.kernel() as kernel_id:
        started = run(release, kernel_id, "print(6 * 7)")
        assert text_of(wait_ended(release, kernel_id, started["msg_id"], 60)) == "42\n"
        # A lower limit takes effect without a restart, and the token stays.
        uid, token = release.uid(POD), release.token
        release.upgrade(config={"max-kernels": 1})
        release.update_volumes()
        eventually(lambda: "max-kernels" in release.output, "the settings are reloaded", 120)
        refusal = release.rest("POST", "api/kernels", json={"name": "python3"})
        assert refusal.status_code == 403 and "1" in refusal.json()["message"], refusal.text
        release.read_token()
        assert (release.uid(POD), release.token) == (uid, token)
        # The kernel and the log outlive the chart.
        pod = release.uid(f"kernel-{kernel_id}")
        release.uninstall()
        eventually(lambda: release.uid(POD) == "", "the gateway has ended", 60)
        assert release.uid(f"kernel-{kernel_id}") == pod
        claims = release.namespace.kubectl("get", "persistentvolumeclaims", "--output=name")
        assert claims.strip() == "persistentvolumeclaim/kernelmux-data"
        release.helm("install", RELEASE, CHART, "--values", release.home / "values.yaml")
        release.read_token()
        address = release.namespace.kubectl("get", "service", "kernelmux-gateway", "--output=jsonpath={.spec.clusterIP}")
        release.url = f"http://{address}:{release.port}/"
        release.wait_replaced("")
        eventually(lambda: [k["id"] for k in release.rest("GET", "api/kernels").json()] == [kernel_id], "it is found")


# Prints until the gate is opened, so that no clock decides whether the upgrade happens meanwhile.
PRINTING = """
import pathlib, time
number = 0
while not pathlib.Path("/tmp/gate").exists():
    print(number, flush=True)
    number += 1
    time.sleep(0.1)
print("end", number)
"""
KERNELS = 20


@pytest.mark.kubernetes
def test_nothing_is_lost_when_the_gateway_is_upgraded_under_load(
    install: Callable[..., Release], agent_image: str
) -> None:
    release = install(agent={"image": agent_image})
    newer = f"{release.namespace.name}-newer"
    release.load_image(f"{IMAGE}:{newer}")
    clients: list[LogClient] = []
    try:
        with ThreadPoolExecutor(4) as pool:
            kernels = [kernel["id"] for kernel in pool.map(lambda _: release.start_kernel(), range(KERNELS))]
        cells = {kernel_id: run(release, kernel_id, PRINTING)["msg_id"] for kernel_id in kernels}
        for number, kernel_id in enumerate(kernels):
            kind = (ResumeClient, EventClient)[number % 2]
            client = kind(release, kernel_id, release.port)
            client.url = release.url
            clients.append(client)
            client.start()

        def all_continue(more: int) -> None:
            before = [len(client.seen) for client in clients]
            for client, seen in zip(clients, before, strict=True):
                eventually(lambda: len(client.seen) >= seen + more or client.failure, "the client receives lines", 120)

        all_continue(20)
        uid = release.uid(POD)
        release.upgrade(image={**release.values["image"], "tag": newer})
        release.wait_replaced(uid, 120)
        all_continue(20)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda id: release.namespace.kubectl("exec", f"kernel-{id}", "--", "touch", "/tmp/gate"), kernels))
        for kernel_id, msg_id in cells.items():
            execution = wait_ended(release, kernel_id, msg_id, 120)
            *lines, end = text_of(execution).splitlines()
            assert "".join(f"{line}\n" for line in lines) == numbered(len(lines))
            assert end == f"end {len(lines)}"
            assert execution["complete"] is True
            assert losses(release, kernel_id) == []
        kept = {kernel_id: [entry["header"]["msg_id"] for entry in entries_of(release, kernel_id)] for kernel_id in kernels}
        for client in clients:
            expected = kept[client.kernel_id]
            eventually(lambda: len(client.seen) >= len(expected) or client.failure, "the client has everything", 60)
            client.stopping.set()
            client.finish()
            assert client.seen[: len(expected)] == expected
            assert client.connections > 1, "the client was not disconnected"
    finally:
        for client in clients:
            client.stopping.set()
