// The client with the real gateway and a real kernel, through a proxy that cuts connections.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { KernelConnection } from 'kernelmux-client';
import { WebSocket as Ws } from 'ws';
import { CuttingProxy } from './cutting-proxy.js';
import { collect, event, seeded, streamText } from './helpers.js';
import { RealGateway, skip } from './real-gateway.js';

const gateway = new RealGateway();

/**
 * @param {(made: {id: string, proxy: CuttingProxy, client: (options?: any) => KernelConnection}) => Promise<void>} body
 */
async function withKernel(body) {
  const { id } = await gateway.rest('POST', '/api/kernels', { name: 'python3' });
  const proxy = await new CuttingProxy(gateway.port).start();
  /** @type {KernelConnection[]} */
  const clients = [];
  try {
    await body({
      id,
      proxy,
      client: (options = {}) => {
        const basics = { url: proxy.url, kernelId: id, token: gateway.token, WebSocket: Ws, pauseMs: 5, maxPauseMs: 200 };
        clients.push(new KernelConnection({ ...basics, ...options }));
        return /** @type {KernelConnection} */ (clients.at(-1));
      },
    });
  } finally {
    for (const client of clients) client.close();
    await proxy.stop();
    await gateway.rest('DELETE', `/api/kernels/${id}`).catch(() => {});
  }
}

const options = { skip, timeout: 120_000 };

// The end of an execution's output. The reply uses another channel and may arrive before the last outputs.
/** @param {import('kernelmux-client').Entry} entry */
const isIdle = ({ header, content }) => header.msg_type === 'status' && content.execution_state === 'idle';

before(async () => {
  if (!skip) await gateway.start();
});

after(async () => {
  if (!skip) await gateway.remove();
});

test('another client receives every entry until the kernel is deleted', options, () =>
  withKernel(async ({ id, client }) => {
    const watching = collect(client({ resume: 'start' }).entries());
    const kernel = client();
    const execution = kernel.execute('print("größe", 6 * 7)\n1 / 0');
    const messages = await collect(execution);
    assert.equal(streamText(messages), 'größe 42\n');
    const reply = await execution.reply;
    assert.equal(reply.content.ename, 'ZeroDivisionError');
    const asking = kernel.execute('print("Hello " + input("Who? "))', { allowStdin: true });
    const answered = [];
    for await (const message of asking) {
      answered.push(message);
      if (message.header.msg_type === 'input_request') asking.input('you');
    }
    assert.equal(streamText(answered), 'Hello you\n');
    await gateway.rest('DELETE', `/api/kernels/${id}`);
    const all = await watching;
    assert.deepEqual(
      all.map((entry) => entry.seq),
      all.map((_, i) => i + 1),
    );
    const mine = all.filter((entry) => entry.parent_header.msg_id === execution.msgId);
    assert.deepEqual(mine, messages);
  }));

test('nothing is lost or repeated over many cuts', options, () =>
  withKernel(async ({ proxy, client }) => {
    const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
    console.log(`SEED=${seed}`);
    const random = seeded(seed);
    let calm = false;
    proxy.plan = () => (calm ? {} : { down: Math.floor(random() * 40_000), up: 400 + Math.floor(random() * 4000) });
    const kernel = client({ resume: 'start' });
    const run = async (/** @type {string} */ code) => streamText(await collect(kernel.execute(code)));
    const reading = (async () => {
      const entries = [];
      for await (const entry of kernel.entries()) {
        entries.push(entry);
        if (calm && entry.header.msg_type === 'execute_reply' && entry.content.execution_count === 12) break;
      }
      return entries;
    })();
    const outputs = [];
    for (let i = 0; i < 11; i++) {
      const code = `for i in range(200): print(${i}, i, end=";", flush=True)`;
      outputs.push(run(code));
      // Waits for about half of the executions; the others are queued.
      if (random() < 0.5) await outputs.at(-1);
    }
    const expected = (/** @type {number} */ i) => Array.from({ length: 200 }, (_, k) => `${i} ${k};`).join('');
    for (let i = 0; i < 11; i++) assert.equal(await outputs[i], expected(i));
    calm = true;
    assert.equal(await run('print("last")'), 'last\n');
    const entries = await reading;
    assert.deepEqual(
      entries.map((entry) => entry.seq),
      entries.map((_, i) => i + 1),
    );
    const ids = entries.map((entry) => `${entry.channel} ${entry.header.msg_id}`);
    assert.equal(new Set(ids).size, ids.length);
    assert.ok(proxy.connections > 10, `${proxy.connections} connections`);
  }));

