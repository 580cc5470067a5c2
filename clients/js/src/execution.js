// One run of code: its messages, and its reply.

import { KernelConnectionError } from './errors.js';
import { Queue } from './queue.js';

/**
 * @typedef {import('./frames.js').Entry} Entry
 * @typedef {import('./frames.js').Frame} Frame
 */

/**
 * What the kernel says to one `execute_request`: iterate over it. The messages end when both the reply and the status
 * `idle` have come. Where the reply cannot come, iteration and `reply` fail with a {@link KernelConnectionError}.
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
  #question;
  /** @type {(entry: Entry) => void} */
  #resolve = () => {};
  /** @type {(error: Error) => void} */
  #reject = () => {};

  /**
   * @internal
   * @param {import('./request.js').Request} request
   * @param {import('./queue.js').Budget} budget for what waits to be read
   * @param {(question: Entry, value: string) => void} answer
   */
  constructor(request, budget, answer) {
    this.#budget = budget;
    this.#answer = answer;
    /** The `msg_id` of the request, and of the parent of all its messages. */
    this.msgId = request.msgId;
    /** Resolves to the cursor of the request when it is in the log: from there on it is not lost. */
    this.logged = request.logged;
    /** The `execute_reply`, also one whose status is `error` or `aborted`. */
    this.reply = /** @type {Promise<Entry>} */ (
      new Promise((resolve, reject) => {
        this.#resolve = resolve;
        this.#reject = reject;
      })
    );
    // Iteration reports the error itself.
    this.reply.catch(() => {});
    request.logged.catch((error) => this.fail(error));
  }

  /**
   * Answers the last question (`input_request`) of this execution; run it with `allowStdin` to be asked.
   * @param {string} value
   */
  input(value) {
    if (!this.#question) throw new Error('this execution has not asked for input');
    this.#answer(this.#question, value);
    this.#question = undefined;
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
          throw new KernelConnectionError('unread', 'the output was not read in time: begin to iterate when you execute');
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
   * A message whose parent is the request.
   * @internal
   * @param {Frame} frame
   * @returns {boolean} whether it was the last one
   */
  deliver(frame) {
    // The connection may read entries once more for `entries()`.
    if (this.#over || frame.seq <= this.#lastSeq) return this.#over;
    this.#lastSeq = frame.seq;
    if (!this.#reading && this.#queue.size + frame.size > this.#budget.limit) {
      // Nobody may ever read it: waiting for that would stop the connection.
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
      this.#question = frame.entry();
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
