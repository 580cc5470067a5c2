"""jupyter_kernel_test against ipykernel, with every message through the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import kernel_suite
from harness.gateway import Gateway
from harness.kernel_client import kernel_clients


@pytest.fixture(scope="class")
def kernel(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[None]:
    """Gives the suite a client of the gateway. The suite's own client would start a kernel without the gateway."""
    with kernel_clients(gateway) as connect:
        request.cls.kc = connect()._manager.client
        yield


@pytest.mark.usefixtures("kernel")
class TestIpykernel(kernel_suite.PatientKernelTests):
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('oh', file=sys.stderr)"
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_inspect_sample = "zip"
    complete_code_samples = ["1", "print('one')", "def f():\n    return 1\n\n"]
    incomplete_code_samples = ["print('''one", "def f():", "if True:\n    1"]
    invalid_code_samples = ["import = 7", "x = = 1"]
    completion_samples = [{"text": "zi", "matches": {"zip"}}]
    code_execute_result = [{"code": f"6 * {n}", "result": str(6 * n)} for n in (6, 7, 8)]
    code_history_pattern = "6 * 7*"
    # Not "range": in these replies, ipykernel gives its own session the number 0 instead of the requested number.
    supported_history_operations = ("tail", "search")
    code_display_data = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('x^2'))", "mime": "text/latex"},
    ]

    @classmethod
    def setUpClass(cls) -> None: ...

    @classmethod
    def tearDownClass(cls) -> None: ...
