import type { IOutput } from '@jupyterlab/nbformat';

/** An execution in a kernel's log, as the gateway lists it. */
export interface Execution {
  msg_id: string;
  /** The cell that was run, if the client named it. */
  cellId?: string | null;
  /** The session of the client that requested it. */
  session: string;
  status: 'queued' | 'running' | 'ok' | 'error' | 'aborted' | 'died' | 'lost';
  /** What ended the kernel, if the execution ended with it. */
  reason?: string | null;
  execution_count?: number | null;
  requested: string;
  ended?: string | null;
  /** SHA-256 of the code, in hexadecimal. */
  code_hash?: string | null;
  /** Only in lists: a digest of the execution's messages. */
  outputs_digest?: string;
  /** Only in lists: the outputs, if they are small and no longer change. */
  outputs?: IOutput[];
}

/** Whether the execution has not ended. */
export function isOpen(execution: Execution): boolean {
  return execution.status === 'queued' || execution.status === 'running';
}
