// The client with a scripted gateway: how it reacts to failures of the gateway and the network.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KernelConnection } from 'kernelmux-client';
import { WebSocket as Ws } from 'ws';
import { IMPLEMENTATIONS, assertSeqs, collect, event, streamText, withGateway } from './helpers.js';
import { encodeEntry } from './mock-gateway.js';

/** @typedef {import('kernelmux-client').Entry} Entry */

const EPOCH = 'a'.repeat(32);

/** @param {string} code */
const failsWith = (code) => ({ name: 'KernelConnectionError', code });

/** @param {import('./mock-gateway.js').MockGateway} gateway @param {number} count @param {any} [parent] */
function fill(gateway, count, parent = {}) {
  for (let i = 0; i < count; i++) gateway.publish('stream', { name: 'stdout', text: `${i} ` }, parent);
}

for (const [name, WebSocket] of IMPLEMENTATIONS) {
  test(`${name}: reads the log, runs code, and ends with the kernel`, () =>
    withGateway(async ({ gateway, client }) => {
      fill(gateway, 3);
      const kernel = client({ resume: 'start', session: 'me' });
      assert.equal(kernel.state, 'new');
      assert.equal(kernel.cursor, undefined);
      const reading = collect(kernel.entries());
      const execution = kernel.execute('print(1)', { cellId: 'cell-1' });
      const messages = await collect(execution);
      assert.deepEqual(
        messages.map((message) => message.header.msg_type),
        ['status', 'stream', 'execute_reply', 'status'],
      );
      const reply = await execution.reply;
      assert.equal(reply.content.status, 'ok');
      assert.equal(await execution.logged, `${EPOCH}:4`);
      gateway.end();
      const entries = await reading;
      assertSeqs(entries, 1, 8);
      assert.equal(entries[3].header.session, 'me');
      assert.equal(entries[3].header.msg_id, execution.msgId);
      assert.deepEqual(entries[3].metadata, { cellId: 'cell-1' });
      assert.equal(kernel.cursor, `${EPOCH}:8`);
      assert.equal(kernel.state, 'ended');
      await assert.rejects(kernel.send('shell', 'kernel_info_request').logged, failsWith('kernel-ended'));
    }, WebSocket));

  test(`${name}: reconnects after a broken connection, a stopping gateway and an unreadable log`, () =>
    withGateway(async ({ gateway, client }) => {
      const kernel = client({ resume: 'start' });
      /** @type {Entry[]} */
      const entries = [];
      for (const code of [undefined, 1001, 1011, 1000, 4000]) {
        const iterator = kernel.entries();
        gateway.publish('stream', { text: 'x' });
        entries.push(...(await collect(iterator, (entry) => entry.seq === gateway.log.length)));
        const again = event(kernel, 'state', ({ state }) => state === 'connected');
        gateway.disconnect(code);
        await again;
      }
      assertSeqs(entries, 1, 5);
      assert.equal(gateway.connections, 6);
    }, WebSocket));

  for (const [status, code] of /** @type {const} */ ([
    [401, 'unauthorized'],
    [403, 'unauthorized'],
    [404, 'not-found'],
  ])) {
    test(`${name}: a handshake refused with ${status} is final`, () =>
      withGateway(async ({ gateway, client }) => {
        gateway.refuse = () => status;
        const kernel = client();
        const { reply, logged } = kernel.execute('1');
        await assert.rejects(collect(kernel.entries()), failsWith(code));
        await assert.rejects(reply, failsWith(code));
        await assert.rejects(logged, failsWith(code));
        assert.equal(gateway.connections, 1);
        assert.equal(kernel.state, 'failed');
        // Later requests fail in the same way.
        await assert.rejects(collect(kernel.entries()), failsWith(code));
        await assert.rejects(kernel.execute('1').reply, failsWith(code));
      }, WebSocket));
  }

  test(`${name}: a handshake that is refused with 503 or not answered is retried`, () =>
    withGateway(async ({ gateway, proxy, client }) => {
      gateway.refuse = (n) => (n < 3 ? 503 : undefined);
      proxy.plan = (n) => (n < 4 ? { down: 0 } : {});
      fill(gateway, 1);
      gateway.end();
      const kernel = client({ url: proxy.url, resume: 'start' });
      assertSeqs(await collect(kernel.entries()), 1, 1);
      assert.ok(gateway.probes > 0);
    }, WebSocket));

  for (const [code, expected] of /** @type {const} */ ([
    [4001, 'replaced'],
    [1002, 'refused'],
    [1009, 'refused'],
  ])) {
    test(`${name}: a connection closed with ${code} is not retried`, () =>
      withGateway(async ({ gateway, client }) => {
        const kernel = client();
        const reading = assert.rejects(collect(kernel.entries()), failsWith(expected));
        await event(kernel, 'hello');
        gateway.publish('stream', {});
        gateway.disconnect(code);
        await reading;
        assert.equal(gateway.connections, 1);
      }, WebSocket));
  }

  test(`${name}: a silent connection times out unless alive frames arrive`, () =>
    withGateway(async ({ gateway, client }) => {
      // The test counts steps instead of connections, because on a busy machine one more connection may time out. The
      // timeouts are long enough for frequent frames to arrive in time.
      let step = 'no hello';
      gateway.script = (socket) => {
        if (step === 'alive') setInterval(() => socket.send('{"type":"alive"}'), 20).unref();
        return step === 'no hello';
      };
      const kernel = client({ helloMs: 250, silenceMs: 1500, resume: 'start' });
      const reading = collect(kernel.entries());
      await event(kernel, 'state', ({ reason }) => reason.includes('0.25'));
      step = 'silent';
      await event(kernel, 'state', ({ reason }) => reason.includes('1.5'));
      step = 'alive';
      await event(kernel, 'hello');
      // Retries, in case this process itself was paused for longer than the timeout.
      let lasts = false;
      for (let tries = 0; !lasts && tries < 5; tries++) {
        const later = new Promise((resolve) => setTimeout(resolve, 3000));
        lasts = await Promise.race([event(kernel, 'state').then(() => false), later.then(() => true)]);
      }
      assert.ok(lasts, 'a connection with alive frames timed out');
      const ended = event(kernel, 'state', ({ state }) => state === 'ended');
      gateway.publish('stream', {});
      gateway.end();
      assertSeqs(await reading, 1, 1);
      await ended;
    }, WebSocket));

  test(`${name}: a slow reader receives everything with bounded memory`, () =>
    withGateway(async ({ gateway, client }) => {
      const text = 'x'.repeat(10_000);
      for (let i = 0; i < 1000; i++) gateway.publish('stream', { text });
      gateway.end();
      const kernel = client({ resume: 'start', maxWaitingBytes: 200_000 });
      let pauses = 0;
      kernel.on('state', ({ state }) => (pauses += Number(state === 'paused')));
      const entries = [];
      for await (const entry of kernel.entries()) {
        entries.push(entry);
        // Lets pending frames be received.
        await new Promise((resolve) => setImmediate(resolve));
      }
      assertSeqs(entries, 1, 1000);
      assert.ok(pauses >= 5, `${pauses} pauses`);
    }, WebSocket));
}

