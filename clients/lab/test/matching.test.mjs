import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { match, needsLog } from '../lib/matching.js';
import { sha256 } from '../lib/sha256.js';

const hash = text => createHash('sha256').update(text).digest('hex');
const minute = n => new Date(Date.UTC(2030, 0, 1, 0, n));

let ids = 0;
const cell = (source, id = `cell-${++ids}`, marker = null) => ({ id, source, marker });
const run = (source, cellId, at, more = {}) => ({
  msg_id: `${cellId}@${at}`,
  cellId,
  session: 'page',
  status: 'ok',
  code_hash: hash(source),
  requested: minute(at).toISOString(),
  ended: minute(at).toISOString(),
  ...more
});
const shown = ({ matches }) => matches.map(({ cell, execution }) => [cell, execution.msg_id]);

test('sha256 returns the same digests as Node', () => {
  const texts = ['', 'abc', 'Größe 🦀\n', ...[54, 55, 56, 57, 63, 64, 65, 119, 120, 5000].map(n => 'x'.repeat(n))];
  assert.deepEqual(texts.map(sha256), texts.map(hash));
});

test('an execution belongs to the cell with its id, at any position', () => {
  const cells = [cell('b', 'B'), cell('new'), cell('a', 'A')];
  const found = match(cells, [run('a', 'A', 1), run('b', 'B', 2)], true);
  assert.deepEqual(shown(found), [[2, 'A@1'], [0, 'B@2']]);
});

test('only the newest execution of a cell counts', () => {
  const executions = [run('a', 'A', 3), run('a', 'A', 1), run('a', 'A', 2)];
  assert.deepEqual(shown(match([cell('a', 'A')], executions, true)), [[0, 'A@3']]);
});

test('a cell whose code differs from the executed code is edited', () => {
  const edited = (source, execution) => match([cell(source, 'A')], [execution], true).matches[0].edited;
  assert.equal(edited('a', run('a', 'A', 1)), false);
  assert.equal(edited('a + 1', run('a', 'A', 1)), true);
  assert.equal(edited('a', run('a', 'A', 1, { code_hash: null })), false);
});

test('an execution is an orphan if no cell has its cell id', () => {
  const executions = [run('a', 'A', 1), run('gone', 'G', 2)];
  const { matches, orphans } = match([cell('a', 'A'), cell('gone')], executions, true);
  assert.deepEqual([matches.length, orphans.map(({ msg_id }) => msg_id)], [1, ['G@2']]);
});

test('executions of a console on the same kernel are not orphans', () => {
  const executions = [run('a', 'A', 1), run('in the console', 'C', 2, { session: 'console' })];
  assert.deepEqual(match([cell('a', 'A')], executions, true).orphans, []);
});

test('cells whose ids are not kept are matched by code and order', () => {
  const cells = [cell('same'), cell('other'), cell('same')];
  const executions = [run('same', 'x', 1), run('other', 'y', 2), run('same', 'z', 3)];
  assert.deepEqual(shown(match(cells, executions, false)), [[0, 'x@1'], [1, 'y@2'], [2, 'z@3']]);
  assert.deepEqual(shown(match(cells, executions, true)), []);
});

test('a cell whose id is not kept gets the newest execution of its code', () => {
  const executions = [run('same', 'first page', 1), run('same', 'second page', 2)];
  assert.deepEqual(shown(match([cell('same')], executions, false)), [[0, 'second page@2']]);
});

test('the log is needed only if the document may be incomplete', () => {
  const saved = minute(10);
  const needs = (execution, marker = null) => needsLog(execution, marker, saved);
  assert.equal(needs(run('a', 'A', 5)), false);
  assert.equal(needs(run('a', 'A', 11)), true);
  assert.equal(needs(run('a', 'A', 5, { ended: minute(12).toISOString() })), true);
  assert.equal(needs(run('a', 'A', 5), 'A@5'), true);
  assert.equal(needs(run('a', 'A', 5, { status: 'running', ended: null })), true);
  assert.equal(needs(run('a', 'A', 5, { status: 'queued', ended: null })), true);
  assert.equal(needs(run('a', 'A', 11, { status: 'aborted', ended: null })), false);
});
