"""papermill through jupyter_server's gateway client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from harness.gateway import Gateway
from harness.notebooks import in_thread, notebook, stdout
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

pytestmark = pytest.mark.usefixtures("gateway_client")


class Papermill:
    """Runs notebooks with papermill and reads the resulting files."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "in.ipynb", folder / "out.ipynb"

    def run(self, book: NotebookNode, **parameters: Any) -> None:
        nbformat.write(book, str(self.source))
        in_thread(
            lambda: papermill.execute_notebook(
                str(self.source),
                str(self.target),
                parameters=parameters,
                progress_bar=False,
                execution_timeout=60,
                kernel_manager_class="jupyter_server.gateway.managers.GatewayKernelManager",
            )
        )

    def result(self) -> NotebookNode:
        return nbformat.read(str(self.target), 4)


@pytest.fixture
def mill(tmp_path: Path) -> Papermill:
    return Papermill(tmp_path)


def test_a_parameterized_notebook_runs_to_its_end(open_gateway: Gateway, mill: Papermill) -> None:
    book = notebook("name = 'default'", "print('Hello', name)\nfor i in range(5000): print(i, flush=True)")
    book.cells[0].metadata["tags"] = ["parameters"]
    mill.run(book, name="Ada")
    result = mill.result()
    assert stdout(result.cells[-1]) == "Hello Ada\n" + "".join(f"{i}\n" for i in range(5000))
    assert result.metadata.papermill.exception is None
    assert open_gateway.rest("GET", "api/kernels").json() == []


def test_an_exception_ends_the_run(open_gateway: Gateway, mill: Papermill) -> None:
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        mill.run(notebook("1/0", "print('not run')"))
    result = mill.result()
    assert result.metadata.papermill.exception is True
    assert stdout(result.cells[-1]) == ""
    assert open_gateway.rest("GET", "api/kernels").json() == []


def test_a_kernel_that_dies_during_a_cell_ends_the_run(open_gateway: Gateway, mill: Papermill) -> None:
    with pytest.raises((PapermillExecutionError, DeadKernelError)):
        mill.run(notebook("import os; os._exit(1)", "print('not run')"))
    assert stdout(mill.result().cells[-1]) == ""
    assert open_gateway.rest("GET", "api/kernels").json() == []
