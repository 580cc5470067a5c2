/**
 * Why a connection or an execution is over:
 *
 * | code | |
 * |---|---|
 * | `unauthorized` | no token, a wrong one, or a refused origin |
 * | `not-found` | neither the kernel nor its log exists |
 * | `not-kernelmux` | the server does not support the resume protocol |
 * | `replaced` | another connection of the same session replaced this one |
 * | `refused` | the gateway found a message invalid or too large |
 * | `kernel-ended` | the kernel ended before it replied |
 * | `kernel-restarted` | the kernel died or was restarted before it replied |
 * | `gap` | entries of the log are lost, and the reply may be among them |
 * | `unread` | too much output arrived before it was read |
 * | `closed` | `close()` was called |
 *
 * @typedef {'unauthorized' | 'not-found' | 'not-kernelmux' | 'replaced' | 'refused' | 'kernel-ended' |
 *   'kernel-restarted' | 'gap' | 'unread' | 'closed'} ErrorCode
 */

/** An error that reconnecting cannot solve. */
export class KernelConnectionError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.name = 'KernelConnectionError';
    this.code = code;
  }
}

/** The gateway violated the protocol, so the connection counts as broken. */
export class ProtocolError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = 'ProtocolError';
  }
}
