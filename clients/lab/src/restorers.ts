/** The open notebooks and the restorers of their kernels. */

import type { NotebookPanel } from '@jupyterlab/notebook';
import { Signal } from '@lumino/signaling';
import { showEarly, type Early } from './early.js';
import type { Gateway } from './gateway.js';
import { Restorer } from './restore.js';
import { watchStart } from './start.js';

export class NotebookRestorers {
  /** Emitted when a notebook's kernel or its restorer changes. */
  readonly changed = new Signal<this, NotebookPanel>(this);
  /** The steps of starts in progress, and the causes of failed starts. */
  private readonly starts = new WeakMap<NotebookPanel, string>();
  private readonly early = new WeakMap<NotebookPanel, Promise<Early | null>>();
  private readonly restorers = new Map<NotebookPanel, Restorer>();

  constructor(private readonly gateway: Gateway) {}

  add(panel: NotebookPanel): void {
    this.early.set(panel, showEarly(panel, this.gateway));
    void panel.context.ready.then(() => {
      if (panel.isDisposed) {
        return;
      }
      panel.sessionContext.kernelChanged.connect(() => this.onKernel(panel));
      panel.disposed.connect(() => this.drop(panel));
      this.onKernel(panel);
    });
  }

  /** The restorer of a notebook's kernel. */
  of(panel: NotebookPanel | null): Restorer | undefined {
    return panel ? this.restorers.get(panel) : undefined;
  }

  /** The step of the start of a notebook's kernel, or why it failed. */
  startOf(panel: NotebookPanel): string {
    return this.starts.get(panel) ?? '';
  }

  private onKernel(panel: NotebookPanel): void {
    this.drop(panel);
    const kernel = panel.sessionContext.session?.kernel;
    if (kernel) {
      const restorer = new Restorer(panel, kernel, this.gateway, this.early.get(panel));
      restorer.changed.connect(() => this.changed.emit(panel));
      this.restorers.set(panel, restorer);
      this.starts.delete(panel);
    } else {
      const show = (text: string): void => {
        this.starts.set(panel, text);
        this.changed.emit(panel);
      };
      watchStart(panel, this.gateway, show).catch(error => {
        console.warn('kernelmux: the start of the kernel is not watched:', error);
      });
    }
    this.changed.emit(panel);
  }

  private drop(panel: NotebookPanel): void {
    this.restorers.get(panel)?.dispose();
    this.restorers.delete(panel);
  }
}