test('a connection without the subprotocol fails as not-kernelmux', () =>
  withGateway(async ({ gateway, client }) => {
    class Lax extends Ws {
      /** @param {string} url */
      constructor(url) {
        super(url);
      }
    }
    await assert.rejects(collect(client({ WebSocket: Lax }).entries()), failsWith('not-kernelmux'));
    gateway.protocol = false;
    gateway.refuse = (n) => (n === -1 ? 404 : undefined);
    await assert.rejects(collect(client().entries()), failsWith('not-found'));
  }));

test('invalid options are refused', () => {
  const options = { url: 'http://127.0.0.1:1/', kernelId: 'k', WebSocket: Ws };
  for (const resume of ['', 'HEAD', '4711', `${EPOCH}:`, `${EPOCH}:-1`, `${EPOCH}:01`, `${EPOCH}:99999999999999999`]) {
    assert.throws(() => new KernelConnection({ ...options, resume }), TypeError);
  }
  for (const url of ['ftp://x/', 'nonsense']) assert.throws(() => new KernelConnection({ ...options, url }), TypeError);
});

test('another client continues at a cursor', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 10);
    const one = client({ resume: 'start' });
    await collect(one.entries(), (entry) => entry.seq === 4);
    const cursor = JSON.parse(JSON.stringify(one.cursor));
    assert.equal(cursor, `${EPOCH}:4`);
    one.close();
    gateway.end();
    assertSeqs(await collect(client({ resume: cursor }).entries()), 5, 10);
  }));

