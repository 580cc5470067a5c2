import assert from 'node:assert/strict';
import { test } from 'node:test';
import { endText, startText, statusText } from '../lib/status-text.js';

const time = date => date.toISOString().slice(11, 16);
const facts = more => ({ version: 1, features: [], phase: 'ready', reason: null, ...more });

test('a running kernel has a place, resources and a time', () => {
  const running = facts({
    place: 'pod kernel-1',
    resources: { cpu: '2', memory: '4Gi', gpu: '1' },
    started: '2030-01-01T14:02:00Z'
  });
  assert.equal(statusText(running, time), 'pod kernel-1 · 2 CPU, 4Gi, 1 GPU · since 14:02');
  assert.equal(statusText(facts({ place: null, resources: null }), time), '');
});

test('a start has steps and a cause of failure', () => {
  assert.equal(startText({ phase: 'pulling', reason: null }), 'Kernel image is being pulled');
  assert.equal(startText({ phase: 'queued', reason: 'no node has 1 GPU' }), 'Kernel is waiting for a node: no node has 1 GPU');
  assert.equal(startText({ phase: 'failed', reason: 'no such image' }), 'Kernel did not start: no such image');
  assert.equal(startText({ phase: 'ready', reason: null }), '');
});

test('an end has a cause', () => {
  assert.equal(endText({ phase: 'dead', reason: 'culled: idle for 600 s' }), 'Kernel ended: culled: idle for 600 s');
  assert.equal(statusText(facts({ phase: 'dead', reason: 'out of memory' }), time), 'Kernel ended: out of memory');
  assert.equal(endText({ phase: 'ready', reason: null }), '');
});
