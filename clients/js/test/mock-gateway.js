// A gateway and a kernel for tests to script. Written from docs/src/resume-protocol.md without the client's code, so
// that the two do not share errors.

import { once } from 'node:events';
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

/** @typedef {import('ws').WebSocket} Socket */
/** @typedef {{channel: string, header: any, parent_header: any, metadata: any, content: any, buffers: Buffer[]}} Message */

export const SUBPROTOCOL = 'v1.resume.kernelmux';
export const TOKEN = 'mock-token';

/** @param {bigint | number} value */
function word(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

/** @param {number} seq @param {Partial<Message>} message */
export function encodeEntry(seq, { channel = 'iopub', header, parent_header, metadata, content, buffers = [] }) {
  const json = [header, parent_header, metadata, content].map((part) =>
    Buffer.isBuffer(part) ? part : Buffer.from(JSON.stringify(part ?? {})),
  );
  const parts = [Buffer.from(channel), ...json, ...buffers];
  const offsets = [8 * (parts.length + 2)];
  for (const part of parts) offsets.push(/** @type {number} */ (offsets.at(-1)) + part.length);
  return Buffer.concat([word(seq), word(offsets.length), ...offsets.map(word), ...parts]);
}

/** @param {Buffer} bytes @returns {Message} */
export function decodeMessage(bytes) {
  const count = Number(bytes.readBigUInt64LE(0));
  const offsets = Array.from({ length: count }, (_, i) => Number(bytes.readBigUInt64LE(8 * (i + 1))));
  if (offsets[0] !== 8 * (count + 1) || offsets.at(-1) !== bytes.length) throw new Error('not a message');
  const parts = offsets.slice(1).map((end, i) => bytes.subarray(offsets[i], end));
  const [header, parent_header, metadata, content] = parts.slice(1, 5).map((part) => JSON.parse(part.toString()));
  return { channel: parts[0].toString(), header, parent_header, metadata, content, buffers: parts.slice(5) };
}

let ids = 0;

export class MockGateway {
  epoch = 'a'.repeat(32);
  /** Entries by seq - 1; null is a gap. @type {(Partial<Message> | null)[]} */
  log = [];
  earliest = 1;
  /** Whether the kernel has ended. */
  ended = false;
  /** The `msg_id`s of requests passed to the kernel. @type {Set<string>} */
  accepted = new Set();
  /** The number of received requests, including repeated ones. */
  arrivals = 0;
  connections = 0;
  probes = 0;
  /** Returns a status to refuse a handshake, or a probe (n = -1). @type {(n: number) => number | undefined} */
  refuse = () => undefined;
  /**
   * Handles a connection instead of `serve` if it returns true.
   * @type {(socket: Socket, n: number, resume: string) => boolean}
   */
  script = () => false;
  /** Returns the frames to send instead of one. @type {(frame: Buffer | string, n: number) => (Buffer | string)[]} */
  mangle = (frame) => [frame];
  /** Handles a request as the kernel. @type {(request: Message, gateway: MockGateway) => void} */
  kernel = (request) => {
    if (request.channel === 'shell') this.reply(request);
  };
  /** @type {Set<() => void>} */
  #readers = new Set();
  #server = createServer((request, response) => {
    this.probes += 1;
    response.writeHead(this.refuse(-1) ?? 200).end();
    if (!request.url?.includes('/log?from=head&follow=false')) throw new Error(`probed ${request.url}`);
  });
  #sockets = new WebSocketServer({ noServer: true, handleProtocols: () => this.protocol });
  /** @type {string | false} */
  protocol = SUBPROTOCOL;

  /** @type {Set<import('node:net').Socket>} */
  #connections = new Set();

  async start() {
    this.#server.on('connection', (socket) => {
      this.#connections.add(socket);
      socket.on('close', () => this.#connections.delete(socket));
    });
    this.#server.on('upgrade', (request, socket, head) => {
      const n = this.connections++;
      const url = new URL(request.url ?? '', 'http://mock');
      let status = this.refuse(n);
      if (url.searchParams.get('token') !== TOKEN) status = 401;
      socket.on('error', () => {});
      if (status !== undefined) {
        socket.end(`HTTP/1.1 ${status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
        return;
      }
      this.#sockets.handleUpgrade(request, socket, head, (webSocket) => {
        const resume = url.searchParams.get('resume') ?? 'head';
        webSocket.on('error', () => {});
        if (!this.script(webSocket, n, resume)) this.serve(webSocket, n, resume);
      });
    });
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return this;
  }

  get port() {
    return /** @type {import('node:net').AddressInfo} */ (this.#server.address()).port;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async stop() {
    this.#server.close();
    for (const socket of this.#connections) socket.destroy();
    await once(this.#server, 'close');
  }

  /** Ends every connection. @param {number} [code] */
  disconnect(code) {
    for (const socket of this.#sockets.clients) {
      if (code) socket.close(code);
      else socket.terminate();
    }
  }

  /** @param {Partial<Message> | null} message null for a gap */
  append(message) {
    this.log.push(message);
    for (const wake of this.#readers) wake();
    return this.log.length;
  }

  /** @param {string} msgType @param {any} content @param {any} [parent] @param {Partial<Message>} [more] */
  publish(msgType, content, parent = {}, more = {}) {
    const header = { msg_id: `mock-${ids++}`, msg_type: msgType, session: 'kernel' };
    return this.append({ channel: 'iopub', header, parent_header: parent, metadata: {}, content, ...more });
  }

  /** @param {Message} request */
  reply({ header, content }) {
    this.publish('status', { execution_state: 'busy' }, header);
    if (header.msg_type === 'execute_request') this.publish('stream', { name: 'stdout', text: content.code }, header);
    const type = header.msg_type.replace('_request', '_reply');
    this.publish(type, { status: 'ok' }, header, { channel: 'shell' });
    this.publish('status', { execution_state: 'idle' }, header);
  }

  end() {
    this.ended = true;
    for (const wake of this.#readers) wake();
  }

  /** @param {string} resume */
  hello(resume) {
    const head = this.log.length;
    const start = this.earliest - 1;
    const [epoch, seq] = resume.split(':');
    let from = resume === 'head' ? head : start;
    let reason;
    if (seq !== undefined) {
      if (epoch !== this.epoch) reason = 'epoch';
      else if (Number(seq) > head) reason = 'ahead';
      else if (Number(seq) < start) reason = 'earliest';
      else from = Number(seq);
    }
    return { type: 'hello', epoch: this.epoch, earliest: this.earliest, head, from, recovered: !reason, reason };
  }

  /** @param {Socket} socket @param {number} n @param {string} resume */
  serve(socket, n, resume) {
    const hello = this.hello(resume);
    let seq = hello.from;
    /** @param {Buffer | string} frame */
    const send = (frame) => {
      for (const mangled of this.mangle(frame, n)) socket.send(mangled);
    };
    socket.on('message', (data) => this.#take(/** @type {Buffer} */ (data), socket));
    send(JSON.stringify(hello));
    const { epoch } = this;
    const wake = () => {
      if (socket.readyState !== socket.OPEN || this.epoch !== epoch) return socket.terminate();
      while (seq < this.log.length && socket.readyState === socket.OPEN) {
        const first = seq + 1;
        const message = this.log[seq++];
        if (message) {
          send(encodeEntry(seq, message));
          continue;
        }
        while (seq < this.log.length && this.log[seq] === null) seq++;
        send(JSON.stringify({ type: 'gap', first, last: seq }));
      }
      if (this.ended && seq === this.log.length) {
        send('{"type":"end"}');
        socket.close(1000);
      }
    };
    socket.on('close', () => this.#readers.delete(wake));
    this.#readers.add(wake);
    wake();
  }

  /** @param {Buffer} bytes @param {Socket} socket */
  #take(bytes, socket) {
    this.arrivals += 1;
    let message;
    try {
      message = decodeMessage(bytes);
    } catch {
      socket.close(1002);
      return;
    }
    const id = message.header.msg_id;
    if (this.accepted.has(id)) return;
    this.accepted.add(id);
    this.append(message);
    this.kernel(message, this);
  }
}
