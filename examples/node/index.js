'use strict';

const ms = require('ms');

const SYMBOLS = [
  [1000, 'M'], [900, 'CM'], [500, 'D'], [400, 'CD'], [100, 'C'], [90, 'XC'],
  [50, 'L'], [40, 'XL'], [10, 'X'], [9, 'IX'], [5, 'V'], [4, 'IV'], [1, 'I'],
];

/** A number from 1 to 3999 as the Romans wrote it. */
function roman(number) {
  if (!Number.isInteger(number) || number < 1 || number > 3999) {
    throw new RangeError(`no Roman numeral for ${number}`);
  }
  let text = '';
  let rest = number;
  for (const [value, symbol] of SYMBOLS) {
    for (; rest >= value; rest -= value) text += symbol;
  }
  return text;
}

/** The whole hours of a duration such as "2 days", in Roman numerals. */
function romanHours(duration) {
  return roman(Math.floor(ms(duration) / ms('1h')));
}

module.exports = { roman, romanHours };
