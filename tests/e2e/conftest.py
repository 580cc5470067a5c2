"""Fixtures: the gateway, JupyterLab, Chromium and proxies. Each fixture ends the processes it started, by pid.

A missing program skips the tests that need it, with a reason. If CI is set, they fail instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("harness")

from harness.gateway import PEER, REPO, Gateway, binary  # noqa: E402
from harness.lab import Lab  # noqa: E402
from harness.proxy import Proxy  # noqa: E402
from harness.restoring import Steps  # noqa: E402

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


# The longest files run first, so that no worker is left with one of them at the end.
LONGEST = [
    "test_resume_chaos.py",
    "test_lab_restore.py",
    "test_attacks.py",
    "test_lab_failures.py",
    "test_resume_jupyterlab.py",
    "test_lab_documents.py",
    "test_lab_versions.py",
    "test_lab_server_side.py",
    "test_jupyterlab.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def skip_or_fail(reason: str) -> None:
    """Skips a test whose prerequisite is missing, or fails it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (skipped unless CI is set)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def built() -> None:
    """Requires the binaries of the gateway and its agents."""
    if PEER == "kernelmux" and not binary().exists():
        skip_or_fail(f"no gateway at {binary()}: build it, or set KERNELMUX_GATEWAY_BIN")
    if PEER == "kernelmux" and not binary().with_name("kernelmux-agent").exists():
        skip_or_fail(f"no kernelmux-agent next to {binary()}: build it")


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Creates home directories for processes: `make_home("gw")`."""

    def make(name: str) -> Path:
        return tmp_path_factory.mktemp(re.sub(r"\W+", "-", name)[:24])

    return make


@pytest.fixture
def start_gateway(
    built: None, make_home: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways for one test: `start_gateway("--flag", ..., token=..., env=...)`."""
    started: list[Gateway] = []

    def start(*args: str, **options: object) -> Gateway:
        gateway = Gateway(make_home("gw"), *args, **options)  # type: ignore[arg-type]
        started.append(gateway)
        return gateway.start()

    yield start
    for gateway in started:
        gateway.close()


@pytest.fixture(scope="module")
def gateway(built: None, make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    """A gateway shared by a module's tests, which must not end it."""
    gateway = Gateway(make_home("gw"))
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def open_gateway(built: None, make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    """A shared gateway without a token: jupyter_server's kernel client sends none on its WebSocket."""
    gateway = Gateway(make_home("gw-open"), token=None)
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def gateway_client(open_gateway: Gateway, make_home: Callable[[str], Path]) -> Iterator[None]:
    """Connects jupyter_server's gateway client in this process to `open_gateway`."""
    from harness.notebooks import use_gateway

    with use_gateway(open_gateway, make_home("gateway-client")):
        yield


@pytest.fixture(scope="session")
def agent_image(built: None, make_home: Callable[[str], Path]) -> Iterator[str]:
    """The image of KERNELMUX_TEST_AGENT_IMAGE, or one with this build's agent."""
    from harness.cluster import DEV_CLUSTER, run, why_no_cluster, why_no_dev_cluster

    if reason := why_no_cluster():
        skip_or_fail(reason)
    if image := os.environ.get("KERNELMUX_TEST_AGENT_IMAGE"):
        yield image
        return
    if reason := why_no_dev_cluster():
        skip_or_fail(reason)
    image = f"localhost/kernelmux/agent:{uuid.uuid4().hex[:12]}"
    archive = make_home("image") / "agent.tar"
    agent = binary().with_name("kernelmux-agent")
    run(sys.executable, REPO / "deploy" / "gateway-image.py", agent, archive, image)
    run(DEV_CLUSTER, "load", archive)
    archive.unlink()
    yield image
    run(DEV_CLUSTER, "unload", image)


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Proxy]]:
    """Creates proxies to a port of this machine."""
    proxies: list[Proxy] = []

    def make(port: int) -> Proxy:
        proxies.append(Proxy(("127.0.0.1", port)))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture(scope="module")
def gateway_proxy(gateway: Gateway) -> Iterator[Proxy]:
    """The proxy between JupyterLab's server and the gateway."""
    proxy = Proxy(("127.0.0.1", gateway.port))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def lab(gateway: Gateway, gateway_proxy: Proxy, make_home: Callable[[str], Path]) -> Iterator[Lab]:
    """JupyterLab with the shared gateway's kernels, connected through `gateway_proxy`."""
    lab = Lab(make_home("lab"), f"http://127.0.0.1:{gateway_proxy.port}", gateway.token)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def lab_wheel() -> Path:
    """The wheel that `make lab-wheel` builds."""
    built = subprocess.run([REPO / "scripts" / "lab-wheel.sh"], capture_output=True, text=True)
    if built.returncode:
        skip_or_fail(f"the wheel of kernelmux-lab is not built:\n{built.stderr}")
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def lab_extension(lab_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kernelmux-lab, installed from its wheel."""
    folder = tmp_path_factory.mktemp("kernelmux-lab")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder]
    subprocess.run([*pip, lab_wheel], check=True)
    return folder


@pytest.fixture(scope="session")
def make_venv() -> Callable[[str], Path]:
    """Creates virtual environments: `make_venv("lab-oldest")` installs the requirements in the folder of that name."""

    def make(name: str) -> Path:
        link = REPO / "target" / f"{name}-venv"
        requirements = Path(__file__).parent / name / "requirements.txt"
        subprocess.run(["scripts/cached-venv.sh", link, requirements], check=True, cwd=REPO)
        return link

    return make


@pytest.fixture(scope="module")
def restoring_lab(gateway: Gateway, make_home: Callable[[str], Path], lab_extension: Path) -> Iterator[Lab]:
    """JupyterLab with kernelmux-lab and the shared gateway's kernels."""
    lab = Lab(make_home("lab"), gateway.url, gateway.token, extension=lab_extension)
    yield lab
    lab.close()


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    """Gates at which the cells of a test wait."""
    return Steps(tmp_path)


@pytest.fixture(scope="session")
def launch_browser() -> Iterator[Callable[..., object]]:
    """Starts browsers with extra flags: `launch_browser("--flag", ...)`."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        skip_or_fail("no Chromium: install Debian's `chromium`, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        yield lambda *args: playwright.chromium.launch(
            executable_path=path, args=[*CHROMIUM, *args], headless=True
        )


@pytest.fixture(scope="session")
def browser(launch_browser: Callable[..., object]) -> Iterator[object]:
    browser = launch_browser()
    yield browser
    browser.close()  # type: ignore[attr-defined]


@pytest.fixture
def page(
    browser: object, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[object]:
    """A page in a new browser profile. A failed test leaves a screenshot and the console's text."""
    context = browser.new_context(viewport={"width": 1200, "height": 1400})  # type: ignore[attr-defined]
    page = context.new_page()
    console: list[str] = []
    page.on("console", lambda m: console.append(f"{m.type}: {m.text}"))
    yield page
    report = getattr(request.node, "report", None)
    if report is not None and report.failed:
        page.screenshot(path=tmp_path / "page.png")
        (tmp_path / "console.txt").write_text("\n".join(console))
        print(f"screenshot and console: {tmp_path}")
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    # Fixtures read the report on teardown. A failure shows the last output of the gateway and of JupyterLab.
    report = yield
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]
        if report.failed:
            for name in ("gateway", "lab"):
                process = getattr(item.funcargs.get(name), "process", None)  # type: ignore[attr-defined]
                if process is not None:
                    report.sections.append((f"{name}'s last output", process.output[-6000:]))
    return report
