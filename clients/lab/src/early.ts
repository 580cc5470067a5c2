/**
 * Shows ended executions before the page is connected to the kernel.
 *
 * JupyterLab connects to a kernel after it has shown the notebook. Before it has shown the notebook, adding outputs
 * costs no more than loading them with the document. Afterwards, the browser lays out the page once for each changed
 * cell.
 */

import type { NotebookPanel } from '@jupyterlab/notebook';
import { showEdited } from './edited.js';
import { isComplete, putAll, type Filling } from './ended.js';
import type { Execution } from './execution.js';
import type { Gateway } from './gateway.js';
import { match, needsLog } from './matching.js';
import { codeCells, factsOf, keepsIds, lastSaved } from './notebook-cells.js';

/** The executions that were shown before the page was connected. */
export interface Early {
  kernelId: string;
  /** The executions that cells show, as they were listed, by `msg_id`. */
  shown: Map<string, Execution>;
}

/** Requests the executions while the notebook loads, and then shows the ended ones. */
export async function showEarly(panel: NotebookPanel, gateway: Gateway): Promise<Early | null> {
  const request = gateway.ended(panel.context.path).catch(() => null);
  await panel.context.ready;
  const listed = await request;
  // In a shared document another page may already show the outputs. `Restorer` looks for such pages.
  if (!listed?.kernel || panel.isDisposed || panel.content.model?.collaborative) {
    return null;
  }
  const { kernel, executions } = listed;
  const cells = codeCells(panel);
  const facts = factsOf(cells);
  const saved = lastSaved(panel);
  const shown = new Map<string, Execution>();
  const fillings: Filling[] = [];
  for (const { cell: index, execution, edited } of match(facts, executions, keepsIds(panel)).matches) {
    const cell = cells[index];
    if (isComplete(execution) && needsLog(execution, facts[index].marker, saved) && !cell.outputArea.future) {
      fillings.push({ cell, execution });
      showEdited(cell, edited);
      shown.set(execution.msg_id, execution);
    }
  }
  putAll(fillings);
  return { kernelId: kernel, shown };
}
