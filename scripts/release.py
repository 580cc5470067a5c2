#!/usr/bin/env python3
"""Publishes the workspace's crates in the order of their dependencies and the JavaScript client, and tags the release.

    release.py --dry-run        packs each crate, checks it and prints the steps; writes only to target/package
    release.py [--from CRATE]   carries out the steps, beginning with this crate if an earlier run stopped there

docs/releasing.md has the whole procedure.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from graphlib import TopologicalSorter
from pathlib import Path

REQUIRED_FIELDS = ["description", "license", "repository", "readme", "keywords", "categories", "rust_version"]
REQUIRED_FILES = ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"]
INCLUDED = re.compile(r'\binclude_(?:str|bytes)!\(\s*"([^"]+)"\s*\)')
CLIENT = "clients/js"
NOT_YET = [
    "Python wheels: not published yet; `make wheel` builds them",
    "images, Helm chart, Debian package: not published yet; deploy/README.md says how to build them",
]


def output(*command: str) -> str:
    return subprocess.check_output(command, text=True)


def own_dependencies(package: dict, names: set[str]) -> list[dict]:
    """The dependencies on other published packages. Cargo leaves out development dependencies without a version."""
    return [
        dependency
        for dependency in package["dependencies"]
        if dependency["name"] in names - {package["name"]} and (dependency["kind"] != "dev" or dependency["req"] != "*")
    ]


def in_order(packages: list[dict]) -> list[dict]:
    """The packages in the order of their dependencies."""
    by_name = {package["name"]: package for package in packages}
    needs = {
        name: sorted({dependency["name"] for dependency in own_dependencies(by_name[name], set(by_name))})
        for name in sorted(by_name)
    }
    return [by_name[name] for name in TopologicalSorter(needs).static_order()]


def manifest_problems(package: dict, version: str, names: set[str]) -> list[str]:
    problems = [f"has no {field}" for field in REQUIRED_FIELDS if not package[field]]
    if package["version"] != version:
        problems.append(f"has version {package['version']}, not {version}")
    if not package["metadata"].get("docs", {}).get("rs", {}).get("all-features"):
        problems.append("has no [package.metadata.docs.rs] with all-features")
    problems += [
        f"depends on {dependency['name']} {dependency['req']}, not ^{version}"
        for dependency in own_dependencies(package, names)
        if dependency["req"] != f"^{version}"
    ]
    return [f"{package['name']} {problem}" for problem in problems]


def pack(packages: list[dict], folder: Path) -> None:
    """Packs the crates as `cargo publish` would, without building them."""
    shutil.rmtree(folder, ignore_errors=True)
    selected = [argument for package in packages for argument in ("--package", package["name"])]
    command = ["cargo", "package", "--quiet", "--locked", "--no-verify", "--allow-dirty", *selected]
    # Does not use the network if cargo already has the registry's index, as after a build.
    offline = subprocess.run([*command, "--offline"], capture_output=True, text=True)
    if offline.returncode != 0:
        subprocess.run(command, check=True)


def packed_problems(crate: Path) -> list[str]:
    """Files that are missing in a packed crate."""
    with tarfile.open(crate) as archive:
        texts = {}
        for member in archive.getmembers():
            path = Path(*Path(member.name).parts[1:])
            # A symbolic link would lead out of the archive, so only regular files count.
            if (file := archive.extractfile(member) if member.isfile() else None) is not None:
                texts[path] = file.read()
    missing = {Path(name) for name in REQUIRED_FILES} - texts.keys()
    for path, text in texts.items():
        if path.suffix == ".rs":
            for included in INCLUDED.findall(text.decode()):
                file = Path(os.path.normpath(path.parent / included))
                if file not in texts:
                    missing.add(file)
    return [f"{crate.name} lacks {path}" for path in sorted(missing)]


def changes(version: str) -> str | None:
    """The changelog's section of this version, or else the section Unreleased."""
    text = Path("CHANGELOG.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    return (sections.get(version) or sections.get("Unreleased", "")).strip() or None


def semver_problems(tags: list[str], packages: list[dict], version: str) -> list[str]:
    """Breaking changes since the last tag that the version does not announce."""
    if not tags:
        print("cargo semver-checks: skipped, because there is no tag yet")
        return []
    if not shutil.which("cargo-semver-checks"):
        return ["cargo-semver-checks is not installed: cargo install --locked cargo-semver-checks"]
    selected = [argument for package in packages for argument in ("--package", package["name"])]
    command = ["cargo", "semver-checks", "check-release", "--baseline-rev", tags[0], *selected]
    return [f"{version} has breaking changes since {tags[0]}"] if subprocess.call(command) != 0 else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--from", dest="first", metavar="CRATE")
    arguments = parser.parse_args()

    metadata = json.loads(output("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"))
    packages = in_order([package for package in metadata["packages"] if package["publish"] != []])
    names = [package["name"] for package in packages]
    version = next(package["version"] for package in packages if package["name"] == "kernelmux")
    tag = f"v{version}"
    tags = output("git", "tag", "--list", "v*", "--sort=-version:refname").split()

    problems = [problem for package in packages for problem in manifest_problems(package, version, set(names))]
    folder = Path(metadata["target_directory"]) / "package"
    pack(packages, folder)
    for name in names:
        problems += packed_problems(folder / f"{name}-{version}.crate")
    client = json.loads(Path(CLIENT, "package.json").read_text(encoding="utf-8"))
    if client["version"] != version:
        problems.append(f"{CLIENT} has version {client['version']}, not {version}")
    if (section := changes(version)) is None:
        problems.append(f"CHANGELOG.md has nothing about {version}")
    problems += semver_problems(tags, packages, version)
    if arguments.first not in (None, *names):
        problems.append(f"{arguments.first} is not published; the crates are {', '.join(names)}")
    if not arguments.dry_run:
        if output("git", "status", "--porcelain"):
            problems.append("there are changes that are not committed")
        if tag in tags:
            problems.append(f"{tag} is released: raise the version")
        if f"## {version}" not in Path("CHANGELOG.md").read_text(encoding="utf-8"):
            problems.append(f"CHANGELOG.md has no section for {version}: rename Unreleased")
    if problems:
        sys.exit("not ready for a release:\n  " + "\n  ".join(problems))

    first = names.index(arguments.first) if arguments.first else 0
    steps = [["cargo", "publish", "--locked", "--package", name] for name in names[first:]]
    steps += [
        ["npm", "publish", CLIENT],
        ["git", "tag", "--annotate", tag, "--cleanup=verbatim", "--message", f"kernelmux {version}\n\n{section}"],
        ["git", "push", "origin", tag],
    ]
    print(f"kernelmux {version}, tag {tag}{' (released; the next one needs another version)' if tag in tags else ''}")
    for step in steps:
        print("  $", shlex.join(argument.split("\n", 1)[0] for argument in step), flush=True)
        if not arguments.dry_run:
            subprocess.run(step, check=True)
    print(*(f"  {missing}" for missing in NOT_YET), sep="\n")


if __name__ == "__main__":
    main()
