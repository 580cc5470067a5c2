// SessionManager, which JupyterLab uses for the kernels of notebooks.

import { KernelManager, SessionManager } from '@jupyterlab/services';
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RealGateway, skip } from '../../../clients/js/test/real-gateway.js';
import { run, serverSettings } from './helpers.js';

const options = { skip, timeout: 120_000 };
const gateway = new RealGateway();
let kernelManager;
let sessions;

before(async () => {
  if (skip) return;
  await gateway.start();
  const settings = serverSettings(gateway);
  kernelManager = new KernelManager({ serverSettings: settings });
  sessions = new SessionManager({ serverSettings: settings, kernelManager });
  await sessions.ready;
});

after(async () => {
  if (skip) return;
  sessions?.dispose();
  kernelManager?.dispose();
  await gateway.remove();
});

test('a session can be created, changed and deleted', options, async () => {
  const kernel = { name: 'python3' };
  const session = await sessions.startNew({ path: 'a.ipynb', name: 'a', type: 'notebook', kernel });
  assert.equal((await run(session.kernel, '6 * 7')).text, '42');
  await sessions.refreshRunning();
  assert.deepEqual([...sessions.running()].map(({ id }) => id), [session.id]);

  await session.setPath('b.ipynb');
  await session.setName('b');
  await session.setType('console');
  const { path, name, type } = await gateway.rest('GET', `/api/sessions/${session.id}`);
  assert.deepEqual([path, name, type], ['b.ipynb', 'b', 'console']);

  const first = session.kernel.id;
  const second = await session.changeKernel({ name: 'python3' });
  assert.notEqual(second.id, first);
  assert.equal((await run(session.kernel, '6 * 7')).text, '42');
  // The session's first kernel has ended.
  assert.deepEqual((await gateway.rest('GET', '/api/kernels')).map(({ id }) => id), [second.id]);

  await session.shutdown();
  assert.equal(session.isDisposed, true);
  assert.deepEqual(await gateway.rest('GET', '/api/sessions'), []);
  assert.deepEqual(await gateway.rest('GET', '/api/kernels'), []);
});

test('a session can use a running kernel', options, async () => {
  const { id } = await gateway.rest('POST', '/api/kernels', { name: 'python3' });
  const session = await sessions.startNew({ path: 'c', name: '', type: 'console', kernel: { id } });
  assert.equal(session.kernel.id, id);
  assert.equal((await run(session.kernel, '6 * 7')).text, '42');
  await session.shutdown();
});

test('a session with an unknown kernel id starts a kernel', options, async () => {
  const id = 'b2a4d5c6-0000-4000-8000-000000000000';
  const session = await sessions.startNew({ path: 'd.ipynb', name: 'd', type: 'notebook', kernel: { id } });
  assert.equal(session.kernel.id, id);
  assert.equal((await run(session.kernel, '6 * 7')).text, '42');
  await session.shutdown();
});

test('the name python starts python3', options, async () => {
  const session = await sessions.startNew({ path: 'e.ipynb', name: 'e', type: 'notebook', kernel: { name: 'python' } });
  assert.equal((await run(session.kernel, '6 * 7')).text, '42');
  await session.shutdown();
});

test('an unknown kernelspec is an error', options, async () => {
  const starting = sessions.startNew({ path: 'f.ipynb', name: 'f', type: 'notebook', kernel: { name: 'nothing' } });
  await assert.rejects(starting, ({ response, message }) => response.status === 501 && message.includes('nothing'));
});
