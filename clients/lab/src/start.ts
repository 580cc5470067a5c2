/** Shows the steps of a kernel's start, and why it failed. */

import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Gateway } from './gateway.js';
import { startText } from './status-text.js';

/** The pause between two requests for the progress of a start, in milliseconds. */
const PAUSE = 500;
/** The maximum number of consecutive requests for which the server reports no start. */
const MAX_UNKNOWN = 20;

/** Calls `show` with each step of a kernel's start, until the notebook has a kernel or the start has failed. */
export async function watchStart(panel: NotebookPanel, gateway: Gateway, show: (text: string) => void): Promise<void> {
  for (let unknown = 0; unknown < MAX_UNKNOWN; unknown++) {
    await new Promise(resolve => setTimeout(resolve, PAUSE));
    if (panel.isDisposed || panel.sessionContext.session?.kernel) {
      break;
    }
    const { starting, previous } = (await gateway.notebook(panel.context.path)) ?? {};
    const progress = starting ?? previous ? await gateway.progress((starting ?? previous)!) : null;
    if (starting) {
      unknown = 0;
      show(progress ? startText(progress) : '');
    } else if (progress?.phase === 'failed') {
      show(startText(progress));
      return;
    }
  }
  show('');
}
