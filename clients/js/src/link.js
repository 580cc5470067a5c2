// One WebSocket connection, from its handshake to its end. It detects dead connections and does not reconnect.

import { ProtocolError } from './errors.js';

export const SUBPROTOCOL = 'v1.resume.kernelmux';

/**
 * The part of the browsers' WebSocket interface that this package uses.
 * @typedef {object} WebSocketLike
 * @property {string} binaryType
 * @property {string} protocol
 * @property {(data: any) => void} send
 * @property {(code?: number, reason?: string) => void} close
 * @property {(type: any, listener: any) => void} addEventListener
 */

/** @typedef {new (url: string, protocols?: any) => WebSocketLike} WebSocketClass */

/**
 * How a connection ended.
 * @typedef {object} Ended
 * @property {boolean} opened Whether the handshake succeeded.
 * @property {boolean} receivedFrames Whether a frame arrived after the hello.
 * @property {boolean} abandoned Whether this side ended it. The gateway may not know yet.
 * @property {number} code The close code; 1006 if there is none.
 * @property {string} reason
 */

/**
 * @typedef {object} LinkOptions
 * @property {WebSocketClass} WebSocket
 * @property {string} url
 * @property {number} helloMs How long to wait for the first frame.
 * @property {number} silenceMs How long to wait for each further frame.
 * @property {(notice: Record<string, any>) => void} onNotice Receives text frames, of which the first is the hello. An
 *   exception ends the connection.
 * @property {(bytes: ArrayBuffer) => void} onEntry Receives binary frames. An exception ends the connection.
 */

/** The code of a connection whose handshake did not accept the subprotocol. */
export const NO_SUBPROTOCOL = 1010;
const NO_CODE = 1006;

export class Link {
  /** @type {(ended: Ended) => void} */
  #end = () => {};
  #opened = false;
  #frames = 0;
  #over = false;
  #socket;
  #watch;

  /** @param {LinkOptions} options */
  constructor({ WebSocket, url, helloMs, silenceMs, onNotice, onEntry }) {
    /** Resolves when the connection is over; no callback is called afterwards. */
    this.over = /** @type {Promise<Ended>} */ (new Promise((resolve) => (this.#end = resolve)));
    this.#socket = new WebSocket(url, [SUBPROTOCOL]);
    this.#socket.binaryType = 'arraybuffer';
    // Polls the wall clock, because timers may not advance while the machine sleeps.
    let lastFrameAt = Date.now();
    this.#watch = setInterval(
      () => {
        const timeout = this.#frames === 0 ? helloMs : silenceMs;
        if (Date.now() - lastFrameAt > timeout) this.abandon(`received nothing for ${timeout / 1000} s`);
      },
      Math.min(helloMs, silenceMs, 30_000) / 3,
    );

    this.#socket.addEventListener('open', () => {
      this.#opened = true;
      if (this.#socket.protocol !== SUBPROTOCOL) this.abandon('the subprotocol was not accepted', NO_SUBPROTOCOL);
    });
    this.#socket.addEventListener('message', (/** @type {{data: unknown}} */ { data }) => {
      if (this.#over) return;
      lastFrameAt = Date.now();
      try {
        if (typeof data === 'string') this.#text(data, onNotice);
        else if (this.#frames === 0) throw new ProtocolError('the first frame is not a hello');
        else onEntry(/** @type {ArrayBuffer} */ (data));
        this.#frames += 1;
      } catch (error) {
        this.abandon(error instanceof Error ? error.message : String(error));
      }
    });
    // Usually a close event with more details follows. Node's WebSocket sends none when a handshake is refused.
    this.#socket.addEventListener('error', () => setTimeout(() => this.abandon('the connection broke')));
    this.#socket.addEventListener('close', (/** @type {{code?: number, reason?: string}} */ { code, reason }) =>
      this.#finish({ code: code || NO_CODE, reason: reason || '', abandoned: false }),
    );
  }

  /** @param {ArrayBuffer} bytes */
  send(bytes) {
    if (!this.#over) this.#socket.send(bytes);
  }

  /** Ends a working connection. Sent messages still arrive. */
  close() {
    if (this.#over) return;
    this.#finish({ code: NO_CODE, reason: '', abandoned: true });
    this.#socket.close();
  }

  /**
   * Ends a dead or invalid connection.
   * @param {string} reason
   * @param {number} [code] the code reported by `over`
   */
  abandon(reason, code = NO_CODE) {
    if (this.#over) return;
    this.#finish({ code, reason, abandoned: true });
    // In the `ws` package, close() waits for the other side. Browsers do that in the background.
    const socket = /** @type {WebSocketLike & {terminate?: () => void}} */ (this.#socket);
    if (socket.terminate) socket.terminate();
    else socket.close();
  }

  /**
   * @param {string} data
   * @param {LinkOptions['onNotice']} onNotice
   */
  #text(data, onNotice) {
    const notice = JSON.parse(data);
    if ((this.#frames === 0) !== (notice?.type === 'hello')) {
      throw new ProtocolError('the first frame must be a hello, and no other frame may be one');
    }
    if (typeof notice === 'object' && notice !== null) onNotice(notice);
  }

  /** @param {{code: number, reason: string, abandoned: boolean}} how */
  #finish(how) {
    if (this.#over) return;
    this.#over = true;
    clearInterval(this.#watch);
    this.#end({ opened: this.#opened, receivedFrames: this.#frames > 1, ...how });
  }
}
