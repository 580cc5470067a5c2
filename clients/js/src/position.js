// A client's position in a log. It determines which frames are valid next.

import { ProtocolError } from './errors.js';

/**
 * The first frame of a connection.
 * @typedef {object} Hello
 * @property {string} epoch The log's identity.
 * @property {number} earliest The first stored entry; `head` + 1 if there is none.
 * @property {number} head The last entry at the time of the hello.
 * @property {number} from The client's position: the next frame concerns entry `from` + 1.
 * @property {boolean} recovered Whether `from` is the requested position.
 * @property {'epoch' | 'earliest' | 'ahead'} [reason] Why `from` is not the requested position.
 */

/**
 * Entries that are not in the log: `first` to `last`.
 * @typedef {{first: number, last: number}} Gap
 */

const CURSOR = /^([0-9a-f]{32}):(0|[1-9][0-9]*)$/;

/** @param {unknown} value */
const isSeq = (value) => Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;

export class Position {
  /** @type {string | undefined} */
  epoch;
  /** The last entry that was received, is known to be missing, or precedes the start. */
  seq = 0;
  /** Where to begin while the epoch is unknown. */
  start = 'head';

  /**
   * @param {string} start `start`, `head` or a cursor
   * @throws {TypeError} if it is none of them
   */
  constructor(start) {
    this.moveTo(start);
  }

  /** @param {string} start */
  moveTo(start) {
    const cursor = CURSOR.exec(start);
    if (!cursor && start !== 'start' && start !== 'head') {
      throw new TypeError('resume: give start, head, or the cursor of an entry');
    }
    this.start = start;
    this.epoch = cursor?.[1];
    this.seq = cursor ? Number(cursor[2]) : 0;
    if (!isSeq(this.seq)) throw new TypeError('resume: the number in this cursor is too large');
  }

  /** The cursor; `undefined` before it is known. */
  get cursor() {
    return this.epoch === undefined ? undefined : `${this.epoch}:${this.seq}`;
  }

  /** The position to request when connecting. */
  get resume() {
    return this.cursor ?? this.start;
  }

  /** @param {Hello} hello */
  hello({ epoch, from, head, earliest, recovered }) {
    if (!/^[0-9a-f]{32}$/.test(epoch) || ![from, head, earliest].every(isSeq)) {
      throw new ProtocolError('the hello has no valid position');
    }
    if (recovered && this.epoch !== undefined && (this.epoch !== epoch || this.seq !== from)) {
      throw new ProtocolError('the hello reports recovered, but its position is not the requested one');
    }
    this.epoch = epoch;
    this.seq = from;
  }

  /** @param {number} seq */
  entry(seq) {
    if (seq !== this.seq + 1) throw new ProtocolError(`entry ${seq} came after entry ${this.seq}`);
    this.seq = seq;
  }

  /** @param {Gap} gap */
  gap({ first, last }) {
    if (first !== this.seq + 1 || !isSeq(last) || last < first) {
      throw new ProtocolError(`a gap from ${first} to ${last} came after entry ${this.seq}`);
    }
    this.seq = last;
  }
}