test('another client continues at the cursor', options, () =>
  withKernel(async ({ client }) => {
    const one = client({ resume: 'start' });
    const { msgId } = one.execute('for i in range(1000): print(i, end=";", flush=True)');
    let text = '';
    for await (const entry of one.entries()) {
      if (entry.parent_header.msg_id === msgId && entry.header.msg_type === 'stream') text += entry.content.text;
      if (text.includes('100;')) break;
    }
    one.close();
    const two = client({ resume: one.cursor });
    for await (const entry of two.entries()) {
      if (entry.parent_header.msg_id !== msgId) continue;
      if (entry.header.msg_type === 'stream') text += entry.content.text;
      if (isIdle(entry)) break;
    }
    assert.equal(text, Array.from({ length: 1000 }, (_, i) => `${i};`).join(''));
  }));

test('a slow reader receives all of a large output', options, () =>
  withKernel(async ({ client }) => {
    const talking = client().execute('for i in range(1000): print("x" * 9999)');
    await collect(talking);
    const kernel = client({ resume: 'start', maxWaitingBytes: 500_000 });
    const paused = event(kernel, 'state', ({ state }) => state === 'paused');
    const iterator = kernel.entries();
    await paused;
    let length = 0;
    for await (const entry of iterator) {
      const { parent_header, header, content } = entry;
      if (parent_header.msg_id === talking.msgId && isIdle(entry)) break;
      if (parent_header.msg_id === talking.msgId && header.msg_type === 'stream') length += content.text.length;
      // Lets pending frames be received.
      await new Promise((resolve) => setTimeout(resolve));
    }
    assert.equal(length, 10_000_000);
  }));

test('a wrong token and an unknown kernel are reported', options, () =>
  withKernel(async ({ client }) => {
    await assert.rejects(collect(client({ token: 'wrong' }).entries()), { code: 'unauthorized' });
    const kernelId = '00000000-0000-0000-0000-000000000000';
    await assert.rejects(collect(client({ kernelId }).entries()), { code: 'not-found' });
  }));

test('a second connection of a session replaces the first', options, () =>
  withKernel(async ({ client }) => {
    const one = client({ session: 'the-same' });
    const reading = assert.rejects(collect(one.entries()), { code: 'replaced' });
    await event(one, 'hello');
    await client({ session: 'the-same' }).execute('1').reply;
    await reading;
  }));

test('an execution fails when its kernel dies, and the next one runs', options, () =>
  withKernel(async ({ client }) => {
    const kernel = client();
    const execution = kernel.execute('import os; print("before", flush=True); os._exit(3)');
    await assert.rejects(collect(execution), { code: 'kernel-restarted', message: /exited with code 3/ });
    assert.equal(streamText(await collect(kernel.execute('print("after")'))), 'after\n');
  }));

for (const signal of /** @type {const} */ (['SIGKILL', 'SIGTERM'])) {
  test(`the log continues after the gateway is ended by ${signal} and restarted`, options, () =>
    withKernel(async ({ client }) => {
      const kernel = client({ resume: 'start' });
      const entries = [];
      const iterator = kernel.entries();
      kernel.execute('a = 41');
      for await (const entry of iterator) {
        entries.push(entry);
        if (entry.header.msg_type === 'execute_reply') break;
      }
      const broken = event(kernel, 'state');
      await gateway.end(signal);
      assert.equal((await broken).state, 'waiting');
      // Sent while no gateway runs.
      const execution = kernel.execute('print(a + 1)');
      await gateway.start();
      assert.equal(streamText(await collect(execution)), '42\n');
      const reply = await execution.reply;
      entries.push(...(await collect(kernel.entries(), (entry) => entry.seq >= reply.seq)));
      assert.deepEqual(
        entries.map((entry) => entry.seq),
        entries.map((_, i) => i + 1),
      );
      assert.equal(new Set(entries.map((entry) => entry.cursor.split(':')[0])).size, 1);
    }));
}
