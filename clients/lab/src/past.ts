/** Shows the outputs of a kernel that has ended, such as one that was culled while the notebook was closed. */

import type { CodeCell } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { showEdited } from './edited.js';
import { isComplete, putOutputs } from './ended.js';
import { isOpen } from './execution.js';
import type { Gateway } from './gateway.js';
import { match, needsLog } from './matching.js';
import { codeCells, factsOf, keepsIds, lastSaved } from './notebook-cells.js';

/**
 * Puts the outputs of an ended kernel into cells whose outputs the document lacks.
 *
 * @param skip cells that the notebook's current kernel has run.
 */
export async function showPast(
  panel: NotebookPanel,
  gateway: Gateway,
  kernelId: string,
  skip: (cell: CodeCell) => boolean
): Promise<void> {
  const executions = await gateway.latestOfCells(kernelId);
  if (!executions || panel.isDisposed) {
    return;
  }
  const cells = codeCells(panel);
  const facts = factsOf(cells);
  const saved = lastSaved(panel);
  for (const found of match(facts, executions, keepsIds(panel)).matches) {
    const cell = cells[found.cell];
    if (skip(cell) || isOpen(found.execution) || !needsLog(found.execution, facts[found.cell].marker, saved)) {
      continue;
    }
    const listed = found.execution;
    const execution = isComplete(listed) ? listed : await gateway.execution(kernelId, listed.msg_id);
    if (!execution || cell.isDisposed || skip(cell)) {
      continue;
    }
    putOutputs({ cell, execution });
    showEdited(cell, found.edited);
  }
}
