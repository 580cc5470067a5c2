// An execution: its messages and its reply.

import { KernelConnectionError } from './errors.js';
import { Queue } from './queue.js';

/**
 * @typedef {import('./frames.js').Entry} Entry
 * @typedef {import('./frames.js').Frame} Frame
 */

/**
 * The kernel's messages for one `execute_request`, as an async iterable. Iteration ends when both the reply and the
 * status `idle` have arrived. If the reply cannot arrive, iteration and `reply` fail with a {@link
 * KernelConnectionError}.
 *
 * @implements {AsyncIterable<Entry>}
 */
export class Execution {
  /** @type {Queue<Frame>} */
  #queue = new Queue();
  #budget;
  #answer;
  #reading = false;
  #unread = false;
  #over = false;
  #replied = false;
  #idle = false;
  #lastSeq = 0;
  /** @type {Entry | undefined} */
  #inputRequest;
  /** @type {(entry: Entry) => void} */
  #resolve = () => {};
  /** @type {(error: Error) => void} */
  #reject = () => {};

  /**
   * @internal
   * @param {import('./request.js').Request} request
   * @param {import('./queue.js').Budget} budget for unread messages
   * @param {(question: Entry, value: string) => void} answer
   */
  constructor(request, budget, answer) {
    this.#budget = budget;
    this.#answer = answer;
    /** The `msg_id` of the request, and of the parent of all its messages. */
    this.msgId = request.msgId;
    /** Resolves to the cursor of the request once it is in the log, where it cannot be lost. */
    this.logged = request.logged;
    /** Resolves to the `execute_reply`, even if its status is `error` or `aborted`. */
    this.reply = /** @type {Promise<Entry>} */ (
      new Promise((resolve, reject) => {
        this.#resolve = resolve;
        this.#reject = reject;
      })
    );
    // Iteration throws the error too, so a caller that ignores `reply` must not get an unhandled rejection.
    this.reply.catch(() => {});
    request.logged.catch((error) => this.fail(error));
  }

  /**
   * Answers the last `input_request` of this execution. The kernel only sends one if `allowStdin` is set.
   * @param {string} value
   */
  input(value) {
    if (!this.#inputRequest) throw new Error('this execution is not waiting for input');
    this.#answer(this.#inputRequest, value);
    this.#inputRequest = undefined;
  }

  /** @returns {AsyncIterableIterator<Entry>} */
  [Symbol.asyncIterator]() {
    if (!this.#reading) {
      this.#reading = true;
      this.#queue.countIn(this.#budget);
    }
    const iterator = {
      next: async () => {
        if (this.#unread) {
          this.#unread = false;
          throw new KernelConnectionError('unread', 'the output was not read in time: iterate right after execute()');
        }
        const frame = await this.#queue.take();
        return frame ? { done: false, value: frame.entry() } : { done: true, value: undefined };
      },
      return: async () => {
        this.#unread = false;
        this.#queue.discard();
        return { done: true, value: undefined };
      },
      [Symbol.asyncIterator]: () => iterator,
    };
    return /** @type {AsyncIterableIterator<Entry>} */ (iterator);
  }

  /**
   * Receives a message whose parent is the request.
   * @internal
   * @param {Frame} frame
   * @returns {boolean} whether it was the last one
   */
  deliver(frame) {
    // The connection may read entries again for `entries()`.
    if (this.#over || frame.seq <= this.#lastSeq) return this.#over;
    this.#lastSeq = frame.seq;
    if (!this.#reading && this.#queue.size + frame.size > this.#budget.limit) {
      // The messages may never be read, and waiting for that would block the connection.
      this.#queue.discard();
      this.#unread = true;
    }
    this.#queue.push(frame, frame.size);
    const type = frame.header.msg_type;
    if (frame.channel === 'shell' && type === 'execute_reply') {
      this.#replied = true;
      this.#resolve(frame.entry());
    } else if (frame.channel === 'iopub' && type === 'status') {
      this.#idle ||= frame.content.execution_state === 'idle';
    } else if (frame.channel === 'stdin' && type === 'input_request') {
      this.#inputRequest = frame.entry();
    }
    if (this.#replied && this.#idle) {
      this.#over = true;
      this.#queue.end();
    }
    return this.#over;
  }

  /**
   * @internal
   * @param {Error} error
   */
  fail(error) {
    if (this.#over) return;
    this.#over = true;
    this.#reject(error);
    this.#queue.end(error);
  }
}
