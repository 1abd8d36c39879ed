import { availableParallelism } from 'node:os';
import path from 'node:path';
import { temporaryFolder } from '../test/server.js';
import { openForWriting } from '../src/store/schema.js';
import { Writer } from '../src/store/writer.js';
import type { BlockRecord } from '../src/store/requests.js';

/**
 * What the store takes, without gRPC: lines of 120 bytes in blocks of 500, each transaction durable.
 * Beside it, in the same run, what SQLite takes of the same lines with nothing of ours around it, as
 * blocks and as a row for each line. `make bench` measures the whole server.
 */

const lineBytes = 120;
const linesPerBlock = 500;
const blocksPerGroup = 16;
const seconds = 2;
const data = Buffer.from(`${'a'.repeat(lineBytes)}\n`.repeat(linesPerBlock));

function block(first: number): BlockRecord {
  const columns = new ArrayBuffer(linesPerBlock * (8 + lineBytes + 1));
  new Uint32Array(columns, 0, linesPerBlock).fill(lineBytes);
  new Uint8Array(columns, 8 * linesPerBlock).set(data);
  const end = { sequence: first + linesPerBlock - 1, time: null, linesInSecond: 0, bytes: 0, checksum: new Uint8Array(8), gapCount: 0 };
  return { first, count: linesPerBlock, seconds: 0, nanos: 0, columns, hasStreams: false, gap: null, end };
}

/** Lines a second that a function stores, which stores one group each time it is called. */
function measure(name: string, group: (first: number) => void): number {
  const lines = linesPerBlock * blocksPerGroup;
  let first = 1;
  const begin = performance.now();
  while (performance.now() - begin < seconds * 1000) {
    group(first);
    first += lines;
  }
  const rate = (first - 1) / ((performance.now() - begin) / 1000);
  console.log(`${name.padEnd(44)} ${Math.round(rate).toLocaleString('en').padStart(10)} lines/s`);
  return rate;
}

const folder = temporaryFolder();
console.log(`Node ${process.version}, ${availableParallelism()} cores; lines of ${lineBytes} bytes, ${linesPerBlock} in a block, ${blocksPerGroup} blocks in a transaction`);

const rowDb = openForWriting(path.join(folder.path, 'rows.db'));
rowDb.exec('CREATE TABLE lines (log INTEGER, sequence INTEGER, nanos INTEGER, text BLOB, PRIMARY KEY (log, sequence)) WITHOUT ROWID');
const insertRow = rowDb.prepare('INSERT INTO lines VALUES (1, ?, 0, ?)');
const text = Buffer.alloc(lineBytes, 'a');
measure('raw libsql, a row for each line', (first) => {
  rowDb.exec('BEGIN IMMEDIATE');
  for (let i = 0; i < linesPerBlock * blocksPerGroup; i++) {
    insertRow.run(first + i, text);
  }
  rowDb.exec('COMMIT');
});
rowDb.close();

const blockDb = openForWriting(path.join(folder.path, 'blocks.db'));
blockDb.exec('CREATE TABLE plain (log INTEGER, first INTEGER, count INTEGER, lengths BLOB, deltas BLOB, data BLOB, PRIMARY KEY (log, first))');
const insertBlock = blockDb.prepare('INSERT INTO plain VALUES (1, ?, ?, ?, ?, ?)');
const column = Buffer.alloc(4 * linesPerBlock);
const raw = measure('raw libsql, a row for each block', (first) => {
  blockDb.exec('BEGIN IMMEDIATE');
  for (let i = 0; i < blocksPerGroup; i++) {
    insertBlock.run(first + i * linesPerBlock, linesPerBlock, column, column, data);
  }
  blockDb.exec('COMMIT');
});
blockDb.close();

const writer = new Writer(folder.path);
const worker = { uid: 'u', namespace: '', name: 'w', taskId: '', pool: '', eventId: '', traceparent: '', metadata: {} };
writer.write([{ kind: 'register', worker, nowMs: Date.now() }]);
const [opened] = writer.write([{ kind: 'open', workerUid: 'u', container: 'agent', restartCount: 0, init: false }]);
if (!opened || !('handle' in opened)) {
  throw new Error('the log could not be opened');
}
const { handle } = opened;
const store = measure('the store: checks, checksum, position', (first) => {
  const answers = writer.write(
    Array.from({ length: blocksPerGroup }, (_, i) => ({ kind: 'append' as const, handle, block: block(first + i * linesPerBlock) })),
  );
  if (answers.some((answer) => !('stored' in answer) || !answer.stored)) {
    throw new Error('a block was not stored');
  }
});
writer.close();
folder.remove();
console.log(`${'the store, of the raw library with blocks'.padEnd(44)} ${Math.round((100 * store) / raw)} %`);
