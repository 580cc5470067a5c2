"""kernelmux-lab in a notebook server as Kubeflow runs it: below a prefix, without a token, installed by the user.

Scenario 42 of clients/lab/README.md; test_lab_k8s.py tests it with kernels in pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateway import Gateway
from harness.kubeflow import IDLE_SECONDS, culled_kernel_leaves_its_outputs, kubeflow_lab, notebook_is_restored
from harness.lab import Lab
from harness.restoring import Steps
from playwright.sync_api import Page


@pytest.fixture
def start_lab(make_home: Callable[[str], Path], lab_wheel: Path) -> Iterator[Callable[[Gateway], Lab]]:
    started: list[Lab] = []

    def start(gateway: Gateway) -> Lab:
        started.append(kubeflow_lab(make_home("kubeflow"), gateway, lab_wheel))
        return started[-1]

    yield start
    for lab in started:
        lab.close()


def test_a_notebook_is_restored(
    start_lab: Callable[[Gateway], Lab], gateway: Gateway, page: Page, steps: Steps
) -> None:
    notebook_is_restored(start_lab(gateway), page, steps)


def test_a_culled_kernel_leaves_its_outputs(
    start_lab: Callable[[Gateway], Lab], start_gateway: Callable[..., Gateway], page: Page, steps: Steps
) -> None:
    gateway = start_gateway("--cull-idle-timeout", str(IDLE_SECONDS), "--cull-interval", "1")
    culled_kernel_leaves_its_outputs(start_lab(gateway), page, gateway, steps, "python3")
