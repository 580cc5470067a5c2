// A message that is sent again after each reconnect until the log contains it.

import { encodeMessage } from './frames.js';

/** @typedef {import('./frames.js').Json} Json */

/**
 * @typedef {object} MessageParts
 * @property {Json} [metadata]
 * @property {Json} [parentHeader]
 * @property {(ArrayBuffer | ArrayBufferView)[]} [buffers]
 */

/** 32 random hex digits. */
export function randomId() {
  const bytes = new Uint8Array(16);
  // Node 18 has no global `crypto`. The ids must be unique, not secret.
  if (globalThis.crypto) globalThis.crypto.getRandomValues(bytes);
  else bytes.forEach((_, i) => (bytes[i] = Math.random() * 256));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Request {
  /** @type {(cursor: string) => void} */
  #resolve = () => {};
  /** @type {(error: Error) => void} */
  #reject = () => {};

  /**
   * The number of the newest known entry when the message was first sent; `undefined` before that. The message's entry
   * has a larger number.
   * @type {number | undefined}
   */
  sentAfter;
  /**
   * The message's number in the log; `undefined` until its entry is received.
   * @type {number | undefined}
   */
  seq;

  /**
   * @param {import('./frames.js').Channel} channel
   * @param {string} msgType
   * @param {string} session
   * @param {Json} content
   * @param {MessageParts} parts
   */
  constructor(channel, msgType, session, content, { metadata = {}, parentHeader = {}, buffers = [] }) {
    this.channel = channel;
    this.msgId = randomId();
    const header = {
      msg_id: this.msgId,
      msg_type: msgType,
      session,
      username: 'kernelmux-client',
      date: new Date().toISOString(),
      version: '5.3',
    };
    this.bytes = encodeMessage(channel, [header, parentHeader, metadata, content], buffers);
    /** Resolves to the cursor of the message once it is in the log. */
    this.logged = /** @type {Promise<string>} */ (
      new Promise((resolve, reject) => {
        this.#resolve = resolve;
        this.#reject = reject;
      })
    );
    // A caller that ignores this promise must not cause an unhandled rejection.
    this.logged.catch(() => {});
  }

  /** @param {import('./frames.js').Frame} frame */
  seen(frame) {
    this.seq = frame.seq;
    this.#resolve(frame.cursor);
  }

  /** @param {Error} error */
  fail(error) {
    this.#reject(error);
  }
}
