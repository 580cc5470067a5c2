// Runs JupyterLab's own code on messages: a kernel connection over a fake socket, with its validation and its routing
// by parent and by display_id, an execution's future, and an output area in jsdom.
//
// Reads from stdin an array of cases, each an array of {channel, msg_type, content, parent?}; writes to stdout an array
// of {outputs, clear_pending, input_pending}. `parent` is `other` for output of another cell's execution. An
// `input_reply` is typed into JupyterLab's own input field, because JupyterLab does not receive those of other clients.
// A message may have `raw`, its content as verbatim JSON, in place of `content`.
//
// Run by generate.py, bundled (JupyterLab's packages import styles and icons).

import { JSDOM } from 'jsdom';

const dom = new JSDOM('<!doctype html><body></body>', { pretendToBeVisual: true, url: 'http://localhost/' });
for (const name of Object.getOwnPropertyNames(dom.window)) {
  if (!(name in globalThis)) {
    Object.defineProperty(globalThis, name, { configurable: true, get: () => dom.window[name], set: () => {} });
  }
}
globalThis.window = dom.window;
globalThis.document = dom.window.document;
globalThis.DragEvent ??= class DragEvent extends dom.window.Event {};
dom.window.DragEvent ??= globalThis.DragEvent;
globalThis.ResizeObserver ??= class { observe() {} unobserve() {} disconnect() {} };
globalThis.IntersectionObserver ??= globalThis.ResizeObserver;
dom.window.matchMedia = () => ({ matches: false, addListener() {}, addEventListener() {}, removeListener() {} });
dom.window.CSSStyleSheet ??= class {};

// Only the results go to stdout.
console.log = console.debug = console.info = () => {};
console.warn = console.error = () => {};

const { OutputArea, OutputAreaModel } = await import('@jupyterlab/outputarea');
const { RenderMimeRegistry, standardRendererFactories } = await import('@jupyterlab/rendermime');
const { KernelConnection } = await import('@jupyterlab/services/lib/kernel/default.js');
const { ServerConnection } = await import('@jupyterlab/services');

class Socket {
  static CONNECTING = 0;
  static OPEN = 1;
  static last;
  protocol = '';
  readyState = 1;
  sent = [];
  constructor() {
    Socket.last = this;
    setTimeout(() => this.onopen?.({}));
  }
  send(data) {
    this.sent.push(JSON.parse(data));
  }
  close() {}
}

const settings = ServerConnection.makeSettings({
  baseUrl: 'http://localhost/',
  wsUrl: 'ws://localhost/',
  WebSocket: Socket,
  fetch: () => new Promise(() => {})
});

const tick = () => new Promise(resolve => setImmediate(resolve));

async function runPendingTasks() {
  for (let i = 0; i < 12; i++) {
    await tick();
  }
}

let count = 0;

async function run(messages) {
  const kernel = new KernelConnection({ model: { id: `k${count++}`, name: 'none' }, serverSettings: settings });
  const socket = Socket.last;
  await runPendingTasks();
  const area = () => {
    const rendermime = new RenderMimeRegistry({ initialFactories: standardRendererFactories });
    const area = new OutputArea({ model: new OutputAreaModel({ trusted: true }), rendermime });
    area.future = kernel.requestExecute({ code: '' }, false);
    return area;
  };
  const [ours, other] = [area(), area()];
  let input;
  ours.inputRequested.connect((_, stdin) => {
    document.body.appendChild(stdin.node);
    input = stdin;
  });
  let open = false;
  for (const [index, { channel, msg_type, content, raw, parent }] of messages.entries()) {
    if (msg_type === 'input_reply') {
      if (open) {
        const field = input.node.getElementsByTagName('input')[0];
        field.value = content.value;
        input.handleEvent(new dom.window.KeyboardEvent('keydown', { key: 'Enter' }));
        open = false;
      }
      await runPendingTasks();
      continue;
    }
    const header = {
      msg_id: `m${index}`, msg_type, session: 's', username: 'u', version: '5.4', date: '2026-01-01T00:00:00Z'
    };
    const parent_header = (parent === 'other' ? other : ours).future.msg.header;
    const rest = JSON.stringify({ header, parent_header, metadata: {}, channel, buffers: [] });
    const json = `${rest.slice(0, -1)},"content":${raw ?? JSON.stringify(content)}}`;
    try {
      socket.onmessage({ data: json });
    } catch {
      // JupyterLab rejects invalid messages.
    }
    if (msg_type === 'input_request') {
      open = true;
    }
    await runPendingTasks();
  }
  const model = ours.model;
  return {
    outputs: model.toJSON(),
    clear_pending: model.clearNext,
    input_pending: open
  };
}

let text = '';
for await (const chunk of process.stdin) {
  text += chunk;
}
const results = [];
for (const messages of JSON.parse(text)) {
  results.push(await run(messages));
}
process.stdout.write(
  JSON.stringify(results, (_, value) => (typeof value === 'string' ? value.toWellFormed() : value)),
  () => process.exit(0)
);