test('a new loop continues where the previous one stopped, even if messages arrived in between', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 10);
    const kernel = client({ resume: 'start' });
    const entries = await collect(kernel.entries(), (entry) => entry.seq === 4);
    const execution = kernel.execute('a');
    assert.equal((await collect(execution)).length, 4);
    assert.equal(kernel.cursor, `${EPOCH}:4`);
    const second = kernel.execute('b');
    entries.push(...(await collect(kernel.entries(), (entry) => entry.seq === 12)));
    assert.equal((await collect(second)).length, 4);
    gateway.end();
    await event(kernel, 'state', ({ state }) => state === 'ended');
    entries.push(...(await collect(kernel.entries())));
    assertSeqs(entries, 1, 20);
    assert.deepEqual(await collect(kernel.entries()), []);
  }));

test('a second concurrent reader is refused', () =>
  withGateway(async ({ client }) => {
    const kernel = client();
    kernel.entries();
    assert.throws(() => kernel.entries(), /being read/);
  }));

for (const [name, mangle] of /** @type {[string, (seq: number, frame: Buffer) => (Buffer | string)[]][]} */ ([
  ['sent twice', (_, frame) => [frame, frame]],
  ['left out', () => []],
  ['with an earlier number', (seq) => [encodeEntry(seq - 1, {})]],
  ['that is malformed', () => [Buffer.from('nonsense')]],
  ['after invalid JSON', (_, frame) => ['{', frame]],
  ['after a second hello', (_, frame) => [`{"type":"hello","epoch":"${EPOCH}","from":0,"head":9,"earliest":1}`, frame]],
  ['after a gap at another position', (_, frame) => ['{"type":"gap","first":1,"last":1}', frame]],
  ['after a gap that goes backwards', (seq, frame) => [`{"type":"gap","first":${seq},"last":0}`, frame]],
])) {
  test(`an entry ${name} breaks the connection`, () =>
    withGateway(async ({ gateway, client }) => {
      fill(gateway, 6);
      gateway.end();
      gateway.mangle = (frame, n) => {
        if (n > 0 || typeof frame === 'string') return [frame];
        const seq = Number(frame.readBigUInt64LE(0));
        return seq === 4 ? mangle(seq, frame) : [frame];
      };
      const kernel = client({ resume: 'start' });
      assertSeqs(await collect(kernel.entries()), 1, 6);
      assert.equal(gateway.connections, 2);
    }));
}

test('unknown types and members are ignored', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 2);
    gateway.end();
    gateway.mangle = (frame) =>
      typeof frame === 'string'
        ? [JSON.stringify({ ...JSON.parse(frame), more: [] })]
        : ['{"type":"later","x":1}', 'null', '[]', '7', frame, '{"type":"alive"}'];
    assertSeqs(await collect(client({ resume: 'start' }).entries()), 1, 2);
    assert.equal(gateway.connections, 1);
  }));

test('a first frame other than a valid hello breaks the connection', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 3);
    gateway.end();
    const hello = { type: 'hello', epoch: EPOCH, earliest: 1, head: 3, from: 1, recovered: true };
    const frames = [
      encodeEntry(1, {}),
      '{"type":"alive"}',
      JSON.stringify({ ...hello, epoch: 'x' }),
      JSON.stringify({ ...hello, from: 2 }),
      JSON.stringify({ ...hello, epoch: 'b'.repeat(32) }),
      JSON.stringify({ ...hello, from: '1' }),
    ];
    gateway.script = (socket, n) => {
      if (n >= frames.length) return false;
      socket.send(frames[n]);
      return true;
    };
    assertSeqs(await collect(client({ resume: `${EPOCH}:1` }).entries()), 2, 3);
    assert.equal(gateway.connections, frames.length + 1);
  }));

test('gaps are reported in order with the entries', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 2);
    gateway.append(null);
    gateway.append(null);
    fill(gateway, 1);
    gateway.append(null);
    gateway.end();
    const kernel = client({ resume: 'start' });
    /** @type {unknown[]} */
    const seen = [];
    kernel.on('gap', (gap) => seen.push(gap, kernel.cursor));
    const iterator = kernel.entries();
    await event(kernel, 'state', ({ state }) => state === 'ended');
    assert.equal(seen.length, 0);
    for await (const entry of iterator) seen.push(entry.seq);
    const expected = [1, 2, { first: 3, last: 4 }, `${EPOCH}:4`, 5, { first: 6, last: 6 }, `${EPOCH}:6`];
    assert.deepEqual(seen, expected);
  }));

