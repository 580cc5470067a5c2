/**
 * Other pages that write into the same document, as with jupyter-collaboration.
 *
 * They write the outputs of the cells that they run. A page that follows these cells would duplicate the outputs.
 */

import type { NotebookPanel } from '@jupyterlab/notebook';

/** How long after opening a document the list of its other pages may take to arrive, in milliseconds. */
const AWARENESS_DELAY = 2_000;

export class OtherWriters {
  private readonly othersKnown: Promise<void>;

  /**
   * @param onLeave called when a page may have left the document.
   */
  constructor(
    private readonly panel: NotebookPanel,
    private readonly onLeave: () => void
  ) {
    this.awareness?.on('change', this.onChange);
    this.othersKnown = this.awareness
      ? new Promise(resolve => setTimeout(resolve, AWARENESS_DELAY))
      : Promise.resolve();
  }

  dispose(): void {
    this.awareness?.off('change', this.onChange);
  }

  /** Whether another page has the document open. */
  async exist(): Promise<boolean> {
    await this.othersKnown;
    return (this.awareness?.getStates().size ?? 0) > 1;
  }

  /** The pages that share the document; undefined if it is not shared. */
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
