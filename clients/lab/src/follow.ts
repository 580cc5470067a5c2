/**
 * Shows an execution that another page asked for in a cell, and goes on with it.
 *
 * The request is sent again under its own `msg_id`. The gateway does not pass it to the kernel, but replays the
 * execution on this connection: its outputs so far, then the live ones. JupyterLab takes all of it for the answer to a
 * request of this page, so display updates, questions and the end of the cell work as ever.
 */

import type { CodeCell } from '@jupyterlab/cells';
import { KernelMessage, type Kernel } from '@jupyterlab/services';
import { isOpen, type Execution } from './execution.js';
import { clearMarker, setMarker } from './marker.js';

/**
 * How long the replay may take to begin before it is asked for again, in milliseconds; each time twice as long.
 *
 * A request is lost without a trace if jupyter_server has it while its own connection to the gateway breaks.
 */
const FIRST_PATIENCE = 5_000;
const MOST_PATIENCE = 60_000;

type Future = Kernel.IShellFuture<KernelMessage.IExecuteRequestMsg, KernelMessage.IExecuteReplyMsg>;

export class Follow {
  /** Resolves once the execution has ended, or no longer concerns the cell. */
  readonly ended: Promise<void>;
  private future!: Future;
  private attached = false;
  private finish!: () => void;
  private patience = FIRST_PATIENCE;
  private timer: number | undefined;

  /**
   * @param withComms whether the gateway sends the kernel's widgets first.
   */
  constructor(
    private readonly kernel: Kernel.IKernelConnection,
    readonly cell: CodeCell,
    readonly execution: Execution,
    withComms: boolean
  ) {
    this.ended = new Promise(resolve => {
      this.finish = () => {
        window.clearTimeout(this.timer);
        resolve();
      };
    });
    if (isOpen(execution)) {
      cell.model.executionState = 'running';
    }
    this.ask(withComms);
  }

  /** Asks for the replay again, after a connection was lost. */
  again(): void {
    if (this.kernel.isDisposed || this.cell.isDisposed) {
      this.finish();
      return;
    }
    // Disposing of a future unregisters its id, so the old one goes before the new one comes.
    this.future.dispose();
    this.attached = false;
    this.ask(false);
  }

  private ask(withComms: boolean): void {
    const request = KernelMessage.createMessage<KernelMessage.IExecuteRequestMsg>({
      msgType: 'execute_request',
      channel: 'shell',
      username: this.kernel.username,
      session: this.kernel.clientId,
      msgId: this.execution.msg_id,
      // Harmless if it reached a kernel.
      content: { code: '', silent: true, store_history: false, allow_stdin: true, stop_on_error: false },
      metadata: { kernelmux: { follow: true, comms: withComms } }
    });
    const future = this.kernel.sendShellMessage(request, true, false) as Future;
    this.future = future;
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.again(), this.patience);
    this.patience = Math.min(2 * this.patience, MOST_PATIENCE);
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

  /** Gives the cell to the replay. Until then it shows what the document has, so that it does not flash. */
  private attach(future: Future): void {
    this.attached = true;
    window.clearTimeout(this.timer);
    const { cell } = this;
    if (cell.isDisposed) {
      return;
    }
    // Clears the outputs.
    cell.outputArea.future = future;
    // The outputs come from the kernel. Those of the document, which may be untrusted, are gone.
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

/** Whether a replay begins. A refusal, which is marked too, has only the idle status. */
function isReplay(message: KernelMessage.IIOPubMessage): boolean {
  const mark = message.metadata['kernelmux'] as { replay?: boolean } | undefined;
  const isIdle = KernelMessage.isStatusMsg(message) && message.content.execution_state === 'idle';
  return mark?.replay === true && !isIdle;
}
