'use strict';

const assert = require('node:assert');
const { test } = require('node:test');
const { roman, romanHours } = require('..');

test('numbers become numerals', () => {
  assert.strictEqual(roman(4), 'IV');
  assert.strictEqual(roman(1994), 'MCMXCIV');
});

test('what the Romans could not write is refused', () => {
  assert.throws(() => roman(0), RangeError);
});

test('a duration becomes hours', () => {
  assert.strictEqual(romanHours('2 days'), 'XLVIII');
});
