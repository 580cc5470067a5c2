/** The code cells of an open notebook. */

import type { CodeCell, ICodeCellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { readMarker } from './marker.js';
import type { CellFacts } from './matching.js';

/** The first version of nbformat 4 whose cells have ids. */
const MINOR_WITH_IDS = 5;

export function codeCells(panel: NotebookPanel): CodeCell[] {
  return panel.content.widgets.filter((cell): cell is CodeCell => cell.model.type === 'code');
}

/** The code cell with this id, or undefined. */
export function codeCellOf(panel: NotebookPanel, id: string): CodeCell | undefined {
  return codeCells(panel).find(cell => cell.model.id === id);
}

export function factsOf(cells: CodeCell[]): CellFacts[] {
  return cells.map(({ model }) => ({
    id: model.id,
    source: model.sharedModel.getSource(),
    marker: readMarker(model as ICodeCellModel)
  }));
}

/** Whether the document keeps the ids of its cells when it is saved. */
export function keepsIds(panel: NotebookPanel): boolean {
  return (panel.content.model?.nbformatMinor ?? MINOR_WITH_IDS) >= MINOR_WITH_IDS;
}

/** When the document was last saved. */
export function lastSaved(panel: NotebookPanel): Date {
  return new Date(panel.context.contentsModel?.last_modified ?? 0);
}
