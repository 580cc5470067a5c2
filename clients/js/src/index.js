export { KernelConnection } from './connection.js';
export { KernelConnectionError } from './errors.js';
export { Execution } from './execution.js';

/**
 * @typedef {import('./options.js').KernelConnectionOptions} KernelConnectionOptions
 * @typedef {import('./options.js').KernelEvents} KernelEvents
 * @typedef {import('./options.js').State} State
 * @typedef {import('./errors.js').ErrorCode} ErrorCode
 * @typedef {import('./frames.js').Channel} Channel
 * @typedef {import('./frames.js').Entry} Entry
 * @typedef {import('./position.js').Gap} Gap
 * @typedef {import('./position.js').Hello} Hello
 */
