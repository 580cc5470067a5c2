import { KernelConnectionError } from './errors.js';
import { Execution } from './execution.js';
import { Frame } from './frames.js';
import { Link, NO_SUBPROTOCOL } from './link.js';
import { Position } from './position.js';
import { Budget, Queue } from './queue.js';
import { Request, randomId } from './request.js';

/**
 * @typedef {import('./frames.js').Channel} Channel
 * @typedef {import('./frames.js').Entry} Entry
 * @typedef {import('./frames.js').Json} Json
 * @typedef {import('./link.js').Ended} Ended
 * @typedef {import('./link.js').WebSocketClass} WebSocketClass
 * @typedef {import('./options.js').KernelConnectionOptions} KernelConnectionOptions
 * @typedef {import('./options.js').KernelEvents} KernelEvents
 * @typedef {import('./options.js').State} State
 * @typedef {import('./position.js').Gap} Gap
 * @typedef {import('./position.js').Hello} Hello
 * @typedef {import('./request.js').MessageParts} MessageParts
 */

/** @typedef {{frame: Frame} | {gap: Gap, cursor: string} | {notRecovered: Hello, cursor: string}} Item */

const MIB = 1 << 20;
// What a gap or a hello takes in memory, roughly.
const NOTICE_SIZE = 256;
// How long an abandoned handshake may still reach the gateway.
const GHOST_MS = 60_000;
const FINAL_CODES = new Set([1002, 1009]);

/**
 * A place in a kernel's log that moves on, whatever becomes of the connection. It connects when something is first asked
 * of it.
 */
export class KernelConnection {
  #options;
  #webSocketUrl;
  #probeUrl;
  #position;
  #budget;
  /** @type {Link | undefined} */
  #link;
  #running = false;
  /** @type {{state: State, error: Error} | undefined} */
  #over;
  /** @type {State} */
  #state = 'new';
  /** Ends the pause that there is at the moment. */
  #wake = () => {};
  #lostHandshake = -Infinity;
  /** The log's head when the connection began. */
  #head = 0;

  /** @type {Queue<Item> | undefined} */
  #reader;
  /** Whether there ever was a reader: then the cursor is what was handed to it. */
  #handing = false;
  /** @type {string | undefined} */
  #handed;

  /** The last entry that was received of this log: reading may have gone back since. */
  #received = { epoch: '', seq: 0 };
  /** @type {Map<string, Request>} */
  #requests = new Map();
  #requestBytes = 0;
  /**
   * By msg_id.
   * @type {Map<string, {execution: Execution, request: Request}>}
   */
  #executions = new Map();
  /** @type {Map<string, Set<(event: any) => void>>} */
  #listeners = new Map();

  /**
   * @param {KernelConnectionOptions} options
   * @throws {TypeError} where there is no WebSocket, or an option makes no sense
   */
  constructor(options) {
    const WebSocket = options.WebSocket ?? /** @type {WebSocketClass | undefined} */ (globalThis.WebSocket);
    if (!WebSocket) throw new TypeError('there is no global WebSocket: pass one, such as that of the package ws');
    this.#options = {
      ...options,
      helloMs: options.helloMs ?? 30_000,
      silenceMs: options.silenceMs ?? 90_000,
      pauseMs: options.pauseMs ?? 100,
      maxPauseMs: options.maxPauseMs ?? 10_000,
      WebSocket,
    };
    /** What names this client to the gateway. */
    this.session = options.session ?? randomId();
    this.#position = new Position(options.resume ?? 'head');
    this.#budget = new Budget(options.maxWaitingBytes ?? 64 * MIB);

