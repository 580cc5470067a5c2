// Only type-checked, by `npm run check`: uses the types as a user would.

import { type Entry, Execution, KernelConnection, KernelConnectionError, type State } from 'kernelmux-client';
import { WebSocket as Ws } from 'ws';

export async function use(): Promise<void> {
  const kernel = new KernelConnection({ url: new URL('http://127.0.0.1:8888'), kernelId: 'k', WebSocket: Ws });
  new KernelConnection({ url: '/', kernelId: 'k', token: 't', resume: 'start', WebSocket: globalThis.WebSocket });
  // @ts-expect-error kernelId is missing
  new KernelConnection({ url: '/' });

  const off: () => void = kernel.on('gap', ({ first, last }) => last - first);
  off();
  kernel.on('state', ({ state, reason }) => {
    const name: State = state;
    return `${name} ${reason}`;
  });
  // @ts-expect-error there is no such event
  kernel.on('nothing', () => {});
  // @ts-expect-error clients do not publish
  kernel.send('iopub', 'status');

  for await (const entry of kernel.entries()) {
    const { seq, cursor, buffers }: Entry = entry;
    const sizes: number[] = buffers.map((buffer) => buffer.byteLength);
    localStorage.setItem('cursor', `${cursor} ${seq} ${sizes}`);
  }
  const execution: Execution = kernel.execute('1', { cellId: 'c', allowStdin: true });
  for await (const { header, content } of execution) {
    if (header.msg_type === 'input_request') execution.input(String(content.prompt));
  }
  try {
    const reply: Entry = await execution.reply;
    const cursor: string = await execution.logged;
    const later: string | undefined = kernel.cursor ?? `${reply.cursor} ${cursor}`;
    console.log(later);
  } catch (error) {
    if (error instanceof KernelConnectionError && error.code === 'kernel-restarted') return;
    // @ts-expect-error there is no such code
    if (error instanceof KernelConnectionError && error.code === 'nothing') return;
  }
  // @ts-expect-error deliver() is internal
  execution.deliver({});
}
