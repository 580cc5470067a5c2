/** Brings the outputs of a notebook's kernel into its cells: when it is opened, and when another page runs a cell. */

import type { CodeCell } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { KernelMessage, type Kernel } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { showEdited } from './edited.js';
import { isOpen, type Execution } from './execution.js';
import { Follow } from './follow.js';
import type { Gateway, KernelFacts } from './gateway.js';
import { clearMarker, setMarker } from './marker.js';
import { match, needsLog } from './matching.js';
import { codeCellOf, codeCells, factsOf, keepsIds, lastSaved } from './notebook-cells.js';
import { OtherWriters } from './other-writers.js';
import { showPast } from './past.js';
import { dropQuestion } from './question.js';
import { endText } from './status-text.js';

/** Features that the gateway must have. */
const FEATURES = ['follow', 'latest_cell'];
/** How long to wait for more messages of other pages before looking for their executions, in milliseconds. */
const DEBOUNCE = 100;

/** One kernel of an open notebook. */
export class Restorer {
  /** Executions whose cells are not in the notebook. */
  orphans: Execution[] = [];
  facts: KernelFacts | null = null;
  readonly changed = new Signal<this, void>(this);
  /** The executions that this page has requested or follows. */
  private readonly known = new Set<string>();
  private readonly follows = new Set<Follow>();
  /** Why this kernel ended; empty while it runs. */
  end = '';
  /** Why the notebook's previous kernel ended. */
  previousEnd = '';
  private pastShown = false;
  private wasConnected = false;
  private commsWanted = true;
  private readonly others: OtherWriters;
  private restoring: Promise<void> = Promise.resolve();
  private timer: number | undefined;

  constructor(
    private readonly panel: NotebookPanel,
    readonly kernel: Kernel.IKernelConnection,
    private readonly gateway: Gateway
  ) {
    this.others = new OtherWriters(panel, () => this.restoreLater());
    kernel.anyMessage.connect(this.onMessage, this);
    kernel.statusChanged.connect(this.onStatus, this);
    kernel.connectionStatusChanged.connect(this.onConnection, this);
    this.onConnection(kernel, kernel.connectionStatus);
  }

  dispose(): void {
    window.clearTimeout(this.timer);
    this.others.dispose();
    Signal.clearData(this);
  }

  /** Whether the gateway has the features that restoring needs. */
  get isSupported(): boolean {
    return FEATURES.every(feature => this.facts?.features.includes(feature));
  }

  /**
   * Brings outputs from the log into the cells that need them.
   *
   * @param all also into cells whose document is newer, such as those whose outputs were cleared.
   */
  restore(all = false): Promise<void> {
    // One after the other, so that an execution is followed once.
    this.restoring = this.restoring.then(() => this.restoreNow(all)).catch(error => {
      console.warn('kernelmux: the outputs of the kernel are not restored:', error);
    });
    return this.restoring;
  }

  private async restoreNow(all: boolean): Promise<void> {
    this.facts ??= await this.gateway.kernel(this.kernel.id);
    if (!this.isSupported || this.kernel.isDisposed) {
      return;
    }
    const executions = await this.gateway.latestOfCells(this.kernel.id);
    if (!executions || this.panel.isDisposed || this.kernel.isDisposed || (await this.others.exist())) {
      return;
    }
    const cells = codeCells(this.panel);
    const facts = factsOf(cells);
    const { matches, orphans } = match(facts, executions, keepsIds(this.panel));
    const saved = lastSaved(this.panel);
    const busy = executions.some(isOpen);
    for (const found of matches) {
      const cell = cells[found.cell];
      const { execution } = found;
      const isNew = !this.known.has(execution.msg_id) && needsLog(execution, facts[found.cell].marker, saved);
      if ((all || isNew) && !isCurrent(cell, execution)) {
        this.follow(cell, execution, busy);
        showEdited(cell, found.edited);
      }
    }
    this.commsWanted &&= !busy;
    // Outputs of cells that were deleted before the document was saved are not offered.
    this.orphans = orphans.filter(execution => needsLog(execution, null, saved));
    await this.restorePast(new Set(matches.map(({ cell }) => cells[cell])));
    this.changed.emit();
  }

