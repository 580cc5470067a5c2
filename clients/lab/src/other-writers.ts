/**
 * Other pages that write into the same document, as with jupyter-collaboration.
 *
 * They write the outputs of the cells they run, so a page that followed those would write them a second time.
 */

import type { NotebookPanel } from '@jupyterlab/notebook';

/** How long the other pages of a document take to be known after it was opened, in milliseconds. */
const SETTLED = 2_000;

export class OtherWriters {
  private readonly settled: Promise<void>;

  /**
   * @param onLeave called when a page may have left the document.
   */
  constructor(
    private readonly panel: NotebookPanel,
    private readonly onLeave: () => void
  ) {
    this.awareness?.on('change', this.onChange);
    this.settled = this.awareness ? new Promise(resolve => setTimeout(resolve, SETTLED)) : Promise.resolve();
  }

  dispose(): void {
    this.awareness?.off('change', this.onChange);
  }

  /** Whether another page has the document open. */
  async write(): Promise<boolean> {
    await this.settled;
    return (this.awareness?.getStates().size ?? 0) > 1;
  }

  /** The pages of a document; undefined if the document is this page's only. */
  private get awareness() {
    const model = this.panel.content.model;
    return model?.collaborative ? model.sharedModel.awareness : undefined;
  }

  private readonly onChange = ({ removed }: { removed: number[] }): void => {
    if (removed.length > 0) {
      this.onLeave();
    }
  };
}
