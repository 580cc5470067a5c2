import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runInNewContext } from 'node:vm';
import { ProtocolError } from '../src/errors.js';
import { Frame, encodeMessage } from '../src/frames.js';
import { decodeMessage, encodeEntry } from './mock-gateway.js';

const EPOCH = 'a'.repeat(32);

/** @param {Buffer} buffer */
const bytes = (buffer) => new Uint8Array(buffer).buffer;

test('an entry is decoded as it was encoded', () => {
  const message = {
    channel: 'stdin',
    header: { msg_id: 'x', msg_type: 'input_request' },
    parent_header: { msg_id: 'p' },
    metadata: { a: [1] },
    content: { prompt: 'Größe? 🦀' },
    buffers: [Buffer.from([0, 255]), Buffer.alloc(0), Buffer.from('end')],
  };
  const entry = new Frame(bytes(encodeEntry(4711, message)), EPOCH).entry();
  assert.deepEqual(
    { ...entry, buffers: entry.buffers.map((buffer) => Buffer.from(buffer)) },
    { seq: 4711, cursor: `${EPOCH}:4711`, ...message },
  );
});

test('an entry from another realm is decoded', () => {
  const written = encodeEntry(1, { header: { msg_id: 'x' } });
  const foreign = runInNewContext('new ArrayBuffer(length)', { length: written.length });
  new Uint8Array(foreign).set(written);
  assert.equal(foreign instanceof ArrayBuffer, false);
  assert.equal(new Frame(foreign, EPOCH).header.msg_id, 'x');
});

test('a message is encoded as specified', () => {
  const objects = [{ msg_id: 'x' }, { msg_id: 'p' }, { é: 1 }, { code: '🦀' }];
  const words = new Uint16Array([1, 2, 3]).subarray(1);
  const { channel, buffers, ...rest } = decodeMessage(Buffer.from(encodeMessage('shell', objects, [words])));
  assert.equal(channel, 'shell');
  assert.deepEqual(Object.values(rest), objects);
  assert.deepEqual(buffers, [Buffer.from([2, 0, 3, 0])]);
});

test('parts that are not JSON objects are reported and the others decoded', () => {
  const message = { header: { msg_type: 'x' }, metadata: [1], content: Buffer.from('{"value": NaN}') };
  const entry = new Frame(bytes(encodeEntry(1, message)), EPOCH).entry();
  assert.deepEqual(entry.content, {});
  assert.deepEqual(entry.metadata, {});
  assert.equal(entry.header.msg_type, 'x');
  assert.deepEqual(entry.malformed?.sort(), ['content', 'metadata']);
});

test('any bytes are decoded or refused with a ProtocolError', () => {
  const good = encodeEntry(1, { header: { msg_id: 'x' }, content: { a: 1 }, buffers: [Buffer.from('b')] });
  const bad = [];
  for (let length = 0; length < good.length; length++) bad.push(good.subarray(0, length));
  bad.push(Buffer.concat([good, Buffer.from('x')]));
  for (const frame of bad) assert.throws(() => new Frame(bytes(frame), EPOCH), ProtocolError);
  for (let i = 0; i < good.length; i++) {
    for (const value of [0, 1, 0x7f, 0xff]) {
      const changed = Buffer.from(good);
      changed[i] = value;
      try {
        new Frame(bytes(changed), EPOCH).entry();
      } catch (error) {
        assert.ok(error instanceof ProtocolError, String(error));
      }
    }
  }
});
