/** Brings a kernel's outputs into the notebook's cells: when the page is opened, and when another page runs a cell. */

import type { CodeCell } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { KernelMessage, type Kernel } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { showWarning } from './culling.js';
import type { Early } from './early.js';
import { showEdited } from './edited.js';
import { isComplete, putAll, type Filling } from './ended.js';
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
/** Maximum number of requested replays that have not begun, so that each begins soon after its request. */
const MAX_PENDING = 16;
/** Messages that change what a cell shows. */
const OUTPUTS = new Set(['stream', 'display_data', 'execute_result', 'error', 'clear_output', 'input_request']);
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
  /** Follows whose replay is not requested yet. */
  private readonly queued: Follow[] = [];
  /** The number of requested replays that have not begun. */
  private pending = 0;
  /** Cells that show an ended execution without following it, by `msg_id`. */
  private readonly ended = new Map<string, { cell: CodeCell; execution: Execution }>();
  /** Executions with outputs that arrived after the last listing. */
  private readonly updated = new Set<string>();
  /** Why this kernel ended; empty while it runs. */
  end = '';
  /** Why the notebook's previous kernel ended. */
  previousEnd = '';
  private pastShown = false;
  private wasConnected = false;
  /** Whether the outputs of ended executions were listed. */
  private listed = false;
  private commsWanted = true;
  private readonly others: OtherWriters;
  private restoring: Promise<void> = Promise.resolve();
  private timer: number | undefined;

  constructor(
    private readonly panel: NotebookPanel,
    readonly kernel: Kernel.IKernelConnection,
    private readonly gateway: Gateway,
    private readonly early: Promise<Early | null> = Promise.resolve(null)
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
   * @param all whether to include executions that ended before the document was saved, such as cells whose outputs were
   *   cleared.
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
    const early = await this.early;
    const shown = early?.kernelId === this.kernel.id ? early.shown : undefined;
    // Outputs are listed once. Later, single cells are followed.
    const since = all ? new Date(0) : shown || this.listed ? undefined : lastSaved(this.panel);
    this.listed = true;
    this.updated.clear();
    const executions = await this.gateway.latestOfCells(this.kernel.id, since);
    if (!executions || this.panel.isDisposed || this.kernel.isDisposed || (await this.others.exist())) {
      return;
    }
    const cells = codeCells(this.panel);
    const facts = factsOf(cells);
    const { matches, orphans } = match(facts, executions, keepsIds(this.panel));
    const saved = lastSaved(this.panel);
    const busy = executions.some(isOpen);
    const fillings: Filling[] = [];
    for (const found of matches) {
      const cell = cells[found.cell];
      const { execution } = found;
      const before = this.known.has(execution.msg_id) ? undefined : shown?.get(execution.msg_id);
      if (before && before.outputs_digest === execution.outputs_digest) {
        this.keep(cell, execution);
      }
      const isNew = !this.known.has(execution.msg_id) && needsLog(execution, facts[found.cell].marker, saved);
      if ((all || isNew) && !isCurrent(cell, execution)) {
        const filling = this.show(cell, execution, busy);
        if (filling) {
          fillings.push(filling);
        }
        showEdited(cell, found.edited);
      }
    }
    putAll(fillings);
    this.commsWanted &&= !busy;
    // The outputs of a deleted cell whose execution ended before the document was saved are not offered.
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

  /** Follows an execution, or returns the outputs that the caller must put into the cell. */
  private show(cell: CodeCell, execution: Execution, busy: boolean): Filling | undefined {
    const { future } = cell.outputArea;
    const isFree = !future || future.isDisposed;
    if (isFree && isComplete(execution) && !this.updated.has(execution.msg_id)) {
      this.keep(cell, execution);
      return { cell, execution };
    }
    this.follow(cell, execution, busy);
    return undefined;
  }

  /** Records that a cell shows an ended execution. */
  private keep(cell: CodeCell, execution: Execution): void {
    this.known.add(execution.msg_id);
    this.ended.set(execution.msg_id, { cell, execution });
  }

  /** Follows an execution in a cell. */
  follow(cell: CodeCell, execution: Execution, busy = false): void {
    this.known.add(execution.msg_id);
    // Request the kernel's widgets once. JupyterLab itself requests them from an idle kernel.
    const withComms = busy && this.commsWanted;
    this.commsWanted &&= !withComms;
    const follow = new Follow(this.kernel, cell, execution, withComms);
    this.follows.add(follow);
    void follow.ended.then(() => this.follows.delete(follow));
    this.queued.push(follow);
    this.requestNext();
  }

  private requestNext(): void {
    while (this.pending < MAX_PENDING) {
      const follow = this.queued.shift();
      if (!follow) {
        return;
      }
      this.pending += 1;
      void follow.begun.then(() => {
        this.pending -= 1;
        this.requestNext();
      });
      follow.start();
    }
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
      showWarning(this.kernel, this.panel.context.localPath, msg);
      return;
    }
    const type: string = msg.header.msg_type;
    if (OUTPUTS.has(type)) {
      this.onOutput(parent.msg_id);
    }
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

  /** Follows an ended execution if it has new outputs. A thread may print after its cell has ended. */
  private onOutput(msgId: string): void {
    this.updated.add(msgId);
    const shown = this.ended.get(msgId);
    if (shown) {
      this.ended.delete(msgId);
      if (!shown.cell.isDisposed && !shown.cell.outputArea.future) {
        this.follow(shown.cell, shown.execution);
      }
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

  /** Restores soon, because another client runs a cell or has left the document. */
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
