// Connections that break at every byte in either direction, and at random bytes together with other faults. SEED=number
// repeats a random run.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IMPLEMENTATIONS, collect, seeded, streamText, withGateway } from './helpers.js';
import { encodeEntry } from './mock-gateway.js';

/** @typedef {import('kernelmux-client').Entry} Entry */

/**
 * Runs code over connections that are cut according to `plan`, and checks that everything arrives once.
 * @param {any} WebSocket
 * @param {import('./cutting-proxy.js').CuttingProxy['plan']} plan
 */
async function runThrough(WebSocket, plan) {
  const bytes = { up: 0, down: 0 };
  await withGateway(async ({ gateway, proxy, client }) => {
    proxy.plan = plan;
    gateway.publish('stream', { text: 'before ' });
    gateway.append(null);
    gateway.kernel = (request) => {
      gateway.reply(request);
      gateway.end();
    };
    const kernel = client({ url: proxy.url, resume: 'start' });
    /** @type {unknown[]} */
    const gaps = [];
    kernel.on('gap', (gap) => gaps.push(gap));
    const [entries, messages] = await Promise.all([collect(kernel.entries()), collect(kernel.execute('x'))]);
    assert.deepEqual(
      entries.map((entry) => entry.seq),
      [1, 3, 4, 5, 6, 7],
    );
    assert.deepEqual(gaps, [{ first: 2, last: 2 }]);
    assert.equal(gateway.accepted.size, 1);
    assert.deepEqual(
      messages.map((message) => message.seq),
      [4, 5, 6, 7],
    );
    bytes.up = proxy.up;
    bytes.down = proxy.down;
  }, WebSocket);
  return bytes;
}

for (const [name, WebSocket] of IMPLEMENTATIONS) {
  for (const way of /** @type {const} */ (['down', 'up'])) {
    test(`${name}: a cut of the first connection at any byte loses nothing, ${way}`, { timeout: 120_000 }, async () => {
      const total = (await runThrough(WebSocket, () => ({})))[way];
      assert.ok(total > 500);
      const positions = Array.from({ length: total + 1 }, (_, i) => i);
      // In parallel, because most of the time is spent waiting.
      const worker = async () => {
        for (let at = positions.shift(); at !== undefined; at = positions.shift()) {
          const cut = at;
          await runThrough(WebSocket, (n) => (n === 0 ? { [way]: cut } : {})).catch((error) => {
            error.message = `cut after ${cut} bytes: ${error.message}`;
            throw error;
          });
        }
      };
      await Promise.all([worker(), worker(), worker(), worker()]);
    });
  }

  test(`${name}: nothing is lost if every connection is cut, each a little later`, { timeout: 60_000 }, async () => {
    await runThrough(WebSocket, (n) => ({ down: n * 7, up: n * 5 + 200 }));
  });

  test(`${name}: nothing is lost under random faults`, { timeout: 120_000 }, async () => {
    const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
    console.log(`SEED=${seed}`);
    try {
      for (let round = 0; round < 20; round++) await chaos(WebSocket, seeded(seed + round * 7919));
    } catch (/** @type {any} */ error) {
      error.message = `with SEED=${seed}: ${error.message}`;
      throw error;
    }
  });
}

/**
 * A kernel that prints, a client that runs code, and random faults of the network and the gateway.
 * @param {any} WebSocket
 * @param {() => number} random
 */
async function chaos(WebSocket, random) {
  /** @param {number} n */
  const below = (n) => Math.floor(random() * n);
  const chance = (/** @type {number} */ p) => random() < p;
  await withGateway(async ({ gateway, proxy, client }) => {
    let calm = false;
    proxy.plan = () => (calm || chance(0.3) ? {} : { down: below(4000), up: 200 + below(2000) });
    gateway.refuse = (n) => (!calm && n >= 0 && chance(0.1) ? 503 : undefined);
    gateway.mangle = (frame) => {
      if (calm || chance(0.97)) return [frame];
      const seq = typeof frame === 'string' ? 0 : Number(frame.readBigUInt64LE(0));
      const others = [[], [frame, frame], ['{"type":"alive"}', frame], ['{"type":"x"}', frame], [Buffer.from('bad')]];
      return [...others, [encodeEntry(seq + 1, {})], ['{'], [frame.slice(0, frame.length - 1)]][below(8)];
    };
    gateway.script = (socket) => {
      if (!calm && chance(0.1)) setTimeout(() => socket.close([1001, 1011, 1000, 4999][below(4)]), below(20));
      return !calm && chance(0.05);
    };
    gateway.kernel = (request) => {
      if (chance(0.2)) gateway.append(null);
      gateway.reply(request);
    };

    const options = { url: proxy.url, helloMs: 100, silenceMs: 300, maxWaitingBytes: 3000 };
    let kernel = client({ ...options, resume: 'start' });
    /** The received log: each entry's msg_id, or null in a gap. @type {(string | null)[]} */
    const seen = [];
    const watch = () =>
      kernel.on('gap', ({ first, last }) => {
        assert.equal(seen.length + 1, first);
        for (let seq = first; seq <= last; seq++) seen.push(null);
      });
    watch();
    const runs = Array.from({ length: 30 }, (_, i) => `run ${i};`);
    /** @type {Promise<unknown>[]} */
    const running = [];
    let finished = 0;
    const run = async (/** @type {string} */ code) => {
      try {
        assert.equal(streamText(await collect(kernel.execute(code))), code);
      } catch (/** @type {any} */ error) {
        // A gap may contain the end of an execution, which then fails.
        if (error.code === 'gap' || error.code === 'closed') return undefined;
        if (error instanceof RangeError) runs.push(code);
        else return error;
      } finally {
        finished += 1;
      }
    };
    const talking = setInterval(() => gateway.publish('stream', { text: 'x'.repeat(below(500)) }), 2);
    const deadline = setTimeout(() => (calm = true), 500);
    try {
      reading: for (;;) {
        for await (const entry of kernel.entries()) {
          assert.equal(entry.seq, seen.length + 1);
          seen.push(entry.header.msg_id);
          if (runs.length > 0 && chance(0.2)) running.push(run(/** @type {string} */ (runs.pop())));
          if (chance(0.05)) await new Promise((resolve) => setTimeout(resolve, below(10)));
          if (calm && runs.length === 0 && finished === running.length) {
            clearInterval(talking);
            gateway.end();
          }
          if (chance(0.01)) continue reading; // leaves the loop and reads again
          if (!calm && chance(0.01)) {
            // Another client continues at the cursor.
            const { cursor } = kernel;
            kernel.close();
            kernel = client({ ...options, resume: cursor });
            watch();
            continue reading;
          }
        }
        break;
      }
    } finally {
      clearInterval(talking);
      clearTimeout(deadline);
    }
    for (const error of await Promise.all(running)) assert.ifError(error);
    assert.deepEqual(
      seen,
      gateway.log.map((message) => message?.header.msg_id ?? null),
    );
  }, WebSocket);
}
