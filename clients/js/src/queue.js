// Queues of unread entries that share a budget. The connection pauses while the budget is exceeded.

/** Counts the unread bytes in all queues of a connection. */
export class Budget {
  /** @type {(() => void) | undefined} */
  #onRoom;
  #used = 0;

  /** @param {number} limit in bytes */
  constructor(limit) {
    this.limit = limit;
  }

  /** @param {number} bytes negative to release them */
  add(bytes) {
    this.#used += bytes;
    if (this.#used <= this.limit / 2) this.#onRoom?.();
  }

  get exceeded() {
    return this.#used > this.limit;
  }

  /** Waits until half of the budget is free, if it is exceeded. */
  async room() {
    if (!this.exceeded) return;
    await new Promise((resolve) => {
      this.#onRoom = () => resolve(undefined);
    });
    this.#onRoom = undefined;
  }
}

/** @template T */
export class Queue {
  /** @type {({item: T, size: number} | undefined)[]} */
  #items = [];
  #head = 0;
  /** @type {{resolve: (item: T | undefined) => void, reject: (error: unknown) => void}[]} */
  #waiting = [];
  #over = false;
  /** @type {unknown} */
  #error;
  #budget;

  /** Unread bytes. */
  size = 0;

  /** @param {Budget} [budget] */
  constructor(budget) {
    this.#budget = budget;
  }

  /**
   * Counts unread bytes in this budget from now on.
   * @param {Budget} budget
   */
  countIn(budget) {
    if (this.#budget) return;
    this.#budget = budget;
    budget.add(this.size);
  }

  /**
   * @param {T} item
   * @param {number} size in bytes
   */
  push(item, size) {
    if (this.#over) return;
    const waiting = this.#waiting.shift();
    if (waiting) {
      waiting.resolve(item);
      return;
    }
    this.#items.push({ item, size });
    this.#count(size);
  }

  /**
   * Ends the queue. `take` still returns its items, then fails with `error` once if there is one, then returns
   * `undefined`.
   * @param {unknown} [error]
   */
  end(error) {
    if (this.#over) return;
    this.#over = true;
    this.#error = error;
    for (const { resolve, reject } of this.#waiting.splice(0)) {
      if (this.#error === undefined) resolve(undefined);
      else reject(this.#takeError());
    }
  }

  /** Drops all items and ends the queue. */
  discard() {
    this.#count(-this.size);
    this.#items = [];
    this.#head = 0;
    this.end();
    this.#error = undefined;
  }

  /**
   * Waits for the next item and removes it; `undefined` at the end.
   * @returns {Promise<T | undefined>}
   */
  take() {
    const next = this.#items[this.#head];
    if (next) {
      // Not shift(), which moves all later items.
      this.#items[this.#head] = undefined;
      this.#head += 1;
      if (this.#head > 1024 && this.#head > this.#items.length / 2) {
        this.#items = this.#items.slice(this.#head);
        this.#head = 0;
      }
      this.#count(-next.size);
      return Promise.resolve(next.item);
    }
    if (this.#error !== undefined) return Promise.reject(this.#takeError());
    if (this.#over) return Promise.resolve(undefined);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  #takeError() {
    const error = this.#error;
    this.#error = undefined;
    return error;
  }

  /** @param {number} bytes */
  #count(bytes) {
    this.size += bytes;
    this.#budget?.add(bytes);
  }
}
