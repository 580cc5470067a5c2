/** The status of the current notebook's kernel, in the status bar or, if there is none, in the notebook's toolbar. */

import type { NotebookPanel } from '@jupyterlab/notebook';
import { Widget } from '@lumino/widgets';
import type { Restorer } from './restore.js';
import type { NotebookRestorers } from './restorers.js';
import { statusText } from './status-text.js';

const time = (date: Date): string =>
  date.toLocaleString(undefined, { weekday: 'short', hour: '2-digit', minute: '2-digit' });

export class KernelStatus extends Widget {
  constructor(onClick: () => void) {
    super({ node: document.createElement('button') });
    this.addClass('kernelmux-status');
    this.node.addEventListener('click', onClick);
  }

  /** Shows the state of a notebook's kernel; nothing if kernelmux does not know it. */
  showKernel(panel: NotebookPanel | null, restorers: NotebookRestorers): void {
    const restorer = restorers.of(panel);
    const text = restorer ? describe(restorer) : panel ? restorers.startOf(panel) : '';
    this.node.textContent = text;
    this.node.title = text ? `${text}. Click for actions.` : '';
    this.setHidden(!text);
  }
}

function describe({ facts, orphans, previousEnd, end }: Restorer): string {
  const parts = [end || (facts ? statusText(facts, time) : '')];
  if (!end && previousEnd) {
    parts.push(`Before: ${previousEnd}`);
  }
  if (orphans.length === 1) {
    parts.push('1 output of a deleted cell');
  } else if (orphans.length > 1) {
    parts.push(`${orphans.length} outputs of deleted cells`);
  }
  return parts.filter(Boolean).join(' · ');
}