test('a lost position is reported before the entries that follow', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 6);
    gateway.earliest = 4;
    const kernel = client({ resume: `${EPOCH}:2` });
    /** @type {unknown[]} */
    const seen = [];
    kernel.on('notRecovered', ({ reason }) => seen.push(reason, kernel.cursor));
    for await (const entry of kernel.entries()) {
      seen.push(entry.cursor.slice(-2));
      if (entry.seq === 6 && entry.cursor.startsWith('a')) {
        // The log loses its last entry.
        gateway.log.length = 5;
        gateway.disconnect();
        await event(kernel, 'hello');
        gateway.end();
      }
    }
    assert.deepEqual(seen, [
      ...['earliest', `${EPOCH}:3`, ':4', ':5', ':6'],
      ...['ahead', `${EPOCH}:3`, ':4', ':5'],
    ]);
    gateway.epoch = 'b'.repeat(32);
    const late = client({ resume: kernel.cursor });
    const [notRecovered] = await Promise.all([event(late, 'notRecovered'), collect(late.entries())]);
    assert.equal(notRecovered.reason, 'epoch');
    assert.equal(late.cursor, `${'b'.repeat(32)}:5`);
  }));

test('requests in flight at a gap fail and later ones do not', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 5);
    gateway.log[2] = null;
    // This request is sent before the old gap is received, but its entry comes after the gap.
    const kernel = client({ resume: 'start' });
    await kernel.execute('fine').reply;
    gateway.kernel = ({ header }) => gateway.publish('status', { execution_state: 'busy' }, header);
    const lost = kernel.execute('lost');
    await lost.logged;
    gateway.append(null);
    await assert.rejects(lost.reply, failsWith('gap'));
    const messages = [];
    await assert.rejects(async () => {
      for await (const message of lost) messages.push(message);
    }, failsWith('gap'));
    assert.equal(messages.length, 1);
  }));

test('a gap in entries that are read again does not fail executions', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 3);
    const kernel = client({ resume: 'start' });
    await collect(kernel.entries(), () => true);
    gateway.kernel = ({ header }) => fill(gateway, 2, header);
    const execution = kernel.execute('go on');
    const messages = execution[Symbol.asyncIterator]();
    assert.equal((await messages.next()).value?.seq, 5);
    // These entries include the request and one of its messages.
    gateway.log.fill(null, 0, 5);
    gateway.earliest = 6;
    const reading = collect(kernel.entries(), ({ seq }) => seq === 7);
    await event(kernel, 'notRecovered');
    assert.equal((await messages.next()).value?.seq, 6);
    gateway.publish('status', { execution_state: 'idle' }, { msg_id: execution.msgId });
    assertSeqs(await reading, 6, 7);
    assert.equal((await messages.next()).value?.seq, 7);
  }));

test('a message is sent again until it is in the log and runs once', () =>
  withGateway(async ({ gateway, client }) => {
    // No entries are sent before the third connection.
    gateway.mangle = (frame, n) => (n < 2 && typeof frame !== 'string' ? [] : [frame]);
    const kernel = client({ resume: 'start' });
    const execution = kernel.execute('once');
    for (const n of [1, 2]) {
      while (gateway.arrivals < n) await new Promise((resolve) => setTimeout(resolve, 1));
      gateway.disconnect();
    }
    await execution.reply;
    assert.ok(gateway.arrivals >= 2);
    assert.equal(gateway.accepted.size, 1);
  }));

test('nothing is sent before the hello', () =>
  withGateway(async ({ gateway, client }) => {
    gateway.script = (socket, n, resume) => {
      socket.once('message', () => assert.fail('sent before the hello'));
      setTimeout(() => {
        socket.removeAllListeners('message');
        gateway.serve(socket, n, resume);
      }, 50);
      return true;
    };
    assert.equal(streamText(await collect(client().execute('x'))), 'x');
  }));

test('control messages with buffers are logged', () =>
  withGateway(async ({ gateway, client }) => {
    gateway.kernel = () => {};
    const kernel = client();
    const { msgId, logged } = kernel.send('control', 'debug_request', {}, { buffers: [new Uint8Array([1])] });
    assert.equal(await logged, `${EPOCH}:1`);
    assert.equal(gateway.log[0]?.header.msg_id, msgId);
    assert.deepEqual(gateway.log[0]?.buffers, [Buffer.from([1])]);
  }));

