"""The book of docs/: its commands work as described, and the flags and texts that it names exist.

Each console block is marked with how it is tested: `test` runs it here, in page order, in one shell per page;
`kubernetes` runs it on a cluster; `parsed` only checks its syntax. `background` keeps it running in another terminal. A block that is marked with
`file=NAME` is the content of a file that the commands use.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail
from harness.cluster import why_no_cluster
from harness.gateway import REPO, VENV, Gateway, binary, clean_env, free_port, kill
from harness.pods import kernel_namespace
from harness.process import pids_mentioning
from harness.shell import Console, Reader, consoles

BOOK = REPO / "docs" / "src"
PAGES = sorted(BOOK.glob("*.md"))
CONSOLES = [console for page in PAGES for console in consoles(page)]
HOW = {"test", "kubernetes", "parsed"}
# Pages whose commands need a running gateway: `$TOKEN` is its token, `$ID` one of its kernels.
RUNNING = {"follow.md", "resume-protocol.md", "sharing.md", "troubleshooting.md"}
# The commands use the gateway's default port. The tests replace it, because it may be in use.
PORT = "8888"

# Replaces `cargo` in the commands, because the programs are already built, with other flags.
CARGO = """\
#!/usr/bin/env bash
set -euo pipefail
command=$1
shift
case $command in
build | install)
    # The examples that it names must exist.
    for argument; do case $argument in examples/*) test -e "$argument/Cargo.toml" ;; esac; done
    ;;
run)
    test "$1" = -p
    program=$2
    shift 2
    test "${1:-}" != -- || shift
    exec "$BUILT/$program" "$@"
    ;;
*)
    echo "the book's tests do not support cargo $command" >&2
    exit 1
    ;;
esac
"""

JUPYTER = """
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.port = {port}
c.LabApp.news_url = ""
c.ExtensionManager.listings_refresh_seconds = 0
"""


def marked(how: str) -> dict[str, list[Console]]:
    """The consoles with this mark, by page."""
    pages: dict[str, list[Console]] = {}
    for console in CONSOLES:
        if how in console.marks:
            pages.setdefault(console.page, []).append(console)
    return pages


def checkout(home: Path) -> Path:
    """A folder with links to the repository's files and this build's programs, in which commands may create files."""
    folder = home / "kernelmux"
    folder.mkdir()
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPO).decode().split("\0")
    for name in {entry.partition("/")[0] for entry in listed if entry}:
        # Scripts use the parent of their folder, so a link to the folder would lead out of the copy.
        if name == "scripts":
            shutil.copytree(REPO / name, folder / name)
        else:
            (folder / name).symlink_to(REPO / name)
    (folder / ".venv").symlink_to(VENV)
    built = binary().parent
    for profile in ("debug", "release"):
        (folder / "target" / profile).mkdir(parents=True)
        for program in ("kernelmux-gateway", "embed", "resume", "k8s", "echo-kernel"):
            (folder / "target" / profile / program).symlink_to(built / program)
    tools = folder / "target" / "path"
    tools.mkdir()
    (tools / "cargo").write_text(CARGO)
    (tools / "cargo").chmod(0o755)
    (tools / "kernelmux-gateway").symlink_to(binary())
    return folder


def in_checkout(home: Path, gateway_port: int, **extra: str) -> tuple[dict[str, str], Path]:
    folder = checkout(home)
    environment = clean_env(home, KERNELMUX_PORT=str(gateway_port), **extra)
    environment["PATH"] = f"{folder / 'target' / 'path'}{os.pathsep}{environment['PATH']}"
    environment["BUILT"] = str(folder / "target" / "debug")
    (home / "config" / "jupyter_lab_config.py").write_text(JUPYTER.format(port=free_port()))
    return environment, folder


def at_port(console: Console, port: int, names: dict[str, str]) -> Console:
    """The console with this test's port and names in place of the book's."""

    def here(text: str) -> str:
        text = re.sub(rf"\b127\.0\.0\.1:{PORT}\b", f"127.0.0.1:{port}", text)
        for name, own in names.items():
            text = text.replace(name, own)
        return text

    commands = tuple(
        type(command)(here(command.text), tuple(map(here, command.shown))) for command in console.commands
    )
    return Console(console.page, console.line, console.marks, commands)


def built(*programs: str) -> None:
    for program in programs:
        if not (binary().parent / program).exists():
            skip_or_fail(f"no {program} next to {binary()}: `make test-rust` builds it")


@pytest.fixture
def make_page_home(make_home: Callable[[str], Path]) -> Iterator[Callable[[], Path]]:
    """Creates a home directory. At the end, kills the processes that still use it, and fails if there were any."""
    homes: list[Path] = []

    def make() -> Path:
        homes.append(make_home("book"))
        return homes[-1]

    yield make
    left = [pid for home in homes for pid in pids_mentioning(f"{home}/")]
    for pid in left:
        kill(pid)
    assert not left, "a page's commands left processes behind"


def write_files(page: str, folder: Path) -> None:
    """Writes the files whose content a page has, in blocks such as `toml,file=gateway.toml`."""
    text = (BOOK / page).read_text(encoding="utf-8")
    for name, body in re.findall(r"^```\w+,file=(\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(body, encoding="utf-8")


@pytest.mark.parametrize("page", sorted(marked("test")))
def test_commands_of_a_page(
    page: str, make_page_home: Callable[[], Path], start_gateway: Callable[..., Gateway]
) -> None:
    built("kernelmux-gateway", "kernelmux-agent", "embed", "resume", "echo-kernel")
    home, port = make_page_home(), free_port()
    environment, folder = in_checkout(home, port)
    if page in RUNNING:
        gateway = start_gateway()
        port = gateway.port
        environment.update(TOKEN=str(gateway.token), ID=gateway.start_kernel()["id"])
    write_files(page, folder)
    reader = Reader(environment, folder)
    try:
        for console in marked("test")[page]:
            reader.follow(at_port(console, port, {}))
    finally:
        reader.close()


@pytest.mark.kubernetes
@pytest.mark.parametrize("page", sorted(marked("kubernetes")))
def test_commands_of_a_page_on_a_cluster(page: str, make_page_home: Callable[[], Path]) -> None:
    if reason := why_no_cluster():
        skip_or_fail(reason)
    built("k8s")
    home = make_page_home()
    with kernel_namespace(home) as place:
        place.install("python3")
        environment, folder = in_checkout(home, free_port(), **place.environment)
        reader = Reader(environment, folder)
        try:
            for console in marked("kubernetes")[page]:
                reader.follow(at_port(console, 0, {"-- kernels ": f"-- {place.name} "}))
        finally:
            reader.close()


def test_every_command_is_marked_with_its_test() -> None:
    assert len(CONSOLES) > 10
    for console in CONSOLES:
        assert len(console.marks & HOW) == 1, f"{console.where}: mark it with one of {sorted(HOW)}"
        assert console.marks <= HOW | {"background"}, console.where
        assert console.commands, console.where
        for command in console.commands:
            done = subprocess.run(["bash", "-n"], input=command.text, capture_output=True, text=True)
            assert done.returncode == 0, f"{console.where}: {command.text}: {done.stderr}"


def test_other_shell_blocks_are_not_hidden_from_the_tests() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert not {"sh", "bash", "shell"} & set(fences), f"{page.name}: mark commands as console"


def test_code_comes_from_files_that_are_compiled() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for body in re.findall(r"^```rust\S*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            assert re.fullmatch(r"\{\{#include \S+\.rs(:\S+)?\}\}\n", body), f"{page.name}: {body}"


FLAG = re.compile(r"`(--[a-z][a-z0-9-]+)")
VARIABLE = re.compile(r"\bKERNELMUX_[A-Z_]*[A-Z]")


def test_flags_and_variables_that_are_named_exist() -> None:
    table = (BOOK / "flags.md").read_text(encoding="utf-8")
    flags, variables = set(FLAG.findall(table)), set(VARIABLE.findall(table))
    assert {"--port", "--log"} <= flags and "KERNELMUX_TOKEN" in variables
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "enterprise-gateway.md":
            # The first columns name flags of other programs; the last column has their replacement.
            rows = [line.rstrip("| ").rpartition("|")[2] for line in text.splitlines() if line.startswith("|")]
            text = "\n".join(rows)
        unknown = set(FLAG.findall(text)) - flags - {"--version", "--help"}
        assert not unknown, f"{page.name}: there are no flags {sorted(unknown)}"
        unknown = set(VARIABLE.findall(text)) - variables
        assert not unknown, f"{page.name}: there are no variables {sorted(unknown)}"


LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def texts_of_the_program() -> str:
    """All string literals of the sources, one per line, with NUL in place of formatted values."""
    texts = []
    for source in REPO.glob("**/src/**/*.rs"):
        relative = source.relative_to(REPO)
        if relative.parts[0] in ("target", "benches"):
            continue
        for literal in LITERAL.findall(source.read_text(encoding="utf-8")):
            literal = re.sub(r"\\\n\s*", "", literal)
            literal = literal.replace('\\"', '"').replace("\n", " ")
            texts.append(re.sub(r"\{[^{}]*\}", "\0", literal))
    return "\n".join(texts)


def test_texts_that_troubleshooting_quotes_exist_in_the_program() -> None:
    program = texts_of_the_program()
    rows = [
        line.split(" | ")[0]
        for line in (BOOK / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]*)`|“([^”]*)”", row)]
    texts = [code or text for code, text in quoted if not code.startswith(("--", "/"))]
    assert len(texts) > 40
    for text in texts:
        for part in filter(None, (part.strip() for part in text.split("…"))):
            assert part in program, f"troubleshooting quotes {text!r}: {part!r} is not a text of the program"
