import assert from 'node:assert/strict';
import { KernelConnection } from 'kernelmux-client';
import { WebSocket as Ws } from 'ws';
import { CuttingProxy } from './cutting-proxy.js';
import { MockGateway, TOKEN } from './mock-gateway.js';

/** @typedef {import('kernelmux-client').Entry} Entry */

/**
 * The WebSocket implementations: that of the package ws, and that of Node if it has one.
 * @type {[string, import('kernelmux-client').KernelConnectionOptions['WebSocket']][]}
 */
export const IMPLEMENTATIONS = [['ws', Ws]];
if (globalThis.WebSocket) IMPLEMENTATIONS.push(['built-in', globalThis.WebSocket]);

/**
 * Runs `test` with a gateway, and stops everything it created.
 * @param {(made: {gateway: MockGateway, proxy: CuttingProxy, client: (options?: any) => KernelConnection}) =>
 *   Promise<void>} test
 * @param {any} [WebSocket]
 */
export async function withGateway(test, WebSocket = Ws) {
  const gateway = await new MockGateway().start();
  const proxy = await new CuttingProxy(gateway.port).start();
  /** @type {KernelConnection[]} */
  const clients = [];
  try {
    await test({
      gateway,
      proxy,
      client: (options = {}) => {
        const client = new KernelConnection({
          url: gateway.url,
          kernelId: 'k',
          token: TOKEN,
          WebSocket,
          pauseMs: 1,
          maxPauseMs: 20,
          ...options,
        });
        clients.push(client);
        return client;
      },
    });
  } finally {
    for (const client of clients) client.close();
    await proxy.stop();
    await gateway.stop();
  }
}

/**
 * The items of `iterable` up to and including the first for which `last` is true, or to its end.
 * @template T
 * @param {AsyncIterable<T>} iterable
 * @param {(item: T) => boolean} [last]
 */
export async function collect(iterable, last = () => false) {
  const items = [];
  for await (const item of iterable) {
    items.push(item);
    if (last(item)) break;
  }
  return items;
}

/**
 * Resolves at the first event for which `wanted` is true.
 * @template {keyof import('kernelmux-client').KernelEvents} K
 * @param {KernelConnection} kernel
 * @param {K} name
 * @param {(event: import('kernelmux-client').KernelEvents[K]) => boolean} [wanted]
 * @returns {Promise<import('kernelmux-client').KernelEvents[K]>}
 */
export function event(kernel, name, wanted = () => true) {
  return new Promise((resolve) => {
    const off = kernel.on(name, (event) => {
      if (!wanted(event)) return;
      off();
      resolve(event);
    });
  });
}

/** @param {Entry[]} entries @param {number} first @param {number} last */
export function assertSeqs(entries, first, last) {
  assert.deepEqual(
    entries.map((entry) => entry.seq),
    Array.from({ length: last - first + 1 }, (_, i) => first + i),
  );
}

/** @param {Iterable<Entry>} entries */
export function streamText(entries) {
  return [...entries]
    .filter((entry) => entry.header.msg_type === 'stream')
    .map((entry) => entry.content.text)
    .join('');
}

/**
 * A random number generator with a seed (mulberry32).
 * @param {number} seed
 */
export function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
