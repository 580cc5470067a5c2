"""What is built from deploy/ without a cluster: images, Docker Compose, the Debian package. CI builds none of them, so
these tests check that the files, settings and targets that they name exist.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import yaml
from harness.gateway import REPO, binary

DEPLOY = REPO / "deploy"
DOCKERFILE = DEPLOY / "images" / "Dockerfile"
VARIABLES = set(re.findall(r"`(KERNELMUX_[A-Z_]+)`", (REPO / "docs/src/flags.md").read_text()))


def instructions() -> list[tuple[str, list[str]]]:
    """The Dockerfile's instructions and their words."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, rest.split()) for name, rest in lines]


def stages() -> list[str]:
    return [words[-1] for name, words in instructions() if name == "FROM"]


def test_the_images_copy_files_that_exist_and_run_without_root() -> None:
    ignored = (REPO / ".dockerignore").read_text().splitlines()
    users: dict[str, str] = {}
    stage = ""
    for name, words in instructions():
        if name == "FROM":
            base, _, stage = [word for word in words if not word.startswith("--")]
            users[stage] = users.get(base, "root")
        elif name == "USER":
            users[stage] = words[0]
        elif name == "COPY":
            sources = [word for word in words if not word.startswith("--")][:-1]
            options = dict(word.split("=") for word in words if word.startswith("--"))
            if origin := options.get("--from"):
                assert origin in users, origin
            else:
                for source in sources:
                    assert (REPO / source).exists(), source
                    assert f"/{source}" not in ignored
        elif name == "ENV":
            variables = {word.split("=")[0] for word in words}
            assert {variable for variable in variables if variable.startswith("KERNELMUX")} <= VARIABLES
    del users["build"]
    assert set(users.values()) == {"1000:100"}
    documented = set(re.findall(r"--target ([a-z]+)", (DEPLOY / "README.md").read_text() + DOCKERFILE.read_text()))
    assert documented and documented <= set(users)


def test_the_compose_file_is_restricted_and_names_what_exists(built: None, tmp_path: Path) -> None:
    folder = DEPLOY / "compose"
    file = yaml.safe_load((folder / "compose.yaml").read_text())
    [service] = file["services"].values()
    build = service["build"]
    assert (folder / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
    assert build["target"] in stages()
    # Otherwise an image of this name would be pulled from a registry that is not ours.
    assert service["pull_policy"] == "build"
    assert set(service["environment"]) <= VARIABLES
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    mounts = dict(volume.split(":") for volume in service["volumes"])
    assert set(mounts) == set(file["volumes"])
    environment = {word.partition("=")[::2] for name, words in instructions() if name == "ENV" for word in words}
    assert ("KERNELMUX_DATA_DIR", mounts["data"]) in environment and ("HOME", mounts["home"]) in environment
    assert service["environment"]["KERNELMUX_TOKEN_FILE"] == f"/run/secrets/{service['secrets'][0]}"
    [config] = service["configs"]
    assert service["environment"]["KERNELMUX_CONFIG"] == config["target"]
    settings = folder / file["configs"][config["source"]]["file"]
    check = [binary(), "--config", settings, "--data-dir", tmp_path, "config", "check"]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    # The token is never committed.
    token = folder / file["secrets"][service["secrets"][0]]["file"]
    assert subprocess.run(["git", "check-ignore", "--quiet", token], cwd=REPO).returncode == 0


def test_the_debian_package_has_what_the_service_needs(built: None, tmp_path: Path) -> None:
    manifest = REPO / "examples" / "gateway" / "Cargo.toml"
    deb = tomllib.loads(manifest.read_text())["package"]["metadata"]["deb"]
    installed: dict[str, tuple[Path, str]] = {}
    for source, target, mode in deb["assets"]:
        path = f"/{target}{Path(source).name}" if target.endswith("/") else f"/{target}"
        installed[path] = (manifest.parent / source, mode)
        if not source.startswith("target/release/"):
            assert installed[path][0].is_file(), source
    units = deb["systemd-units"]
    unit = (manifest.parent / units["unit-scripts"] / f"{units['unit-name']}.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    program = shlex.split(settings["ExecStart"])[0]
    assert installed[program][1] == "755"
    # `agent = "auto"` finds the agent in the same folder.
    assert installed["/usr/bin/kernelmux-agent"][1] == "755"
    [conf_file] = deb["conf-files"]
    assert f"KERNELMUX_CONFIG={conf_file}" in settings["Environment"].split()
    text = installed[conf_file][0].read_text()
    assert tomllib.loads(text)["agent"] == "auto"

    scripts = manifest.parent / deb["maintainer-scripts"]
    for name in ("postinst", "postrm"):
        assert "#DEBHELPER#" in (scripts / name).read_text()
        subprocess.run(["sh", "-n", scripts / name], check=True)
    assert f" {settings['User']}\n" in (scripts / "postinst").read_text()
    # The settings are valid once the package's script has made the token.
    own = tmp_path / "token"
    own.write_text("0" * 64)
    config = tmp_path / "gateway.toml"
    config.write_text(text.replace(json.dumps("/etc/kernelmux/token"), json.dumps(str(own))))
    assert str(own) in config.read_text()
    checked = subprocess.run([binary(), "--config", config, "config", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
