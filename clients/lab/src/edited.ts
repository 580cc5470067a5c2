/** Marks outputs of an earlier version of a cell's code. */

import type { CodeCell } from '@jupyterlab/cells';

const CLASS = 'kernelmux-edited';

export function showEdited(cell: CodeCell, edited: boolean): void {
  cell.outputArea.toggleClass(CLASS, edited);
}
