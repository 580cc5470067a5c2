/** Marks outputs of code that is no longer the cell's. */

import type { CodeCell } from '@jupyterlab/cells';

const CLASS = 'kernelmux-edited';

export function showEdited(cell: CodeCell, edited: boolean): void {
  cell.outputArea.toggleClass(CLASS, edited);
}