test('input requests can be answered', () =>
  withGateway(async ({ gateway, client }) => {
    /** @type {any} */
    let request;
    gateway.kernel = (message) => {
      if (message.channel === 'shell') {
        request = message;
        assert.equal(message.content.allow_stdin, true);
        gateway.publish('input_request', { prompt: '?' }, message.header, { channel: 'stdin' });
      } else {
        assert.equal(message.parent_header.msg_type, 'input_request');
        request.content.code = message.content.value;
        gateway.reply(request);
      }
    };
    const execution = client().execute('input()', { allowStdin: true });
    assert.throws(() => execution.input('too early'));
    const entries = [];
    for await (const entry of execution) {
      entries.push(entry);
      if (entry.header.msg_type === 'input_request') execution.input('answer');
    }
    assert.equal(streamText(entries), 'answer');
  }));

for (const [msgType, content] of /** @type {const} */ ([
  ['status', { execution_state: 'restarting', reason: 'killed' }],
  ['status', { execution_state: 'dead' }],
  ['kernelmux_lifecycle', { event: 'restarting' }],
])) {
  test(`executions fail at ${msgType} ${JSON.stringify(content)}`, () =>
    withGateway(async ({ gateway, client }) => {
      gateway.kernel = () => {};
      const kernel = client();
      const execution = kernel.execute('exit()');
      await execution.logged;
      gateway.publish('kernelmux_lifecycle', { event: 'started' });
      gateway.publish(msgType, content);
      await assert.rejects(collect(execution), failsWith('kernel-restarted'));
      await assert.rejects(execution.reply, failsWith('kernel-restarted'));
      gateway.kernel = (request) => gateway.reply(request);
      await kernel.execute('1').reply;
    }));
}

test('executions fail at the end of the kernel and at close()', () =>
  withGateway(async ({ gateway, client }) => {
    gateway.kernel = () => {};
    const closed = client();
    const one = closed.execute('1');
    await one.logged;
    const reading = collect(closed.entries());
    closed.close();
    assert.deepEqual(await reading, []);
    await assert.rejects(collect(one), failsWith('closed'));
    await assert.rejects(closed.send('shell', 'x_request').logged, failsWith('closed'));
    assert.deepEqual(await collect(closed.entries()), []);

    const two = client().execute('2');
    await two.logged;
    gateway.end();
    await assert.rejects(two.reply, failsWith('kernel-ended'));
  }));

test('an abort signal closes the client, before and during a connection', () =>
  withGateway(async ({ gateway, client }) => {
    const before = client({ signal: AbortSignal.abort() });
    assert.equal(before.state, 'closed');
    assert.deepEqual(await collect(before.entries()), []);
    assert.equal(gateway.connections, 0);
    const abort = new AbortController();
    const during = client({ signal: abort.signal });
    const reading = collect(during.entries());
    await event(during, 'hello');
    abort.abort();
    assert.deepEqual(await reading, []);
  }));

test('an abort signal closes a client that reads entries again', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 3);
    const abort = new AbortController();
    const kernel = client({ resume: 'start', signal: abort.signal });
    await collect(kernel.entries(), () => true);
    const ended = event(kernel, 'state', ({ state }) => state === 'ended');
    gateway.end();
    await ended;
    gateway.ended = false;
    const reading = collect(kernel.entries());
    await event(kernel, 'hello');
    abort.abort();
    await reading;
    assert.equal(kernel.state, 'closed');
  }));

test('close() ends a pause and a handshake', () =>
  withGateway(async ({ gateway, client }) => {
    for (const refuse of [() => 503, () => undefined]) {
      gateway.refuse = refuse;
      gateway.script = () => true;
      const kernel = client({ pauseMs: 600_000, maxPauseMs: 600_000 });
      const there = event(kernel, 'state', ({ state }) => state === (refuse() ? 'waiting' : 'connecting'));
      const reading = collect(kernel.entries());
      await there;
      kernel.close();
      assert.deepEqual(await reading, []);
    }
  }));

