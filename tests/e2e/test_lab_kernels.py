"""What kernelmux-lab shows about kernels: why they ended, where they run, and cells that the gateway runs.

The numbers of the scenarios refer to clients/lab/README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from harness.gateway import Gateway
from harness.lab import LAB_TOKEN, Lab, Notebook
from harness.pictures import take_picture
from harness.restoring import (
    Steps,
    close,
    expect_lines,
    expect_running,
    expect_whole,
    open_page,
    run_and_close,
    wait_ended,
)
from harness.waiting import eventually
from playwright.sync_api import Browser, Page, expect

PROFILES = [{"name": "small", "env": {"SIZE": "small"}}, {"name": "large", "resources": {"cpu": "4", "memory": "8Gi"}}]


def write_kernelspec(home: Path, name: str, code: str | None = None, **metadata: Any) -> None:
    """Adds a kernel to a gateway's home: ipykernel, or a program with `code`."""
    folder = home / "data" / "kernels" / name
    folder.mkdir(parents=True)
    ipykernel = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {
        "argv": [sys.executable, *(["-c", code] if code else ipykernel)],
        "display_name": name,
        "language": "python",
        "metadata": metadata,
    }
    (folder / "kernel.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def gateway(built: None, make_home: Callable[[str], Path]) -> Iterator[Gateway]:
    """A gateway with kernels that have resource profiles, and kernels that do not start."""
    home = make_home("gw-kernels")
    write_kernelspec(home, "profiled", kernelmux={"profiles": PROFILES})
    write_kernelspec(home, "broken", code="import sys; sys.exit('no such library')")
    gateway = Gateway(home).start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def lab(restoring_lab: Lab) -> Lab:
    return restoring_lab


# Scenario 28, here with a kernel that is killed
def test_a_kernel_that_died_while_the_tab_was_closed_leaves_its_outputs_and_the_cause(
    lab: Lab, page: Page, gateway: Gateway, steps: Steps
) -> None:
    code = steps.lines(count=5) + "gate('end')\nimport os\nos.kill(os.getpid(), 9)"
    closed = run_and_close(lab, page, "died", [code, "print('next', 6 * 7)"], steps, at="end")
    steps.open("end")
    assert wait_ended(gateway, closed)["status"] == "died"
    notebook = open_page(page, lab, "died")
    notebook.wait_text(0, "line 4;")
    expect_lines(notebook, 0, 5)
    notebook.wait_text(0, "killed by signal 9")
    expect(notebook.prompt(0)).not_to_have_text("[*]:")
    notebook.wait_status("idle")
    notebook.run(1)
    notebook.wait_text(1, "next 42")


# Scenario 29
def test_a_kernel_that_was_culled_while_the_tab_was_closed_leaves_its_outputs_and_the_cause(
    start_gateway: Callable[..., Gateway],
    make_home: Callable[[str], Path],
    lab_extension: Path,
    page: Page,
    steps: Steps,
) -> None:
    gateway = start_gateway("--cull-idle-timeout", "2", "--cull-interval", "1")
    lab = Lab(make_home("lab-culled"), gateway.url, gateway.token, extension=lab_extension)
    try:
        closed = run_and_close(lab, page, "culled", [steps.lines(3), "print('next', 6 * 7)"], steps)
        steps.open(3)
        eventually(lambda: gateway.model(closed.known_kernel) is None, "the kernel is culled", 60)
        notebook = open_page(page, lab, "culled")
        expect_whole(notebook, 0, 1)
        expect(notebook.kernel_status).to_contain_text("culled: idle for")
        assert steps.ran() == 1
        notebook.wait_status("idle")
        assert notebook.kernel_id() != closed.known_kernel
        notebook.run(1)
        notebook.wait_text(1, "next 42")
    finally:
        lab.close()


def test_the_notebook_warns_before_its_kernel_is_culled(
    start_gateway: Callable[..., Gateway], make_home: Callable[[str], Path], lab_extension: Path, page: Page
) -> None:
    # The kernel is not culled during the test.
    gateway = start_gateway(
        "--cull-connected", "--cull-idle-timeout", "600", "--cull-warning", "599", "--cull-interval", "1"
    )
    lab = Lab(make_home("lab-warned"), gateway.url, gateway.token, extension=lab_extension)
    try:
        lab.write_notebook("warned", ["print('ran', 6 * 7)"])
        notebook = open_page(page, lab, "warned")
        notebook.run(0)
        notebook.wait_text(0, "ran 42")
        warning = page.locator(".Toastify__toast", has_text="warned.ipynb will be ended")
        expect(warning.first).to_contain_text("idle for 600 s")
        kernel = notebook.kernel_id()

        def last_activity() -> str:
            model = gateway.model(kernel)
            assert model is not None
            return str(model["last_activity"])

        before = last_activity()
        warning.first.get_by_text("Keep it running").click()
        eventually(lambda: last_activity() > before, "the kernel was used", 60)
    finally:
        lab.close()


# Scenario 36, here with a kernel that ends at once
def test_the_cause_of_a_failed_start_is_shown(lab: Lab, page: Page) -> None:
    lab.write_notebook("broken", ["1"], kernel="broken")
    page.goto(Notebook(page, lab, "broken").address)
    status = page.locator(".kernelmux-status")
    expect(status).to_contain_text("Kernel did not start", timeout=60_000)
    expect(status).to_contain_text("no such library")


# Scenario 37
def test_a_notebook_switches_to_other_resources_and_back(lab: Lab, page: Page, gateway: Gateway) -> None:
    notebook = lab.open(page, "profiles", ["import os\nprint('size', os.environ.get('SIZE'))"], kernel="profiled")
    for profile, size in (("large", "None"), ("small", "small")):
        before = notebook.kernel_id()
        notebook.command("kernelmux:switch-resources")
        page.locator(".jp-Dialog select").select_option(profile)
        notebook.dialog_button("Ok")
        # Nothing is lost before the user agrees.
        expect(page.locator(".jp-Dialog")).to_contain_text("variables and running cells are lost")
        assert gateway.model(before) is not None
        notebook.dialog_button("Switch")
        page.wait_for_function(
            "id => { const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel;"
            " return kernel && kernel.id !== id && kernel.connectionStatus === 'connected'; }",
            arg=before,
        )
        eventually(lambda before=before: gateway.model(before) is None, "the old kernel is gone")
        if profile == "large":
            expect(notebook.kernel_status).to_contain_text("4 CPU, 8Gi")
            take_picture(page.locator("#jp-main-statusbar"), "notebooks-status")
        notebook.wait_status("idle")
        notebook.start(0)
        notebook.wait_text(0, f"size {size}")


def test_the_launcher_has_cards_for_resources(lab: Lab, page: Page) -> None:
    page.goto(f"{lab.url}/lab?token={LAB_TOKEN}&reset")
    page.locator(".jp-LauncherCard", has_text="profiled: small").click()
    notebook = Notebook(page, lab, "of the launcher")
    notebook.wait_ready()
    notebook.command("notebook:replace-selection", {"text": "import os\nprint('size', os.environ.get('SIZE'))"})
    notebook.command("notebook:run-cell")
    notebook.wait_text(0, "size small")


# Scenario 38
def test_a_cell_that_is_run_and_left_goes_on(lab: Lab, page: Page, gateway: Gateway, steps: Steps) -> None:
    tab = page.context.new_page()
    closed = lab.open(tab, "left", [steps.lines(3), "print('next', 6 * 7)"])
    closed.remember()
    closed.wait_restored()
    closed.cell(0).locator(".jp-InputArea-editor").click()
    closed.command("kernelmux:run-detached")
    steps.wait_at(3)
    expect_running(closed, 0)
    close(tab)
    steps.open(3)
    wait_ended(gateway, closed)
    notebook = open_page(page, lab, "left")
    expect_whole(notebook, 0, 1)
    assert steps.ran() == 1


def test_the_status_shows_where_the_kernel_runs(lab: Lab, page: Page) -> None:
    notebook = lab.open(page, "status", ["6 * 7"])
    expect(notebook.kernel_status).to_contain_text("local")
    expect(notebook.kernel_status).to_contain_text("since")
    notebook.kernel_status.click()
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("Run This Cell and Leave")
    notebook.dialog_button("Cancel")


# Scenario 39
def test_a_shared_link_shows_live_outputs_until_it_is_revoked(
    lab: Lab, page: Page, browser: Browser, gateway: Gateway, steps: Steps
) -> None:
    notebook = lab.open(page, "shared", [steps.lines(3)])
    notebook.wait_restored()
    notebook.start(0)
    steps.wait_at(3)
    notebook.command("kernelmux:share")
    page.locator(".jp-Dialog select").select_option("1 hour")
    notebook.dialog_button("Ok")
    link = page.locator(".jp-Dialog input").input_value()
    assert link.startswith(f"{gateway.url}live/")
    notebook.dialog_button("Cancel")
    with browser.new_context() as context:
        reader = context.new_page()
        reader.goto(link)
        expect(reader.locator("body")).to_contain_text("line 2;")
        steps.open(3)
        expect(reader.locator("body")).to_contain_text("line 59;")
        expect(reader.locator("input, textarea")).to_have_count(0)
        notebook.command("kernelmux:stop-sharing")
        notebook.dialog_button("Stop")
        eventually(lambda: requests.get(link, timeout=60).status_code == 403, "the link is refused")
