import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Crc64 } from '../src/store/crc64.js';

function sum(...pieces: Uint8Array[]): string {
  const crc = new Crc64();
  for (const piece of pieces) {
    crc.update(piece);
  }
  return crc.bytes().toString('hex');
}

test('the checksum is CRC-64/NVME', () => {
  // The check value of https://reveng.sourceforge.io/crc-catalogue/17plus.htm#crc.cat.crc-64-nvme.
  assert.equal(sum(Buffer.from('123456789')), 'ae8b14860a799888');
  assert.equal(sum(), '0000000000000000');
});

test('pieces of any size make the same checksum as the whole', () => {
  const whole = Buffer.from(Array.from({ length: 1000 }, (_, i) => (i * 167 + (i >> 3)) & 0xff));
  for (let cut = 0; cut <= whole.length; cut += 7) {
    assert.equal(sum(whole.subarray(0, cut), whole.subarray(cut)), sum(whole));
  }
});

test('a checksum goes on from its bytes', () => {
  const first = new Crc64();
  first.update(Buffer.from('12345'));
  const second = Crc64.from(first.bytes());
  second.update(Buffer.from('6789'));
  assert.equal(second.bytes().toString('hex'), 'ae8b14860a799888');
});
