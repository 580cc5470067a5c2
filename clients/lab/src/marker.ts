/**
 * The mark of an unfinished execution in a cell's metadata: `kernelmux.execution`.
 *
 * If a document is saved while a cell runs, only the mark shows that the cell's outputs are incomplete.
 */

import type { ICodeCellModel } from '@jupyterlab/cells';

const KEY = 'kernelmux';

interface Mark {
  execution?: string;
}

/** The execution that the cell's metadata names. */
export function readMarker(model: ICodeCellModel): string | null {
  const mark = model.getMetadata(KEY) as Mark | undefined;
  return typeof mark?.execution === 'string' ? mark.execution : null;
}

export function setMarker(model: ICodeCellModel, msgId: string): void {
  if (readMarker(model) !== msgId) {
    model.setMetadata(KEY, { execution: msgId });
  }
}

/** Removes the mark of an execution, or any mark if `msgId` is omitted. */
export function clearMarker(model: ICodeCellModel, msgId?: string): void {
  const marker = readMarker(model);
  if (marker !== null && (msgId === undefined || marker === msgId)) {
    model.deleteMetadata(KEY);
  }
}
