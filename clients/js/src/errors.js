/**
 * Why a connection or an execution is over:
 *
 * | code | |
 * |---|---|
 * | `unauthorized` | no token, a wrong one, or a refused origin |
 * | `not-found` | there is neither such a kernel nor its log |
 * | `not-kernelmux` | what answers does not speak the resume protocol |
 * | `replaced` | the same session connected anew, elsewhere |
 * | `refused` | the gateway took a message for no message, or for too large |
 * | `kernel-ended` | the kernel is gone before it replied |
 * | `kernel-restarted` | the kernel died or was restarted before it replied |
 * | `gap` | entries are gone from the log, and the reply may be among them |
 * | `unread` | too much output came before anybody began to read it |
 * | `closed` | `close()` was called |
 *
 * @typedef {'unauthorized' | 'not-found' | 'not-kernelmux' | 'replaced' | 'refused' | 'kernel-ended' |
 *   'kernel-restarted' | 'gap' | 'unread' | 'closed'} ErrorCode
 */

/** An error that connecting again does not mend. */
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

/** The gateway sent what the protocol does not allow: the connection is taken for broken. */
export class ProtocolError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = 'ProtocolError';
  }
}
