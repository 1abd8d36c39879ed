import { status } from '@grpc/grpc-js';
import type { BlockRecord, GapRecord, PositionRecord } from '../store/requests.js';
import type { Batch, Position, Timestamp } from './contract.js';
import { StatusError } from './status-error.js';

/** Checks a batch and packs it for the store. It throws an INVALID_ARGUMENT for one that contradicts itself. */
export function pack(batch: Batch): BlockRecord {
  const { firstSequence: first, lengths, timeDeltas, streams, data, end, gap } = batch;
  const count = lengths.length;
  refuseIf(first < 1 || !Number.isSafeInteger(first), `a batch begins with line ${first}`);
  refuseIf(count === 0, 'a batch has no lines');
  refuseIf(timeDeltas.length !== count, `a batch of ${count} lines has ${timeDeltas.length} time deltas`);
  refuseIf(streams.length !== 0 && streams.length !== count, `a batch of ${count} lines has ${streams.length} streams`);
  refuseIf(end === null, 'a batch has no end');
  refuseIf(end!.sequence !== first + count - 1, `a batch of ${count} lines goes from ${first} to ${end!.sequence}`);
  refuseIf(gap !== null && (count !== 1 || data.length !== 1), `a gap comes with ${count} lines of ${data.length} bytes`);

  const hasStreams = streams.length > 0;
  const columns = new ArrayBuffer((hasStreams ? 9 : 8) * count + data.length);
  const lengthColumn = new Uint32Array(columns, 0, count);
  const deltaColumn = new Uint32Array(columns, 4 * count, count);
  let sum = 0;
  let ended = true;
  for (let i = 0; i < count; i++) {
    sum += lengthColumn[i] = lengths[i]!;
    ended &&= data[sum++] === lineFeed;
    deltaColumn[i] = timeDeltas[i]!;
  }
  refuseIf(sum !== data.length || !ended, `lines of ${sum} bytes, each with its line feed, come with ${data.length} bytes of data`);
  if (hasStreams) {
    new Uint8Array(columns, 8 * count, count).set(streams as number[]);
  }
  new Uint8Array(columns, (hasStreams ? 9 : 8) * count).set(data);
  return {
    first,
    count,
    seconds: batch.baseTime?.seconds ?? 0,
    nanos: batch.baseTime?.nanos ?? 0,
    columns,
    hasStreams,
    gap: gap === null ? null : gapRecord(gap),
    end: positionRecord(end!),
  };
}

const lineFeed = 0x0a;

function refuseIf(wrong: boolean, message: string): void {
  if (wrong) {
    throw new StatusError(status.INVALID_ARGUMENT, message);
  }
}

function gapRecord(gap: NonNullable<Batch['gap']>): GapRecord {
  return {
    reason: gap.reason,
    message: gap.message,
    fromMs: milliseconds(gap.fromTime),
    toMs: milliseconds(gap.toTime),
    lines: gap.lineCount,
    bytes: gap.byteCount,
  };
}

function positionRecord(position: NonNullable<Batch['end']>): PositionRecord {
  return {
    sequence: position.sequence,
    time: position.time && { seconds: position.time.seconds, nanos: position.time.nanos },
    linesInSecond: position.linesInSecond,
    bytes: position.bytes,
    checksum: Uint8Array.from(position.checksum), // a copy of 8 bytes, not of the message around it
    gapCount: position.gapCount,
  };
}

/** The position as the relay sent it. */
export function position(record: PositionRecord): Position {
  return { ...record, checksum: Buffer.from(record.checksum) };
}

/** Milliseconds since 1970, for people: nanoseconds are cut. */
export function milliseconds(time: Timestamp | null): number | null {
  return time && time.seconds * 1000 + Math.floor(time.nanos / 1e6);
}
