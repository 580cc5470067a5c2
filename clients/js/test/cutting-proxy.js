// A TCP proxy that cuts each connection after a given number of bytes.

import { once } from 'node:events';
import { connect, createServer } from 'node:net';

export class CuttingProxy {
  connections = 0;
  /** Bytes from the server on all connections. */
  down = 0;
  /** Bytes from the client on all connections. */
  up = 0;
  /**
   * The number of bytes in each direction after which connection n is cut.
   * @type {(n: number) => {down?: number, up?: number}}
   */
  plan = () => ({});
  /** @type {Set<import('node:net').Socket>} */
  #sockets = new Set();
  #server = createServer((near) => {
    const { down = Infinity, up = Infinity } = this.plan(this.connections++);
    const far = connect(this.#port, '127.0.0.1');
    const cut = () => {
      near.destroy();
      far.destroy();
    };
    for (const socket of [near, far]) {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    }
    /**
     * @param {import('node:net').Socket} from
     * @param {import('node:net').Socket} to
     * @param {number} left
     * @param {'up' | 'down'} way
     */
    const pump = (from, to, left, way) => {
      from.setNoDelay(true);
      from.on('error', cut);
      from.on('close', () => to.end());
      from.on('data', (data) => {
        const part = data.subarray(0, left);
        left -= part.length;
        this[way] += part.length;
        // end() delivers the written bytes first, so the cut is exact.
        if (left > 0) {
          if (!to.write(part)) {
            from.pause();
            to.once('drain', () => from.resume());
          }
        } else {
          to.end(part);
          from.destroy();
        }
      });
    };
    pump(near, far, up, 'up');
    pump(far, near, down, 'down');
  });
  #port;

  /** @param {number} port of the server */
  constructor(port) {
    this.#port = port;
  }

  async start() {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return this;
  }

  get url() {
    const { port } = /** @type {import('node:net').AddressInfo} */ (this.#server.address());
    return `http://127.0.0.1:${port}`;
  }

  /** Cuts all connections. */
  cut() {
    for (const socket of this.#sockets) socket.destroy();
  }

  async stop() {
    this.#server.close();
    this.cut();
    await once(this.#server, 'close');
  }
}
