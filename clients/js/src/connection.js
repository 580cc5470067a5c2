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
// Approximate memory of a gap or a hello.
const NOTICE_SIZE = 256;
// How long an abandoned handshake may take to reach the gateway.
const LATE_HANDSHAKE_MS = 60_000;
// Close codes for a message that is invalid or too large. It would be refused again after a reconnect.
const FINAL_CODES = new Set([1002, 1009]);

/**
 * Follows a kernel's log, and reconnects at its position whenever the connection breaks. It connects on first use.
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
  /** Ends the current pause or probe early. */
  #wake = () => {};
  /** When a connection last ended without a frame after the hello. The gateway may still process its handshake. */
  #lostHandshake = -Infinity;
  /** The log's head when the connection began. */
  #head = 0;

  /** @type {Queue<Item> | undefined} */
  #reader;
  /** Whether `entries()` was ever called. If so, `cursor` is the reader's position, not that of the last entry. */
  #hadReader = false;
  /**
   * The cursor after the last item that the reader took.
   * @type {string | undefined}
   */
  #readerCursor;

  /** The last entry received from this log, even if the position has been moved back since. */
  #received = { epoch: '', seq: 0 };
  /** @type {Map<string, Request>} */
  #requests = new Map();
  #requestBytes = 0;
  /**
   * Unfinished executions by `msg_id`.
   * @type {Map<string, {execution: Execution, request: Request}>}
   */
  #executions = new Map();
  /** @type {Map<string, Set<(event: any) => void>>} */
  #listeners = new Map();

  /**
   * @param {KernelConnectionOptions} options
   * @throws {TypeError} if there is no WebSocket or an option is invalid
   */
  constructor(options) {
    const WebSocket = options.WebSocket ?? /** @type {WebSocketClass | undefined} */ (globalThis.WebSocket);
    if (!WebSocket) throw new TypeError('there is no global WebSocket: pass a class, such as that of the package ws');
    this.#options = {
      ...options,
      helloMs: options.helloMs ?? 30_000,
      silenceMs: options.silenceMs ?? 90_000,
      pauseMs: options.pauseMs ?? 100,
      maxPauseMs: options.maxPauseMs ?? 10_000,
      WebSocket,
    };
    /** Identifies this client to the gateway. */
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

    this.#watchSignal();
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /**
   * The position of this client: a string to store and to pass as `resume` to another connection. It is the position of
   * the last entry that `entries()` yielded or, if `entries()` was never called, of the last received entry. If the
   * connection began at `start` or `head`, it is `undefined` until the first hello.
   * @returns {string | undefined}
   */
  get cursor() {
    return this.#hadReader ? this.#readerCursor : this.#position.cursor;
  }

  /**
   * Calls `listener` for each event of this kind. While `entries()` is being read, `gap` and `notRecovered` are emitted
   * in order with the entries.
   * @template {keyof KernelEvents} K
   * @param {K} name
   * @param {(event: KernelEvents[K]) => void} listener
   * @returns {() => void} removes the listener
   */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /**
   * Yields every entry after the cursor once and in order, until the kernel has ended or the connection is closed.
   * Allows one reader at a time. After a `break`, the next call continues after the last yielded entry.
   *
   * Iteration throws a {@link KernelConnectionError} if reconnecting does not help.
   * @returns {AsyncIterableIterator<Entry>}
   */
  entries() {
    if (this.#reader) throw new Error('entries() is already being read');
    /** @type {Queue<Item>} */
    const queue = new Queue(this.#budget);
    this.#rewind();
    if (!this.#hadReader) this.#readerCursor = this.#position.cursor;
    this.#hadReader = true;
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
            this.#readerCursor = value.cursor;
            return { done: false, value };
          }
          this.#readerCursor = item.cursor;
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
   * Sends a message to the kernel. It is sent again after each reconnect until the log contains it. The kernel receives
   * it once.
   * @param {'shell' | 'control' | 'stdin'} channel
   * @param {string} msgType
   * @param {Json} [content]
   * @param {MessageParts} [parts]
   * @returns {{msgId: string, logged: Promise<string>}} `logged` resolves to the message's cursor once it is in the
   *   log, or rejects with a {@link KernelConnectionError}
   * @throws {RangeError} if the messages that are not in the log yet would exceed `maxWaitingBytes`
   */
  send(channel, msgType, content = {}, parts = {}) {
    const { msgId, logged } = this.#send(new Request(channel, msgType, this.session, content, parts));
    return { msgId, logged };
  }

  /**
   * Runs code. Await the returned execution's `reply`, or iterate over the execution for its messages. Begin to iterate
   * right after this call, because unread messages are dropped if there are too many.
   * @param {string} code
   * @param {object} [options]
   * @param {string} [options.cellId] The id of the notebook cell. The gateway can list executions by it.
   * @param {boolean} [options.silent]
   * @param {boolean} [options.storeHistory]
   * @param {boolean} [options.allowStdin] Whether the code may ask for input; see {@link Execution.input}.
   * @param {boolean} [options.stopOnError]
   * @param {Json} [options.userExpressions]
   * @param {Json} [options.metadata]
   * @returns {Execution}
   * @throws {RangeError} if the messages that are not in the log yet would exceed `maxWaitingBytes`
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
   * Answers an `input_request` of the kernel, even one caused by another client's code.
   * @param {Entry} question an `input_request`
   * @param {string} value
   * @returns {{msgId: string, logged: Promise<string>}} the same as for `send()`
   */
  input(question, value) {
    return this.send('stdin', 'input_reply', { status: 'ok', value }, { parentHeader: question.header });
  }

  /** Ends the connection and drops unread entries, which stay in the log. */
  close() {
    this.#finish('closed', new KernelConnectionError('closed', 'the connection was closed by this client'));
  }

  #onAbort = () => this.close();

  #watchSignal() {
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
          if (!ended.receivedFrames) this.#lostHandshake = Date.now();
          continue;
        }
        this.#link = undefined;
        const error = await this.#finalError(ended);
        if (this.#over) continue;
        if (error) {
          this.#finish('failed', error);
          continue;
        }
        if (ended.receivedFrames) failures = 0;
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
   * The error of a connection that must not be retried; `undefined` if reconnecting may help.
   * @param {Ended} ended
   * @returns {Promise<KernelConnectionError | undefined>}
   */
  async #finalError({ code, opened, receivedFrames, reason }) {
    if (code === NO_SUBPROTOCOL) return new KernelConnectionError('not-kernelmux', reason);
    if (FINAL_CODES.has(code)) {
      return new KernelConnectionError('refused', `the gateway refused a message (${code}): ${reason}`);
    }
    if (code === 4001) {
      // The newer connection may be an abandoned handshake of this client that reached the gateway late. In that case,
      // no other client uses the session.
      if (Date.now() - this.#lostHandshake < LATE_HANDSHAKE_MS) return undefined;
      return new KernelConnectionError('replaced', 'another connection of the same session replaced this one');
    }
    if (!receivedFrames) this.#lostHandshake = Date.now();
    return opened ? undefined : this.#probe();
  }

  /** Sends an HTTP request to find out why a handshake was refused, which browsers do not report. */
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
        return new KernelConnectionError('not-found', 'neither the kernel nor its log exists');
      }
    } catch {
      // No answer, so reconnecting may help.
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

  /** Ends the current connection, pause or probe, so that `#run` continues. */
  #reconnect() {
    const link = this.#link;
    this.#link = undefined;
    link?.close();
    this.#wake();
  }

  /** Moves back to the reader's cursor if entries after it were received but not read. */
  #rewind() {
    const cursor = this.#readerCursor;
    if (!this.#hadReader || cursor === undefined || cursor === this.#position.cursor) return;
    if (this.#over?.state === 'ended') {
      this.#over = undefined;
      this.#watchSignal();
    }
    if (this.#over) return;
    this.#position.moveTo(cursor);
    this.#reconnect();
  }

  // --- Receiving ---

  /** @param {Record<string, any>} notice */
  #onNotice(notice) {
    if (notice.type === 'hello') this.#onHello(/** @type {any} */ (notice));
    else if (notice.type === 'gap') this.#onGap(/** @type {any} */ (notice));
    else if (notice.type === 'end') {
      this.#finish('ended', new KernelConnectionError('kernel-ended', 'the kernel has ended'));
    }
  }

  /** @param {Hello} hello */
  #onHello(hello) {
    this.#position.hello(hello);
    if (this.#received.epoch !== hello.epoch) this.#received = { epoch: hello.epoch, seq: 0 };
    const cursor = /** @type {string} */ (this.#position.cursor);
    if (this.#hadReader) this.#readerCursor ??= cursor;
    if (!hello.recovered) {
      // With the reason `earliest`, only entries up to `from` are lost. Otherwise, any entry may be lost.
      this.#failInFlight(hello.reason === 'earliest' ? hello.from : Infinity);
      this.#notify({ notRecovered: hello, cursor });
    }
    this.#head = hello.head;
    for (const request of this.#requests.values()) this.#transmit(request);
    this.#setState('connected');
    this.#emit('hello', hello);
  }

  /** @param {Gap} notice */
  #onGap({ first, last }) {
    this.#position.gap({ first, last });
    this.#failInFlight(last);
    this.#notify({ gap: { first, last }, cursor: /** @type {string} */ (this.#position.cursor) });
  }

  /** @param {Item} item */
  #notify(item) {
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
    if (parent === undefined) this.#onUnsolicited(frame);
    else if (this.#executions.get(parent)?.execution.deliver(frame)) this.#executions.delete(parent);
    this.#reader?.push({ frame }, frame.size);
    if (this.#budget.exceeded) this.#reconnect();
  }

  /**
   * Handles a message without a parent request. A kernel that died or was restarted does not reply to earlier requests.
   * @param {Frame} frame
   */
  #onUnsolicited({ seq, channel, header, content }) {
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
      // Requests that are later in the log, or not yet in it, are for the new process.
      if ((request.seq ?? Infinity) > seq) continue;
      // Executions that are not listed were completed. The listed ones fail now: the synthetic replies that follow are
      // for clients that do not know this event.
      if (event === 'died' && !content.executions.includes(msgId)) continue;
      this.#executions.delete(msgId);
      execution.fail(error);
    }
  }

  /**
   * Fails requests whose entries or replies may be among the lost entries up to `last` and thus never arrive.
   * @param {number} last
   */
  #failInFlight(last) {
    // The lost entries were all received earlier, before `entries()` moved the position back.
    if (last <= this.#received.seq) return;
    const error = new KernelConnectionError(
      'gap',
      'entries of the log are lost, and the reply may be among them; the gateway may still have the execution',
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

  // --- Sending ---

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

  // --- Ending ---

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
        // Reports the listener's error without failing the connection.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