  /** Called when cells were inserted for the executions without a cell. */
  forgetOrphans(): void {
    this.orphans = [];
    this.changed.emit();
  }

  /** Shows the outputs of the notebook's previous kernel once, in cells that this kernel has not run. */
  private async restorePast(ran: Set<CodeCell>): Promise<void> {
    if (this.pastShown) {
      return;
    }
    this.pastShown = true;
    const { previous } = (await this.gateway.notebook(this.panel.context.path)) ?? {};
    if (previous) {
      await showPast(this.panel, this.gateway, previous, cell => ran.has(cell) || Boolean(cell.outputArea.future));
      const progress = await this.gateway.progress(previous);
      this.previousEnd = progress ? endText(progress) : '';
    }
  }

  /** Shows an execution in a cell. */
  follow(cell: CodeCell, execution: Execution, busy = false): void {
    this.known.add(execution.msg_id);
    // The kernel's widgets are sent once: JupyterLab asks an idle kernel for them itself.
    const withComms = busy && this.commsWanted;
    this.commsWanted &&= !withComms;
    const follow = new Follow(this.kernel, cell, execution, withComms);
    this.follows.add(follow);
    void follow.ended.then(() => this.follows.delete(follow));
  }

  private onConnection(_: unknown, status: Kernel.ConnectionStatus): void {
    if (status !== 'connected') {
      return;
    }
    if (this.wasConnected) {
      this.follows.forEach(follow => follow.repeat());
    }
    this.wasConnected = true;
    void this.restore();
  }

  private onStatus(_: unknown, status: Kernel.Status): void {
    if (status === 'restarting' || status === 'autorestarting' || status === 'dead') {
      // Running cells have ended, and the document has their outputs.
      codeCells(this.panel).forEach(cell => clearMarker(cell.model));
    }
    if (status === 'dead') {
      void this.explainEnd();
    }
  }

  private async explainEnd(): Promise<void> {
    const progress = await this.gateway.progress(this.kernel.id).catch(() => null);
    this.end = (progress && endText(progress)) || 'Kernel ended';
    this.changed.emit();
  }

  private onMessage(_: unknown, { msg, direction }: Kernel.IAnyMessageArgs): void {
    if (direction === 'send') {
      if (msg.header.msg_type === 'execute_request') {
        this.onRequest(msg as KernelMessage.IExecuteRequestMsg);
      }
      return;
    }
    const parent = msg.parent_header as Partial<KernelMessage.IHeader>;
    if (!parent.msg_id) {
      return;
    }
    const type: string = msg.header.msg_type;
    if (type === 'execute_reply') {
      codeCells(this.panel).forEach(cell => clearMarker(cell.model, parent.msg_id));
    } else if (type === 'kernelmux_answered') {
      codeCells(this.panel)
        .filter(cell => cell.outputArea.future?.msg.header.msg_id === parent.msg_id)
        .forEach(cell => dropQuestion(this.kernel, cell));
    } else if (type === 'execute_input' && parent.session !== this.kernel.clientId && !this.known.has(parent.msg_id)) {
      this.restoreLater();
    }
  }

  private onRequest(msg: KernelMessage.IExecuteRequestMsg): void {
    const { cellId, kernelmux } = msg.metadata as { cellId?: string; kernelmux?: { follow?: boolean } };
    this.known.add(msg.header.msg_id);
    const cell = cellId && !kernelmux?.follow ? codeCellOf(this.panel, cellId) : undefined;
    if (cell && this.isSupported) {
      setMarker(cell.model, msg.header.msg_id);
      showEdited(cell, false);
    }
  }

  /** Shows a cell of this notebook that another client runs. */
  private restoreLater(): void {
    this.timer ??= window.setTimeout(() => {
      this.timer = undefined;
      void this.restore();
    }, DEBOUNCE);
  }
}

/** Whether the cell already shows the execution. */
function isCurrent(cell: CodeCell, execution: Execution): boolean {
  const future = cell.outputArea.future;
  return Boolean(future && !future.isDisposed && future.msg.header.msg_id === execution.msg_id);
}
