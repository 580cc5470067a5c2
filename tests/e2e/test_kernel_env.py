"""The environment of kernels: values set by clients, and precedence of inherited ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateway import Gateway


def environment(gateway: Gateway, kernel_id: str, *names: str) -> list[str | None]:
    with gateway.socket(kernel_id, "env") as client:
        printed = client.run(f"import json, os; print(json.dumps([os.environ.get(n) for n in {names}]))")
        return list(json.loads(printed))


def test_values_are_passed_unchanged(gateway: Gateway) -> None:
    values = {
        "KERNEL_LINES": "one\ntwo\r\nthree\n",
        "KERNEL_LONG": "long " * 20_000,
        "KERNEL_UNICODE": "größe 🦀",
        "KERNEL_EMPTY": "",
        "KERNEL_QUOTES": "'a' \"b\" $HOME `c` \\ {d}",
    }
    with gateway.kernel(env=values) as kernel_id:
        assert environment(gateway, kernel_id, *values) == list(values.values())


def test_a_nul_in_a_value_is_refused(gateway: Gateway) -> None:
    response = gateway.rest("POST", "api/kernels", json={"env": {"KERNEL_ZERO": "a\0b"}})
    assert response.status_code == 400
    assert "KERNEL_ZERO" in response.json()["message"]


@pytest.mark.parametrize("inherited", [True, False])
def test_an_inherited_variable_overrides_the_kernelspec(
    start_gateway: Callable[..., Gateway], make_home: Callable[[str], Path], inherited: bool
) -> None:
    folder = make_home("specs") / "kernels" / "own"
    folder.mkdir(parents=True)
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "own",
        "language": "python",
        "env": {"SITE_SETTING": "of the kernelspec", "SPEC_SETTING": "of the kernelspec"},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    gateway = start_gateway(
        *(["--inherited-envs", "SITE_SETTING"] if inherited else []),
        env={
            "JUPYTER_PATH": str(folder.parent.parent),
            "SITE_SETTING": "of the gateway",
            "SPEC_SETTING": "of the gateway",
        },
    )
    with gateway.kernel("own") as kernel_id:
        assert environment(gateway, kernel_id, "SITE_SETTING", "SPEC_SETTING") == [
            "of the gateway" if inherited else "of the kernelspec",
            "of the kernelspec",
        ]
