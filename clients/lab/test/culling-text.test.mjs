import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isWarning, warningText } from '../lib/culling-text.js';

const warning = { event: 'culling', seconds: 60, reason: 'idle for 3600 s', idle: true };

test('only complete warnings are recognised', () => {
  assert.ok(isWarning('kernelmux_lifecycle', warning));
  for (const [type, content] of [
    ['status', warning],
    ['kernelmux_lifecycle', { ...warning, event: 'died' }],
    ['kernelmux_lifecycle', { ...warning, seconds: '60' }],
    ['kernelmux_lifecycle', { ...warning, reason: undefined }],
    ['kernelmux_lifecycle', null]
  ]) {
    assert.ok(!isWarning(type, content), JSON.stringify([type, content]));
  }
});

test('the text has the notebook, the time and the reason', () => {
  const text = warningText('a.ipynb', 'idle for 3600 s', new Date(2026, 0, 1, 12, 34, 56));
  assert.match(text, /^The kernel of a\.ipynb will be ended at .*34.56.*: idle for 3600 s\. /);
});
