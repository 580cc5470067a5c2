// The options and the events of a connection: types only.

/**
 * @typedef {import('./link.js').WebSocketClass} WebSocketClass
 * @typedef {import('./position.js').Gap} Gap
 * @typedef {import('./position.js').Hello} Hello
 */

/**
 * @typedef {object} KernelConnectionOptions
 * @property {string | URL} url The gateway's address, with its base path: `https://example.org/jupyter/`. In a page it may
 *   be relative.
 * @property {string} kernelId
 * @property {string} [token]
 * @property {string} [session] Names this client; random without it. Of two connections with one session the older is
 *   closed.
 * @property {string} [resume] Where to begin: after the entry with this cursor, or `start`, or `head` (without it).
 * @property {WebSocketClass} [WebSocket] The global one without it. Node has none before version 22: pass that of the
 *   package `ws`.
 * @property {AbortSignal} [signal] Aborting is as `close()`.
 * @property {number} [maxWaitingBytes] How much may wait to be read, and how much to be sent: 64 MiB without it. With more
 *   to read, the connection is closed until it is read; the log keeps what comes meanwhile. Of an execution that nobody has
 *   begun to read as much may wait besides; then it is dropped.
 * @property {number} [helloMs] How many milliseconds a connection has for its first frame; 30,000 without it.
 * @property {number} [silenceMs] After how many milliseconds without a frame a connection is dead; 90,000 without it.
 * @property {number} [pauseMs] The first pause before a reconnect; 100 without it. It doubles each time.
 * @property {number} [maxPauseMs] The longest pause; 10,000 without it.
 */

/**
 * | state | |
 * |---|---|
 * | `new` | nothing was asked for yet |
 * | `connecting` | |
 * | `connected` | |
 * | `waiting` | the connection broke; it is tried again after a pause |
 * | `paused` | too much waits to be read; it connects again when that is read |
 * | `ended` | the kernel is gone, and all was received |
 * | `failed` | connecting again would not help |
 * | `closed` | by `close()`, or the signal |
 *
 * @typedef {'new' | 'connecting' | 'connected' | 'waiting' | 'paused' | 'ended' | 'failed' | 'closed'} State
 */

/**
 * @typedef {object} KernelEvents
 * @property {Hello} hello A connection stands.
 * @property {Gap} gap In place of these entries: they are not in the log any more, or never were.
 * @property {Hello} notRecovered The place where reading was to begin is not there (`reason` says why): forget what was
 *   built from earlier entries, all that there is follows.
 * @property {{state: State, reason: string}} state
 */

export {};
