// Binary frames: entries from the gateway and messages from the client, as specified in docs/src/resume-protocol.md.

import { ProtocolError } from './errors.js';

/** @typedef {'shell' | 'control' | 'stdin' | 'iopub'} Channel */

/**
 * A JSON object of a message.
 * @typedef {Record<string, any>} Json
 */

/**
 * An entry of a kernel's log.
 * @typedef {object} Entry
 * @property {number} seq Its number in the log.
 * @property {string} cursor The position after this entry, for the option `resume`.
 * @property {Channel} channel
 * @property {Json} header
 * @property {Json} parent_header
 * @property {Json} metadata
 * @property {Json} content
 * @property {Uint8Array[]} buffers They share the memory of the received frame.
 * @property {string[]} [malformed] Names of the parts that the kernel or a client did not send as JSON objects; they
 *   are `{}` here.
 */

const WORD = 8;
const CHANNELS = new Set(['shell', 'control', 'stdin', 'iopub']);
// The channel and the four JSON objects, before the buffers.
const FIXED_PARTS = 5;
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/**
 * `instanceof` fails across realms, as in a test page or an iframe.
 * @param {unknown} value
 * @returns {value is ArrayBuffer}
 */
const isArrayBuffer = (value) => Object.prototype.toString.call(value) === '[object ArrayBuffer]';

/** A received entry. Parts that are not needed for routing stay bytes until they are read. */
export class Frame {
  /** @type {string[]} */
  #malformed = [];
  /** @type {Uint8Array[]} */
  #parts;
  /** @type {Json | undefined} */
  #content;

  /**
   * @param {ArrayBuffer} bytes
   * @param {string} epoch of the log
   * @throws {ProtocolError} if the bytes are not an entry
   */
  constructor(bytes, epoch) {
    if (!isArrayBuffer(bytes) || bytes.byteLength < WORD) {
      throw new ProtocolError('a frame has no sequence number');
    }
    const view = new DataView(bytes);
    /** Size in bytes. */
    this.size = bytes.byteLength;
    this.seq = word(view, 0);
    this.cursor = `${epoch}:${this.seq}`;
    this.#parts = split(bytes, view);
    this.channel = /** @type {Channel} */ (decoder.decode(this.#parts[0]));
    if (!CHANNELS.has(this.channel)) throw new ProtocolError(`entry ${this.seq} has an unknown channel`);
    this.header = this.#json(1, 'header');
    this.parentHeader = this.#json(2, 'parent_header');
  }

  get content() {
    return (this.#content ??= this.#json(4, 'content'));
  }

  /** @returns {Entry} */
  entry() {
    /** @type {Entry} */
    const entry = {
      seq: this.seq,
      cursor: this.cursor,
      channel: this.channel,
      header: this.header,
      parent_header: this.parentHeader,
      metadata: this.#json(3, 'metadata'),
      content: this.content,
      buffers: this.#parts.slice(FIXED_PARTS),
    };
    if (this.#malformed.length > 0) entry.malformed = [...new Set(this.#malformed)];
    return entry;
  }

  /**
   * @param {number} index
   * @param {string} name
   * @returns {Json}
   */
  #json(index, name) {
    try {
      const value = JSON.parse(decoder.decode(this.#parts[index]));
      if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
    } catch {
      // Reported as malformed. Kernels can send anything, and the log keeps it verbatim, so this is not a protocol
      // error.
    }
    this.#malformed.push(name);
    return {};
  }
}

/**
 * @param {ArrayBuffer} bytes
 * @param {DataView} view
 */
function split(bytes, view) {
  const count = bytes.byteLength >= 2 * WORD ? word(view, WORD) : 0;
  const first = WORD * (count + 1);
  if (count < FIXED_PARTS + 1 || WORD + first > bytes.byteLength) {
    throw new ProtocolError('an entry has too few parts');
  }
  const parts = [];
  let start = word(view, 2 * WORD);
  if (start !== first) throw new ProtocolError("an entry's first part is at the wrong offset");
  for (let i = 1; i < count; i++) {
    const end = word(view, (2 + i) * WORD);
    if (end < start || WORD + end > bytes.byteLength) throw new ProtocolError("an entry's parts exceed its length");
    parts.push(new Uint8Array(bytes, WORD + start, end - start));
    start = end;
  }
  if (WORD + start !== bytes.byteLength) throw new ProtocolError('an entry is longer than its parts');
  return parts;
}

/**
 * @param {DataView} view
 * @param {number} offset
 */
function word(view, offset) {
  const value = view.getBigUint64(offset, true);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new ProtocolError('a number in a frame is too large');
  return Number(value);
}

/**
 * Encodes a client's message.
 * @param {Channel} channel
 * @param {Json[]} objects header, parent header, metadata, content
 * @param {(ArrayBuffer | ArrayBufferView)[]} buffers
 * @returns {ArrayBuffer}
 */
export function encodeMessage(channel, objects, buffers) {
  const parts = [
    encoder.encode(channel),
    ...objects.map((object) => encoder.encode(JSON.stringify(object))),
    ...buffers.map((buffer) =>
      ArrayBuffer.isView(buffer)
        ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
        : new Uint8Array(buffer),
    ),
  ];
  const head = WORD * (parts.length + 2);
  const bytes = new Uint8Array(parts.reduce((length, part) => length + part.byteLength, head));
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(parts.length + 1), true);
  let offset = head;
  parts.forEach((part, i) => {
    view.setBigUint64(WORD * (i + 1), BigInt(offset), true);
    bytes.set(part, offset);
    offset += part.byteLength;
  });
  view.setBigUint64(WORD * (parts.length + 1), BigInt(offset), true);
  return bytes.buffer;
}
