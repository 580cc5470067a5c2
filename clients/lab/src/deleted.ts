/** Inserts cells for executions whose cells were deleted. */

import type { CodeCell } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Gateway } from './gateway.js';
import type { Restorer } from './restore.js';

/** For each execution whose cell was deleted, adds a cell with its code and shows its outputs. */
export async function insertDeleted(panel: NotebookPanel, restorer: Restorer, gateway: Gateway): Promise<void> {
  for (const orphan of [...restorer.orphans]) {
    const execution = await gateway.execution(restorer.kernel.id, orphan.msg_id);
    const model = panel.content.model;
    if (!execution || !model) {
      continue;
    }
    model.sharedModel.addCell({ cell_type: 'code', id: orphan.cellId ?? undefined, source: execution.code ?? '' });
    const cell = panel.content.widgets[panel.content.widgets.length - 1] as CodeCell;
    restorer.follow(cell, orphan);
  }
  restorer.forgetOrphans();
}
