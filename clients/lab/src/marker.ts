/**
 * The mark of an unfinished execution in a cell's metadata: `kernelmux.execution`.
 *
 * A document that was saved while a cell ran has incomplete outputs, which only the mark tells from complete ones.
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

/** Removes the mark of an execution, or any. */
export function clearMarker(model: ICodeCellModel, msgId?: string): void {
  const marker = readMarker(model);
  if (marker !== null && (msgId === undefined || marker === msgId)) {
    model.deleteMetadata(KEY);
  }
}
