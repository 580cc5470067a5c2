/** Puts the outputs of ended executions into cells, without following the executions. */

import type { CodeCell } from '@jupyterlab/cells';
import type { IOutput } from '@jupyterlab/nbformat';
import { isOpen, type Execution } from './execution.js';
import { clearMarker } from './marker.js';

const WIDGET = 'application/vnd.jupyter.widget-view+json';

/** An execution that was listed with its outputs. */
export type Ended = Execution & { outputs: IOutput[] };

/** Whether the listed outputs are sufficient to show the execution. Widgets also need the messages of the kernel. */
export function isComplete(execution: Execution): execution is Ended {
  const hasWidget = ({ data }: IOutput): boolean => typeof data === 'object' && data !== null && WIDGET in data;
  return !isOpen(execution) && execution.outputs !== undefined && !execution.outputs.some(hasWidget);
}

/** A cell, and the execution to show in it. */
export interface Filling {
  cell: CodeCell;
  execution: Ended;
}

/** The class of cells that are being filled. Their outputs are not laid out. */
const FILLING = 'kernelmux-filling';

/**
 * Shows outputs in many cells.
 *
 * JupyterLab measures a cell whenever its outputs change, which makes the browser lay out the page once for each cell.
 * So the outputs are excluded from the layout until all cells are filled, and measured afterwards. The browser paints
 * nothing in between.
 */
export function putAll(fillings: Filling[]): void {
  const empty = fillings.map(({ cell }) => cell).filter(({ model }) => model.outputs.length === 0);
  empty.forEach(cell => cell.addClass(FILLING));
  try {
    fillings.forEach(putOutputs);
  } finally {
    empty.forEach(cell => cell.removeClass(FILLING));
  }
  measureLater(empty);
}

/** Measures the outputs of cells. Their height decides which icon JupyterLab shows under the mouse. */
function measureLater(cells: CodeCell[]): void {
  const later = window.requestIdleCallback ?? window.setTimeout;
  later(() => {
    const cell = cells.pop();
    if (cell?.isDisposed === false) {
      cell.updatePromptOverlayIcon();
    }
    if (cells.length > 0) {
      measureLater(cells);
    }
  });
}

/** Shows outputs in a cell. */
export function putOutputs({ cell: { model }, execution }: Filling): void {
  // Clear the document's outputs, which may be untrusted, before the cell becomes trusted.
  if (model.outputs.length > 0) {
    model.outputs.clear();
  }
  model.trusted = true;
  model.outputs.fromJSON(execution.outputs);
  model.executionCount = execution.execution_count ?? null;
  clearMarker(model);
}
