"""The public suite for kernels against a kernel written with the project's kernel side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import jupyter_kernel_test
import pytest
from conftest import lacking
from harness.echo import BINARY, install
from jupyter_kernel_test.msgspec_v5 import validate_message

@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernel's own kernelspec, its command on the search path."""
    if not BINARY.exists():
        lacking(f"no echo-kernel at {BINARY}: build it, or set KERNELMUX_ECHO_BIN")
    root = tmp_path_factory.mktemp("echo")
    (root / "run").mkdir()
    patch = pytest.MonkeyPatch()
    for name, value in install(root).items():
        patch.setenv(name, value)
    patch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
    yield
    patch.undo()


class EchoKernelTests(jupyter_kernel_test.KernelTests):
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
    # Several, so that there is a history to look into.
    code_execute_result = [
        {"code": f"%result {text}", "result": text} for text in ("six", "7", "8")
    ]
    code_history_pattern = "%result s*"
    supported_history_operations = ("tail", "range", "search")
    code_display_data = [{"code": "%display text", "mime": "text/markdown"}]

    # The suite gives a kernel a tenth of a second between two messages, and takes as long a silence for the end of
    # what was asked before: on a busy machine neither holds.

    def execute_helper(self, *args: Any, **options: Any) -> Any:
        iopub = self.kc.iopub_channel
        get_msg = iopub.get_msg
        with patch.object(iopub, "get_msg", lambda timeout: get_msg(timeout=60)):
            return super().execute_helper(*args, **options)

    def flush_channels(self) -> None:
        asked = self.kc.kernel_info()
        for channel, last in ((self.kc.shell_channel, "kernel_info_reply"), (self.kc.iopub_channel, "idle")):
            while True:
                message = channel.get_msg(timeout=60)
                validate_message(message)
                said = message["content"].get("execution_state", message["msg_type"])
                if message["parent_header"].get("msg_id") == asked and said == last:
                    break


class EchoWelcomeTests(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "echo"
    support_iopub_welcome = True
