// Received entries that wait for a reader. The budget bounds them; the writer asks it before it adds one.

/** Bytes that wait for readers, over all queues of a connection. */
export class Budget {
  /** @type {(() => void) | undefined} */
  #roomy;
  #used = 0;

  /** @param {number} limit in bytes */
  constructor(limit) {
    this.limit = limit;
  }

  /** @param {number} bytes negative: given back */
  add(bytes) {
    this.#used += bytes;
    if (this.#used <= this.limit / 2) this.#roomy?.();
  }

  get exceeded() {
    return this.#used > this.limit;
  }

  /** Waits until half of it is free. */
  async room() {
    if (!this.exceeded) return;
    await new Promise((resolve) => {
      this.#roomy = () => resolve(undefined);
    });
    this.#roomy = undefined;
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

  /** Bytes that wait. */
  size = 0;

  /** @param {Budget} [budget] */
  constructor(budget) {
    this.#budget = budget;
  }

  /**
   * From now on what waits counts.
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
   * Nothing follows. What waits is still read, then iteration ends, or throws `error` once.
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

  /** Drops what waits, and ends. */
  discard() {
    this.#count(-this.size);
    this.#items = [];
    this.#head = 0;
    this.end();
    this.#error = undefined;
  }

  /**
   * The next item, as soon as there is one; `undefined` at the end.
   * @returns {Promise<T | undefined>}
   */
  take() {
    const next = this.#items[this.#head];
    if (next) {
      // Not shift(): it moves all that follow.
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
