// A message on its way into the log: sent again after each reconnect until it is seen to be there.

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
   * The log's head when the message was sent first: it comes after this. `undefined` while it was not sent.
   * @type {number | undefined}
   */
  sentAfter;
  /**
   * Its number in the log; `undefined` while it was not seen there.
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
    /** The cursor of the message in the log, once it is there. */
    this.logged = /** @type {Promise<string>} */ (
      new Promise((resolve, reject) => {
        this.#resolve = resolve;
        this.#reject = reject;
      })
    );
    // Not everybody waits for it.
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
