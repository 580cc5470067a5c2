/** Removes the input box of an `input()` that was answered on another page. */

import type { CodeCell } from '@jupyterlab/cells';
import type { Kernel } from '@jupyterlab/services';

export function dropQuestion(kernel: Kernel.IKernelConnection, cell: CodeCell): void {
  for (const widget of [...cell.outputArea.widgets]) {
    if (widget.node.querySelector('.jp-Stdin')) {
      widget.dispose();
    }
  }
  kernel.hasPendingInput = false;
}
