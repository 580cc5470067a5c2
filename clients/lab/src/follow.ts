/**
 * Shows, in a cell, an execution that another page requested, and continues with its live output.
 *
 * This page repeats the request with the same `msg_id`. The gateway does not pass it to the kernel, but replays the
 * execution on this connection: its outputs so far, then the live ones. JupyterLab handles them as answers to a request
 * of this page, so display updates, questions and the end of the cell work as usual.
 */

import type { CodeCell } from '@jupyterlab/cells';
import { KernelMessage, type Kernel } from '@jupyterlab/services';
import { isOpen, type Execution } from './execution.js';
import { clearMarker, setMarker } from './marker.js';

/**
 * How long the replay may take to begin before it is requested again, in milliseconds. Doubled each time.
 *
 * jupyter_server silently drops a request that it has not forwarded when its connection to the gateway breaks.
 */
const FIRST_TIMEOUT = 5_000;
const MAX_TIMEOUT = 60_000;

type Future = Kernel.IShellFuture<KernelMessage.IExecuteRequestMsg, KernelMessage.IExecuteReplyMsg>;

export class Follow {
  /** Resolves once the execution has ended, or no longer concerns the cell. */
  readonly ended: Promise<void>;
  /** Resolves once the replay has begun, or it is clear that it will not. */
  readonly begun: Promise<void>;
  private future: Future | undefined;
  private begin!: () => void;
  private attached = false;
  private finish!: () => void;
  private timeout = FIRST_TIMEOUT;
  private timer: number | undefined;

  /**
   * @param withComms whether the gateway should send the kernel's widgets before the replay.
   */
  constructor(
    private readonly kernel: Kernel.IKernelConnection,
    readonly cell: CodeCell,
    readonly execution: Execution,
    private readonly withComms: boolean
  ) {
    this.begun = new Promise(resolve => {
      this.begin = resolve;
    });
    this.ended = new Promise(resolve => {
      this.finish = () => {
        window.clearTimeout(this.timer);
        this.begin();
        resolve();
      };
    });
    if (isOpen(execution)) {
      cell.model.executionState = 'running';
    }
  }

  /** Requests the replay. */
  start(): void {
    if (this.kernel.isDisposed || this.cell.isDisposed) {
      this.finish();
    } else {
      this.request(this.withComms);
    }
  }

  /** Requests the replay again, after a connection was lost or the replay did not begin in time. */
  repeat(): void {
    if (!this.future) {
      return;
    }
    if (this.kernel.isDisposed || this.cell.isDisposed) {
      this.finish();
      return;
    }
    // Disposing of a future unregisters its id, so the old one is disposed of before the new one is created.
    this.future.dispose();
    this.attached = false;
    this.request(false);
  }

  private request(withComms: boolean): void {
    const request = KernelMessage.createMessage<KernelMessage.IExecuteRequestMsg>({
      msgType: 'execute_request',
      channel: 'shell',
      username: this.kernel.username,
      session: this.kernel.clientId,
      msgId: this.execution.msg_id,
      // Harmless if a kernel receives it.
      content: { code: '', silent: true, store_history: false, allow_stdin: true, stop_on_error: false },
      metadata: { kernelmux: { follow: true, comms: withComms } }
    });
    const future = this.kernel.sendShellMessage(request, true, false) as Future;
    this.future = future;
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.repeat(), this.timeout);
    this.timeout = Math.min(2 * this.timeout, MAX_TIMEOUT);
    const attach = (message: KernelMessage.IIOPubMessage): boolean => {
      if (!this.attached && isReplay(message)) {
        this.attach(future);
      }
      return true;
    };
    future.registerMessageHook(attach);
    future.done.then(
      reply => this.onEnd(future, reply),
      () => this.onEnd(future, undefined)
    );
  }

  /** Connects the cell to the replay. The cell shows the document's outputs until then, to avoid flicker. */
  private attach(future: Future): void {
    this.attached = true;
    this.begin();
    window.clearTimeout(this.timer);
    const { cell } = this;
    if (cell.isDisposed) {
      return;
    }
    // Clears the outputs.
    cell.outputArea.future = future;
    // All outputs now come from the kernel. Those of the document, which may be untrusted, are cleared.
    cell.model.trusted = true;
    cell.model.executionCount = null;
    cell.model.executionState = 'running';
    setMarker(cell.model, this.execution.msg_id);
  }

  private onEnd(future: Future, reply: KernelMessage.IExecuteReplyMsg | undefined): void {
    if (future !== this.future) {
      return;
    }
    const { cell } = this;
    const concerned = !cell.isDisposed && (!this.attached || cell.outputArea.future === future);
    if (concerned) {
      if (this.attached && reply) {
        const { execution_count: count } = reply.content as { execution_count?: number };
        cell.model.executionCount = count ?? null;
      }
      cell.model.executionState = 'idle';
      clearMarker(cell.model);
    }
    this.finish();
  }
}

/** Whether this message begins a replay. If the gateway refuses the request, only an idle status arrives on iopub. */
function isReplay(message: KernelMessage.IIOPubMessage): boolean {
  const mark = message.metadata['kernelmux'] as { replay?: boolean } | undefined;
  const isIdle = KernelMessage.isStatusMsg(message) && message.content.execution_state === 'idle';
  return mark?.replay === true && !isIdle;
}