test('an unread execution does not block the others', () =>
  withGateway(async ({ gateway, client }) => {
    gateway.kernel = (request) => {
      for (let i = 0; i < 20; i++) gateway.publish('stream', { text: 'x'.repeat(10_000) }, request.header);
      gateway.reply(request);
    };
    const kernel = client({ maxWaitingBytes: 50_000 });
    const unread = kernel.execute('unread');
    await unread.reply;
    const read = kernel.execute('read');
    const text = [];
    for await (const message of read) {
      text.push(message);
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.equal(streamText(text).length, 200_004);
    await assert.rejects(collect(unread), failsWith('unread'));
    // An execution whose reader leaves early does not block them either.
    await collect(kernel.execute('left'), () => true);
    await kernel.execute('last').reply;
  }));

test('unsent messages are bounded', () =>
  withGateway(async ({ gateway, client }) => {
    gateway.refuse = () => 503;
    const kernel = client({ maxWaitingBytes: 10_000 });
    kernel.execute('x'.repeat(9_000)).reply.catch(() => {});
    assert.throws(() => kernel.execute('y'.repeat(9_000)), RangeError);
    kernel.send('shell', 'kernel_info_request');
  }));

test("a close with 4001 is retried if the client's own late handshake caused it", () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 1);
    // Connection 0 times out without a hello. The gateway processes it after the next connection and closes that one.
    let closing = true;
    gateway.script = (socket, n, resume) => {
      if (n > 0 && closing) {
        gateway.serve(socket, n, resume);
        socket.close(4001);
      }
      return n === 0 || closing;
    };
    const kernel = client({ resume: 'start', helloMs: 250 });
    const reading = collect(kernel.entries());
    await event(kernel, 'state', ({ reason }) => reason.includes('4001'));
    closing = false;
    await event(kernel, 'hello');
    gateway.end();
    assertSeqs(await reading, 1, 1);
  }));

test('a close with 4001 is retried if a handshake that a new reader abandoned caused it', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 3);
    let late = true;
    gateway.script = (socket, n, resume) => {
      if (n === 2 && late) {
        late = false;
        gateway.serve(socket, n, resume);
        socket.close(4001);
        return true;
      }
      return n === 1;
    };
    const kernel = client({ resume: 'start' });
    await collect(kernel.entries(), () => true);
    const connecting = event(kernel, 'state', ({ state }) => state === 'connecting');
    gateway.disconnect();
    await connecting;
    while (gateway.connections < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    assertSeqs(await collect(kernel.entries(), ({ seq }) => seq === 3), 2, 3);
    gateway.end();
    assert.equal((await event(kernel, 'state', ({ state }) => ['ended', 'failed'].includes(state))).state, 'ended');
  }));

test('undefined options take their defaults', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 1);
    gateway.refuse = (n) => (n < 2 ? 503 : undefined);
    const none = undefined;
    const kernel = client({ resume: 'start', helloMs: none, silenceMs: none, pauseMs: none, maxPauseMs: none });
    const began = Date.now();
    await collect(kernel.entries(), () => true);
    // Pauses of 100 and 200 ms, of which jitter leaves at least half.
    assert.ok(Date.now() - began >= 148, `${Date.now() - began} ms`);
  }));

test('pauses grow until an entry is received after the hello', () =>
  withGateway(async ({ gateway, client }) => {
    fill(gateway, 1);
    gateway.mangle = (frame, n) => (n < 5 && typeof frame !== 'string' ? [Buffer.from('poison')] : [frame]);
    const kernel = client({ resume: 'start', pauseMs: 16, maxPauseMs: 10_000 });
    const began = Date.now();
    await collect(kernel.entries(), () => true);
    // Pauses of 16, 32, 64, 128 and 256 ms, of which jitter leaves at least half.
    assert.ok(Date.now() - began >= 248, `${Date.now() - began} ms`);
  }));

test("a listener's error does not affect the connection", () =>
  withGateway(async ({ gateway, client }) => {
    /** @type {unknown[]} */
    const errors = [];
    const listeners = process.rawListeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    process.on('uncaughtException', (error) => errors.push(error.message));
    try {
      const kernel = client({ resume: 'start' });
      kernel.on('hello', () => {
        throw new Error('of the listener');
      });
      fill(gateway, 1);
      gateway.end();
      assertSeqs(await collect(kernel.entries()), 1, 1);
      assert.equal(gateway.connections, 1);
      assert.deepEqual(errors, ['of the listener']);
    } finally {
      process.removeAllListeners('uncaughtException');
      for (const listener of listeners) process.on('uncaughtException', /** @type {any} */ (listener));
    }
  }));
