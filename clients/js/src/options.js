// Types of the options and events of a connection.

/**
 * @typedef {import('./link.js').WebSocketClass} WebSocketClass
 * @typedef {import('./position.js').Gap} Gap
 * @typedef {import('./position.js').Hello} Hello
 */

/**
 * @typedef {object} KernelConnectionOptions
 * @property {string | URL} url The gateway's address, with its base path: `https://example.org/jupyter/`. In a page it
 *   can be relative.
 * @property {string} kernelId
 * @property {string} [token]
 * @property {string} [session] Identifies this client; random by default. Of two connections with the same session, the
 *   gateway closes the older one.
 * @property {string} [resume] Where to begin: `start`, `head` (default), or after the entry of a cursor.
 * @property {WebSocketClass} [WebSocket] The WebSocket class, by default the global one. Before version 22, Node has
 *   none: pass that of the package `ws`.
 * @property {AbortSignal} [signal] Aborting calls `close()`.
 * @property {number} [maxWaitingBytes] Limit in bytes for unread entries, and for sent messages that are not in the log
 *   yet; 64 MiB by default. While too many entries are unread, the connection is closed, and the log keeps new entries.
 *   A message beyond the limit is refused. The same limit applies to each execution that is not being read yet; beyond
 *   it, the execution's messages are dropped.
 * @property {number} [helloMs] Timeout for a connection's first frame in milliseconds; 30,000 by default.
 * @property {number} [silenceMs] Milliseconds without a frame after which a connection counts as dead; 90,000 by
 *   default.
 * @property {number} [pauseMs] The first pause before a reconnect in milliseconds, doubled each time; 100 by default.
 * @property {number} [maxPauseMs] The limit of this doubling in milliseconds; 10,000 by default. Each pause varies
 *   randomly by up to half.
 */

/**
 * | state | |
 * |---|---|
 * | `new` | not used yet |
 * | `connecting` | |
 * | `connected` | |
 * | `waiting` | the connection broke, and the client reconnects after a pause |
 * | `paused` | too many entries are unread; the client reconnects once they are read |
 * | `ended` | the kernel has ended, and everything was received |
 * | `failed` | reconnecting would not help |
 * | `closed` | closed by `close()` or the signal |
 *
 * @typedef {'new' | 'connecting' | 'connected' | 'waiting' | 'paused' | 'ended' | 'failed' | 'closed'} State
 */

/**
 * @typedef {object} KernelEvents
 * @property {Hello} hello A connection was established.
 * @property {Gap} gap These entries were dropped from the log, or never recorded.
 * @property {Hello} notRecovered The requested position does not exist, for the given `reason`. Discard the state built
 *   from earlier entries: all entries of the log follow.
 * @property {{state: State, reason: string}} state
 */

export {};
