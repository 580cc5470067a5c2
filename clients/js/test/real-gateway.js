// The real gateway as a process. KERNELMUX_GATEWAY is its binary. It needs the kernelspec python3.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const binary = process.env.KERNELMUX_GATEWAY;
/** The reason to skip tests with the real gateway, or false. In CI, skipping is an error. */
export const skip = binary ? false : 'KERNELMUX_GATEWAY is not set';
if (skip && process.env.CI) throw new Error(skip);

export class RealGateway {
  token = 'js-token';
  port = 0;
  home = '';
  /** @type {import('node:child_process').ChildProcess | undefined} */
  #child;

  /** Starts the gateway. After `end`, it uses the same port and data. */
  async start() {
    if (this.#isRunning) return this;
    this.home ||= await mkdtemp(join(tmpdir(), 'kernelmux-js-'));
    const args = ['--ip', '127.0.0.1', '--port', `${this.port}`, '--data-dir', join(this.home, 'data')];
    const child = spawn(/** @type {string} */ (binary), args, {
      env: { ...process.env, HOME: this.home, TMPDIR: this.home, KERNELMUX_TOKEN: this.token },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child = child;
    this.port = await new Promise((resolve, reject) => {
      let output = '';
      const read = (/** @type {Buffer} */ chunk) => {
        output += chunk;
        const port = /http:\/\/127\.0\.0\.1:(\d+)/.exec(output)?.[1];
        if (port) resolve(Number(port));
      };
      child.stdout.on('data', read);
      child.stderr.on('data', read);
      child.on('error', reject);
      child.on('exit', () => reject(new Error(`the gateway ended: ${output}`)));
    });
    return this;
  }

  get #isRunning() {
    return this.#child?.exitCode === null && this.#child.signalCode === null;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** @param {NodeJS.Signals} signal */
  async end(signal) {
    const child = this.#child;
    if (!child || !this.#isRunning) return;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    await ended;
  }

  /** Ends the gateway and its kernels, and removes its data. */
  async remove() {
    // A failed test may have left no running gateway.
    await this.start().catch(() => {});
    for (const { id } of await this.rest('GET', '/api/kernels')) await this.rest('DELETE', `/api/kernels/${id}`);
    await this.end('SIGINT');
    await rm(this.home, { recursive: true, force: true });
  }

  /** @param {string} method @param {string} path @param {unknown} [body] */
  async rest(method, path, body) {
    const response = await fetch(new URL(path, this.url), {
      method,
      headers: { Authorization: `token ${this.token}` },
      body: body ? JSON.stringify(body) : null,
    });
    const text = await response.text();
    assert.ok(response.ok, `${method} ${path}: ${response.status} ${text}`);
    return text ? JSON.parse(text) : undefined;
  }
}