    const base = new URL(options.url, globalThis.location?.href);
    if (!/^(http|ws)s?:$/.test(base.protocol)) throw new TypeError('url: give an address that begins with http or ws');
    if (!base.pathname.endsWith('/')) base.pathname += '/';
    const api = new URL(`api/kernels/${encodeURIComponent(options.kernelId)}/`, base);
    this.#webSocketUrl = new URL('channels', api);
    this.#webSocketUrl.protocol = base.protocol.replace('http', 'ws');
    this.#webSocketUrl.searchParams.set('session_id', this.session);
    this.#probeUrl = new URL('log?from=head&follow=false', api);
    this.#probeUrl.protocol = base.protocol.replace('ws', 'http');
    if (options.token !== undefined) {
      this.#webSocketUrl.searchParams.set('token', options.token);
      this.#probeUrl.searchParams.set('token', options.token);
    }

    this.#heedSignal();
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /**
   * Where this client stands: a text to keep, and to give as `resume` later, elsewhere. That is the last entry that
   * `entries()` yielded; where that was never called, the last one received. `undefined` until the first hello, where
   * reading begins at `start` or `head`.
   * @returns {string | undefined}
   */
  get cursor() {
    return this.#handing ? this.#handed : this.#position.cursor;
  }

  /**
   * Calls `listener` at each event of this kind. `gap` and `notRecovered` come between the entries where they belong,
   * while `entries()` is being read.
   * @template {keyof KernelEvents} K
   * @param {K} name
   * @param {(event: KernelEvents[K]) => void} listener
   * @returns {() => void} ends it
   */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /**
   * Every entry after the cursor, each once and in order, until the kernel is gone or this is closed. One reader at a time;
   * after a `break`, the next call goes on behind the last entry that was yielded.
   *
   * Iteration throws a {@link KernelConnectionError} where connecting again does not help.
   * @returns {AsyncIterableIterator<Entry>}
   */
  entries() {
    if (this.#reader) throw new Error('entries() is being read already');
    /** @type {Queue<Item>} */
    const queue = new Queue(this.#budget);
    this.#goBack();
    if (!this.#handing) this.#handed = this.#position.cursor;
    this.#handing = true;
    if (this.#over) {
      queue.end(this.#over.state === 'failed' ? this.#over.error : undefined);
    } else {
      this.#reader = queue;
      this.#run();
    }
    const leave = () => {
      queue.discard();
      if (this.#reader === queue) this.#reader = undefined;
    };
    const iterator = {
      next: async () => {
        for (;;) {
          const item = await queue.take().catch((error) => {
            leave();
            throw error;
          });
          if (!item) {
            leave();
            return { done: true, value: undefined };
          }
          if ('frame' in item) {
            const value = item.frame.entry();
            this.#handed = value.cursor;
            return { done: false, value };
          }
          this.#handed = item.cursor;
          if ('gap' in item) this.#emit('gap', item.gap);
          else this.#emit('notRecovered', item.notRecovered);
        }
      },
      return: async () => {
        leave();
        return { done: true, value: undefined };
      },
      [Symbol.asyncIterator]: () => iterator,
    };
    return /** @type {AsyncIterableIterator<Entry>} */ (iterator);
  }

  /**
   * Sends a message to the kernel. It is sent again after a reconnect until it is seen in the log; the kernel gets it once.
   * @param {'shell' | 'control' | 'stdin'} channel
   * @param {string} msgType
   * @param {Json} [content]
   * @param {MessageParts} [parts]
   * @returns {{msgId: string, logged: Promise<string>}} `logged` resolves to the message's own cursor when it is in the
   *   log, and fails with a {@link KernelConnectionError}
   * @throws {RangeError} where more than `maxWaitingBytes` wait to be sent
   */
  send(channel, msgType, content = {}, parts = {}) {
    const { msgId, logged } = this.#send(new Request(channel, msgType, this.session, content, parts));
    return { msgId, logged };
  }

  /**
   * Runs code. Iterate over what is returned for its messages, beginning at once; or wait for its `reply`.
   * @param {string} code
   * @param {object} [options]
   * @param {string} [options.cellId] The notebook's cell; the gateway finds executions by it.
   * @param {boolean} [options.silent]
   * @param {boolean} [options.storeHistory]
   * @param {boolean} [options.allowStdin] Whether the code may ask for input; see {@link Execution.input}.
   * @param {boolean} [options.stopOnError]
   * @param {Json} [options.userExpressions]
   * @param {Json} [options.metadata]
   * @returns {Execution}
   * @throws {RangeError} where more than `maxWaitingBytes` wait to be sent
   */
  execute(code, options = {}) {
    const content = {
      code,
      silent: options.silent ?? false,
      store_history: options.storeHistory ?? !options.silent,
      user_expressions: options.userExpressions ?? {},
      allow_stdin: options.allowStdin ?? false,
      stop_on_error: options.stopOnError ?? true,
    };
    const metadata = { ...options.metadata };
    if (options.cellId !== undefined) metadata.cellId = options.cellId;
    const request = new Request('shell', 'execute_request', this.session, content, { metadata });
    const execution = new Execution(request, this.#budget, (question, value) => void this.input(question, value));
    if (!this.#over) this.#executions.set(request.msgId, { execution, request });
    try {
      this.#send(request);
    } catch (error) {
      this.#executions.delete(request.msgId);
      throw error;
    }
    return execution;
  }

  /**
   * Answers an `input_request` of the kernel, from any client's code.
   * @param {Entry} question an `input_request`
   * @param {string} value
   * @returns {{msgId: string, logged: Promise<string>}} as `send()`
   */
  input(question, value) {
    return this.send('stdin', 'input_reply', { status: 'ok', value }, { parentHeader: question.header });
  }

  /** Ends the connection. What was not read, is dropped here; the log keeps it. */
  close() {
    this.#finish('closed', new KernelConnectionError('closed', 'the connection was closed here'));
  }

  #onAbort = () => this.close();

  #heedSignal() {
    const { signal } = this.#options;
    if (signal?.aborted) this.close();
    else signal?.addEventListener('abort', this.#onAbort);
  }

  // --- The connection ---

  async #run() {
    if (this.#running) return;
    this.#running = true;
    let failures = 0;
    try {
      while (!this.#over) {
        if (this.#budget.exceeded) {
          this.#setState('paused');
          await this.#budget.room();
          continue;
        }
        this.#setState('connecting');
        const ended = await this.#connect();
        if (this.#over) continue;
        if (!this.#link) {
          if (!ended.spoken) this.#lostHandshake = Date.now();
          continue;
        }
        this.#link = undefined;
        const error = await this.#judge(ended);
        if (this.#over) continue;
        if (error) {
          this.#finish('failed', error);
          continue;
        }
        if (ended.spoken) failures = 0;
        const { pauseMs, maxPauseMs } = this.#options;
        const pause = Math.min(maxPauseMs, pauseMs * 2 ** failures) * (0.5 + Math.random());
        failures += 1;
        this.#setState('waiting', ended.reason || `the connection broke (${ended.code})`);
        await this.#pause(pause);
      }
    } catch (error) {
      this.#finish('failed', /** @type {Error} */ (error));
    }
    this.#running = false;
  }

  #connect() {
    const { WebSocket, helloMs, silenceMs } = this.#options;
    const url = new URL(this.#webSocketUrl);
    url.searchParams.set('resume', this.#position.resume);
    const link = new Link({
      WebSocket,
      url: url.href,
      helloMs,
      silenceMs,
      onNotice: (notice) => this.#onNotice(notice),
      onEntry: (bytes) => this.#onEntry(bytes),
    });
    this.#link = link;
    return link.over;
  }

  /**
   * Why there is no use in connecting again; `undefined` where there is.
   * @param {Ended} ended
   * @returns {Promise<KernelConnectionError | undefined>}
   */
  async #judge({ code, opened, spoken, reason }) {
    if (code === NO_SUBPROTOCOL) return new KernelConnectionError('not-kernelmux', reason);
    if (FINAL_CODES.has(code)) {
      return new KernelConnectionError('refused', `the gateway does not take a message (${code}): ${reason}`);
    }
    if (code === 4001) {
      // An abandoned handshake of this client may have arrived late; then no other client has the session.
      if (Date.now() - this.#lostHandshake < GHOST_MS) return undefined;
      return new KernelConnectionError('replaced', 'the same session connected anew');
    }
    if (!spoken) this.#lostHandshake = Date.now();
    return opened ? undefined : this.#probe();
  }

  /** Browsers do not tell why a handshake was refused: asks again in a way that shows it. */
  async #probe() {
    const abort = new AbortController();
    this.#wake = () => abort.abort();
    const timer = setTimeout(this.#wake, 10_000);
    try {
      const response = await fetch(this.#probeUrl, { signal: abort.signal, cache: 'no-store' });
      await response.body?.cancel();
      const { status } = response;
      if (status === 401 || status === 403) {
        return new KernelConnectionError('unauthorized', `the gateway refuses the token or the origin (${status})`);
      }
      if (status === 404) {
        return new KernelConnectionError('not-found', 'there is neither such a kernel nor its log');
      }
    } catch {
      // No answer: to be tried again.
    } finally {
      clearTimeout(timer);
    }
    return undefined;
  }

  /** @param {number} ms */
  #pause(ms) {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
      const timer = setTimeout(done, ms);
      this.#wake = done;
    });
  }

  /** Ends the connection that there is, for another one at once. */
  #reconnect() {
    const link = this.#link;
    this.#link = undefined;
    link?.close();
    this.#wake();
  }

  /** For a reader that begins behind what was received: back to there. */
  #goBack() {
    const handed = this.#handed;
    if (!this.#handing || handed === undefined || handed === this.#position.cursor) return;
    if (this.#over?.state === 'ended') {
      this.#over = undefined;
      this.#heedSignal();
    }
    if (this.#over) return;
    this.#position.moveTo(handed);
    this.#reconnect();
  }

  // --- What comes ---

  /** @param {Record<string, any>} notice */
  #onNotice(notice) {
    if (notice.type === 'hello') this.#onHello(/** @type {any} */ (notice));
    else if (notice.type === 'gap') this.#onGap(/** @type {any} */ (notice));
    else if (notice.type === 'end') {
      this.#finish('ended', new KernelConnectionError('kernel-ended', 'the kernel is gone'));
    }
  }

  /** @param {Hello} hello */
  #onHello(hello) {
    this.#position.hello(hello);
    if (this.#received.epoch !== hello.epoch) this.#received = { epoch: hello.epoch, seq: 0 };
    const cursor = /** @type {string} */ (this.#position.cursor);
    if (this.#handing) this.#handed ??= cursor;
    if (!hello.recovered) {
      // Only where entries were dropped is this still the log that messages were sent to.
      this.#loseInFlight(hello.reason === 'earliest' ? hello.from : Infinity);
      this.#tell({ notRecovered: hello, cursor });
    }
    this.#head = hello.head;
    for (const request of this.#requests.values()) this.#transmit(request);
    this.#setState('connected');
    this.#emit('hello', hello);
  }

  /** @param {Gap} notice */
  #onGap({ first, last }) {
    this.#position.gap({ first, last });
    this.#loseInFlight(last);
    this.#tell({ gap: { first, last }, cursor: /** @type {string} */ (this.#position.cursor) });
  }

  /** @param {Item} item */
  #tell(item) {
    if (this.#reader) this.#reader.push(item, NOTICE_SIZE);
    else if ('gap' in item) this.#emit('gap', item.gap);
    else if ('notRecovered' in item) this.#emit('notRecovered', item.notRecovered);
  }

  /** @param {ArrayBuffer} bytes */
  #onEntry(bytes) {
    const frame = new Frame(bytes, /** @type {string} */ (this.#position.epoch));
    this.#position.entry(frame.seq);
    this.#received.seq = Math.max(this.#received.seq, frame.seq);
    const request = this.#requests.get(frame.header.msg_id);
    if (request && request.channel === frame.channel) {
      this.#forget(request);
      request.seen(frame);
    }
    const parent = frame.parentHeader.msg_id;
    if (parent === undefined) this.#onNews(frame);
    else if (this.#executions.get(parent)?.execution.deliver(frame)) this.#executions.delete(parent);
    this.#reader?.push({ frame }, frame.size);
    if (this.#budget.exceeded) this.#reconnect();
  }

  /**
   * A message without a request. A kernel that died or was restarted does not reply to earlier requests.
   * @param {Frame} frame
   */
  #onNews({ seq, channel, header, content }) {
    if (channel !== 'iopub') return;
    const event = header.msg_type === 'kernelmux_lifecycle' ? content.event : undefined;
    const died =
      (header.msg_type === 'status' && ['restarting', 'dead'].includes(content.execution_state)) ||
      event === 'restarting' ||
      event === 'died';
    if (!died) return;
    const reason = content.reason ? `: ${content.reason}` : '';
    const error = new KernelConnectionError(
      'kernel-restarted',
      `the kernel died or was restarted before it replied${reason}`,
    );
    for (const [msgId, { execution, request }] of this.#executions) {
      // What comes later in the log, or is not there yet, is for the kernel that follows.
      if ((request.seq ?? Infinity) > seq) continue;
      // Their synthetic replies, which follow, are for clients that do not know this.
      if (event === 'died' && !content.executions.includes(msgId)) continue;
      this.#executions.delete(msgId);
      execution.fail(error);
    }
  }

  /**
   * Entries up to `last` are gone, and what was sent before them may be among them: it will not be seen to come.
   * @param {number} last
   */
  #loseInFlight(last) {
    // They were received before: `entries()` has them read once more.
    if (last <= this.#received.seq) return;
    const error = new KernelConnectionError(
      'gap',
      'entries of the log are gone, and the reply may be among them; the gateway may still have the execution',
    );
    for (const request of [...this.#requests.values()]) {
      if ((request.sentAfter ?? Infinity) >= last) continue;
      this.#forget(request);
      request.fail(error);
    }
    for (const [msgId, { execution, request }] of this.#executions) {
      if ((request.sentAfter ?? Infinity) >= last) continue;
      this.#executions.delete(msgId);
      execution.fail(error);
    }
  }

  // --- What goes ---

  /** @param {Request} request */
  #send(request) {
    if (this.#over) {
      request.fail(this.#over.error);
      return request;
    }
    const size = request.bytes.byteLength;
    if (this.#requestBytes > 0 && this.#requestBytes + size > this.#budget.limit) {
      throw new RangeError(`more than ${this.#budget.limit} bytes wait to be sent to the kernel`);
    }
    this.#requests.set(request.msgId, request);
    this.#requestBytes += size;
    if (this.#state === 'connected') this.#transmit(request);
    else this.#run();
    return request;
  }

  /** @param {Request} request */
  #transmit(request) {
    request.sentAfter ??= Math.max(this.#head, this.#position.seq);
    this.#link?.send(request.bytes);
  }

  /** @param {Request} request */
  #forget(request) {
    if (this.#requests.delete(request.msgId)) this.#requestBytes -= request.bytes.byteLength;
  }

  // --- The end ---

  /**
   * @param {'ended' | 'failed' | 'closed'} state
   * @param {Error} error rejects pending requests
   */
  #finish(state, error) {
    if (this.#over) return;
    this.#over = { state, error };
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    this.#reconnect();
    if (state === 'closed') this.#reader?.discard();
    else this.#reader?.end(state === 'failed' ? error : undefined);
    for (const request of this.#requests.values()) request.fail(error);
    this.#requests.clear();
    this.#requestBytes = 0;
    for (const { execution } of this.#executions.values()) execution.fail(error);
    this.#executions.clear();
    this.#setState(state, error.message);
  }

  /**
   * @param {State} state
   * @param {string} [reason]
   */
  #setState(state, reason = '') {
    if (state === this.#state) return;
    this.#state = state;
    this.#emit('state', { state, reason });
  }

  /**
   * @template {keyof KernelEvents} K
   * @param {K} name
   * @param {KernelEvents[K]} event
   */
  #emit(name, event) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(event);
      } catch (error) {
        // The listener's error, and not the connection's.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
