"""A notebook server as Kubeflow runs it, and checks of its restored pages (scenario 42)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

from playwright.sync_api import Page, expect

from harness.gateway import VENV, Gateway
from harness.lab import Lab
from harness.restoring import Steps, expect_running, expect_whole, open_page, run_and_close
from harness.waiting import eventually

WIDGET_BAR = """
import ipywidgets
bar, label = ipywidgets.IntProgress(max=100), ipywidgets.Label()
display(ipywidgets.HBox([bar, label]))
for step in range(101):
    bar.value, label.value = step, f"{step}/100"
    if step == 30:
        gate("middle")
"""
IDLE_SECONDS = 2


def python_with_user_packages(folder: Path) -> Path:
    """A virtual environment with the tests' packages and those of `pip install --user`."""
    venv.create(folder, symlinks=True, system_site_packages=True)
    packages = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
    (folder / packages / "shared.pth").write_text(f"{VENV / packages}\n")
    for name in ("etc", "share"):
        (folder / name).symlink_to(VENV / name)
    return folder


def kubeflow_lab(home: Path, gateway: Gateway, wheel: Path) -> Lab:
    """JupyterLab below a prefix, without a token, for pages of all origins. The user installed kernelmux-lab."""
    environment = python_with_user_packages(home / "environment")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--user"]
    pip += ["--quiet", "--no-deps", "--no-index", "--no-warn-script-location", wheel]
    subprocess.run(pip, env={**os.environ, "HOME": str(home)}, check=True)
    return Lab(
        home,
        gateway.url,
        gateway.token,
        venv=environment,
        base_url="/notebook/team/ada",
        settings='c.IdentityProvider.token = ""\nc.ServerApp.allow_origin = "*"\n',
    )


def notebook_is_restored(lab: Lab, page: Page, steps: Steps) -> None:
    """Closes the page of running cells, restarts the server, and checks what a new page shows.

    Scenarios 1, 6, 10 and 32: lines, a progress bar, an input prompt, and the same kernel.
    """
    cells = [steps.code(WIDGET_BAR), "name = input('Who? ')\nprint('Hello', name)", steps.lines(3)]
    closed = run_and_close(lab, page, "kubeflow", cells, steps, at="middle", run=[0, 1, 2])
    lab.process.stop(signal.SIGTERM)
    lab.start()
    notebook = open_page(page, lab, "kubeflow")
    assert notebook.kernel_id() == closed.known_kernel
    expect_running(notebook, 0)
    expect(notebook.cell(0)).to_contain_text("30/100")
    steps.open("middle")
    expect(notebook.cell(0)).to_contain_text("100/100")
    notebook.question(1).fill("Ada")
    notebook.question(1).press("Enter")
    notebook.wait_text(1, "Hello Ada")
    steps.open(3)
    expect_whole(notebook, 2, 3)
    assert steps.ran() == 1


def culled_kernel_leaves_its_outputs(lab: Lab, page: Page, gateway: Gateway, steps: Steps, kernel: str) -> None:
    """Closes the page of a cell whose kernel is then culled, and checks what a new page shows (scenario 29)."""
    cells = [steps.lines(3), "print('next', 6 * 7)"]
    closed = run_and_close(lab, page, "culled", cells, steps, kernel=kernel)
    steps.open(3)
    eventually(lambda: gateway.model(closed.known_kernel) is None, "the kernel is culled", 90)
    notebook = open_page(page, lab, "culled")
    expect_whole(notebook, 0, 1)
    expect(notebook.kernel_status).to_contain_text("culled: idle for")
    notebook.wait_status("idle")
    assert notebook.kernel_id() != closed.known_kernel
    notebook.run(1)
    notebook.wait_text(1, "next 42")


__all__ = ["culled_kernel_leaves_its_outputs", "kubeflow_lab", "notebook_is_restored"]
