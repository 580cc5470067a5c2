"""jupyter_kernel_test against a kernel that is written with this project's kernel API."""

from __future__ import annotations

from collections.abc import Iterator

import jupyter_kernel_test
import pytest
from conftest import skip_or_fail
from harness import kernel_suite
from harness.echo import BINARY, install


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Installs the kernel's kernelspec and puts its command on PATH."""
    if not BINARY.exists():
        skip_or_fail(f"no echo-kernel at {BINARY}: build it, or set KERNELMUX_ECHO_BIN")
    root = tmp_path_factory.mktemp("echo")
    (root / "run").mkdir()
    patch = pytest.MonkeyPatch()
    for name, value in install(root).items():
        patch.setenv(name, value)
    patch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
    yield
    patch.undo()


class EchoKernelTests(kernel_suite.PatientKernelTests):
    kernel_name = "echo"
    language_name = "echo"
    file_extension = ".txt"
    code_hello_world = "hello, world"
    code_stderr = "%stderr oh"
    code_page_something = "%page text"
    code_generate_error = "%error no"
    code_clear_output = "%clear"
    code_inspect_sample = "%sleep"
    complete_code_samples = ["one line", "two\nlines"]
    incomplete_code_samples = ["to be continued \\"]
    invalid_code_samples = ["%%nothing"]
    completion_samples = [
        {"text": "%s", "matches": ["%sleep", "%stderr"]},
        {"text": "%disp", "matches": ["%display"]},
    ]
    # Several, so that the history tests have something to find.
    code_execute_result = [
        {"code": f"%result {text}", "result": text} for text in ("six", "7", "8")
    ]
    code_history_pattern = "%result s*"
    supported_history_operations = ("tail", "range", "search")
    code_display_data = [{"code": "%display text", "mime": "text/markdown"}]


class EchoWelcomeTests(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "echo"
    support_iopub_welcome = True
