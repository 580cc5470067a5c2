// KernelManager, KernelSpecManager and their connections to kernels.

import { KernelManager, KernelSpecManager } from '@jupyterlab/services';
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { CuttingProxy } from '../../../clients/js/test/cutting-proxy.js';
import { RealGateway, skip } from '../../../clients/js/test/real-gateway.js';
import { run, serverSettings, until } from './helpers.js';

const options = { skip, timeout: 120_000 };
const gateway = new RealGateway();
let proxy;
let kernels;
// Shared by the tests. Each relies only on state that it sets itself.
let kernel;

before(async () => {
  if (skip) return;
  await gateway.start();
  proxy = await new CuttingProxy(gateway.port).start();
  kernels = new KernelManager({ serverSettings: serverSettings(gateway, proxy.url) });
  kernel = await kernels.startNew({ name: 'python3' });
});

after(async () => {
  if (skip) return;
  kernels?.dispose();
  await gateway.remove();
  await proxy?.stop();
});

test('kernelspecs are listed', options, async () => {
  const specs = new KernelSpecManager({ serverSettings: serverSettings(gateway) });
  await specs.ready;
  assert.equal(specs.specs.default, 'python3');
  const python = specs.specs.kernelspecs.python3;
  assert.equal(python.language, 'python');
  assert.match(python.resources['logo-64x64'], /\/kernelspecs\/python3\/logo-64x64\.png$/);
  specs.dispose();
});

test('running kernels are listed', options, async () => {
  await kernels.refreshRunning();
  assert.deepEqual([...kernels.running()].map(({ id }) => id), [kernel.id]);
});

test('outputs and errors arrive', options, async () => {
  assert.equal((await kernel.info).language_info.name, 'python');
  assert.equal(kernel._ws.protocol, 'v1.kernel.websocket.jupyter.org');
  const { text, reply } = await run(kernel, 'print("shown")\ndisplay("rich")\n6 * 7');
  assert.equal(text, "shown\n'rich'42");
  assert.equal(reply.status, 'ok');
  const failed = await run(kernel, '1 / 0');
  assert.equal(failed.text, 'ZeroDivisionError');
  assert.equal(failed.reply.ename, 'ZeroDivisionError');
});

test('inspection and history work', options, async () => {
  const inspected = await kernel.requestInspect({ code: 'zip', cursor_pos: 3, detail_level: 0 });
  assert.equal(inspected.content.found, true);
  await run(kernel, 'remembered = 1');
  const tail = { hist_access_type: 'tail', n: 1, output: false, raw: true };
  assert.equal((await kernel.requestHistory(tail)).content.history[0][2], 'remembered = 1');
});

test('input can be answered', options, async () => {
  const onStdin = ({ header, content }) => {
    assert.equal(content.prompt, 'Who? ');
    kernel.sendInputReply({ status: 'ok', value: 'Ada' }, header);
  };
  assert.equal((await run(kernel, 'print("Hello", input("Who? "))', { onStdin })).text, 'Hello Ada\n');
});

test('comms with buffers open from both sides', options, async () => {
  const code = `
from comm import create_comm, get_comm_manager
def opened(comm, message):
    comm.on_msg(lambda m: comm.send(m["content"]["data"], buffers=[bytes(b)[::-1] for b in m["buffers"]]))
get_comm_manager().register_target("echo", opened)`;
  await run(kernel, code);
  const comm = kernel.createComm('echo');
  const echoed = new Promise((resolve) => (comm.onMsg = resolve));
  await comm.open().done;
  await comm.send({ n: 1 }, {}, [new Uint8Array([1, 2, 255])]).done;
  const { content, buffers } = await echoed;
  assert.deepEqual(content.data, { n: 1 });
  const [{ buffer, byteOffset, byteLength }] = buffers;
  assert.deepEqual([...new Uint8Array(buffer, byteOffset, byteLength)], [255, 2, 1]);
  await comm.close().done;

  const opened = new Promise((resolve) => kernel.registerCommTarget('here', (_, message) => resolve(message)));
  await run(kernel, 'there = create_comm(target_name="here", data={"n": 2})');
  assert.deepEqual((await opened).content.data, { n: 2 });
});

test('a cell can be interrupted', options, async () => {
  const onText = (text) => {
    if (text === 'on\n') kernel.interrupt();
  };
  const { reply } = await run(kernel, 'print("on", flush=True)\nwhile True: pass', { onText });
  assert.equal(reply.ename, 'KeyboardInterrupt');
  assert.equal((await run(kernel, '6 * 7')).text, '42');
});

test('a kernel can be restarted', options, async () => {
  await run(kernel, 'kept = 1');
  await kernel.restart();
  assert.equal((await run(kernel, '"kept" in globals()')).text, 'False');
});

test('a kernel that dies during a cell is restarted', options, async () => {
  const states = [];
  const note = (_, status) => states.push(status);
  kernel.statusChanged.connect(note);
  const onText = (text) => {
    if (text.endsWith('\n')) process.kill(Number(text), 'SIGKILL');
  };
  const dying = run(kernel, 'import os; print(os.getpid(), flush=True)\nwhile True: pass', { onText });
  // The client either receives the reply, or cancels the request when it sees the restart.
  const end = await dying.then(({ reply }) => reply.status, () => 'canceled');
  assert.notEqual(end, 'ok');
  await until(kernel.statusChanged, () => states.includes('autorestarting'));
  assert.equal((await run(kernel, 'print("after")')).text, 'after\n');
  kernel.statusChanged.disconnect(note);
  await until(kernel.statusChanged, () => kernel.status === 'idle');
});

test('a cell is complete after its connection was cut', options, async (t) => {
  const gate = `${gateway.home}/${t.name.replaceAll(' ', '-')}`;
  const code = `
import pathlib, time
print("first", flush=True)
while not pathlib.Path(${JSON.stringify(gate)}).exists(): time.sleep(0.02)
for i in range(5000): print(i, flush=True)`;
  let cut;
  const onText = (text) => {
    if (text !== 'first\n' || cut) return;
    cut = until(kernel.connectionStatusChanged, () => kernel.connectionStatus === 'connecting');
    proxy.cut();
  };
  const running = run(kernel, code, { onText });
  await until(kernel.iopubMessage, () => cut);
  await cut;
  await writeFile(gate, '');
  const { text, reply } = await running;
  assert.equal(text, `first\n${Array.from({ length: 5000 }, (_, i) => `${i}\n`).join('')}`);
  assert.equal(reply.status, 'ok');
  assert.equal(kernel.connectionStatus, 'connected');
});

test('the name python starts python3', options, async () => {
  const other = await kernels.startNew({ name: 'python' });
  assert.equal(other.name, 'python3');
  assert.equal((await run(other, '6 * 7')).text, '42');
  await other.shutdown();
});

test('a shutdown reaches all connections', options, async () => {
  const other = await kernels.startNew({ name: 'python3' });
  const second = kernels.connectTo({ model: other.model });
  await Promise.all([other.info, second.info]);
  await other.shutdown();
  await until(second.statusChanged, () => second.isDisposed || second.status === 'dead');
  assert.ok(!(await gateway.rest('GET', '/api/kernels')).some(({ id }) => id === other.id));
});
