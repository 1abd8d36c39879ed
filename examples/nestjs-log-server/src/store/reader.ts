import path from 'node:path';
import type Database from 'libsql';
import { openForReading } from './schema.js';
import type { GapRecord } from './requests.js';

/** A line as the page shows it. */
export interface Line {
  sequence: number;
  /** ISO 8601 with nanoseconds. */
  time: string;
  stream: 'stdout' | 'stderr' | null;
  /** What is not UTF-8 is replaced. */
  text: string;
  /** Bytes of a long line that are not in text. */
  cut?: number;
  gap?: GapRecord;
}

export interface Filter {
  /** Text that lines must hold, in whatever case. Gaps always pass: a log without them would lie. */
  text?: string | undefined;
  stream?: 'stdout' | 'stderr' | undefined;
}

/** A page of lines in their order, and how far it was looked for them. */
export interface Page {
  lines: Line[];
  /** The numbers looked at, both inclusive; through is from - 1 when there were none. */
  from: number;
  through: number;
}

export interface WorkerView {
  id: number;
  uid: string;
  namespace: string;
  name: string;
  taskId: string;
  pool: string;
  eventId: string;
  traceparent: string;
  metadata: Record<string, string>;
  registeredMs: number;
  finishedMs: number | null;
  reason: string;
  message: string;
  lines: number;
  bytes: number;
  gaps: number;
  ends: ContainerEndView[];
  logs: LogView[];
}

export interface ContainerEndView {
  container: string;
  restartCount: number;
  exitCode: number | null;
  signal: number;
  reason: string;
  message: string;
  startedMs: number | null;
  finishedMs: number | null;
}

export interface LogView {
  id: number;
  container: string;
  restartCount: number;
  init: boolean;
  lines: number;
  bytes: number;
  gaps: number;
  complete: boolean;
  matches: boolean;
  mismatch: string;
}

/** How much of a line the page is shown; the rest is in the download. */
export const longestShownLine = 16 * 1024;
/** How much is read before others get their turn. */
const blocksAtOnce = 16;
/** How much of a log one search looks through. */
const bytesPerSearch = 64 * 1024 * 1024;

type BlockRow = [
  first: number, count: number, seconds: number, nanos: number,
  lengths: Buffer, deltas: Buffer, streams: Buffer | null, gap: string | null, data: Buffer,
];

const streamNames = [null, 'stdout', 'stderr'] as const;

/** Reader looks at what is stored. It may be used by many at once, and none holds a transaction open. */
export class Reader {
  private readonly db: Database.Database;
  private readonly statements: ReturnType<typeof prepare>;

  constructor(folder: string) {
    this.db = openForReading(path.join(folder, 'logs.db'));
    this.statements = prepare(this.db);
  }

  close(): void {
    this.db.close();
  }

  /** The newest workers, or those registered before one of them. */
  workers(limit: number, before?: number): WorkerView[] {
    const rows = this.statements.workers.all(before ?? Number.MAX_SAFE_INTEGER, limit) as WorkerRow[];
    return rows.map((row) => this.view(row));
  }

  worker(uid: string): WorkerView | undefined {
    const row = this.statements.workerByUid.get(uid) as WorkerRow | undefined;
    return row && this.view(row);
  }

  workerById(id: number): WorkerView | undefined {
    const row = this.statements.workerById.get(id) as WorkerRow | undefined;
    return row && this.view(row);
  }

  private view(row: WorkerRow): WorkerView {
    const [id, uid, namespace, name, taskId, pool, eventId, traceparent, metadata, registeredMs, finishedMs, reason, message] = row;
    const logs = (this.statements.logs.all(id) as LogRow[]).map(logView);
    const ends = (this.statements.ends.all(id) as EndRow[]).map(
      ([container, restartCount, exitCode, signal, endReason, endMessage, startedMs, endedMs]) => ({
        container, restartCount, exitCode, signal, reason: endReason, message: endMessage, startedMs, finishedMs: endedMs,
      }),
    );
    const sum = (of: (log: LogView) => number): number => logs.reduce((total, log) => total + of(log), 0);
    return {
      id, uid, namespace, name, taskId, pool, eventId, traceparent,
      metadata: JSON.parse(metadata) as Record<string, string>,
      registeredMs, finishedMs, reason, message,
      lines: sum((log) => log.lines), bytes: sum((log) => log.bytes), gaps: sum((log) => log.gaps),
      ends, logs,
    };
  }

  /** A log with its worker's number and name. */
  log(id: number): { log: LogView; worker: number; name: string } | undefined {
    const row = this.statements.log.get(id) as [number, string, ...LogRow] | undefined;
    if (!row) {
      return undefined;
    }
    const [worker, name, ...log] = row;
    return { log: logView(log), worker, name };
  }

  /** The first lines behind a number that pass the filter. */
  async linesAfter(log: number, after: number, limit: number, filter: Filter = {}): Promise<Page> {
    const matcher = new Matcher(filter);
    const lines: Line[] = [];
    let through = after;
    let seen = 0;
    for (;;) {
      const rows = this.statements.blocksAfter.all(log, through + 1, blocksAtOnce) as BlockRow[];
      for (const row of rows) {
        const block = new Block(row);
        for (const i of matcher.indexes(block, through + 1 - block.first)) {
          lines.push(block.line(i));
          if (lines.length === limit) {
            return { lines, from: after + 1, through: block.first + i };
          }
        }
        through = block.last;
        seen += block.size;
      }
      if (rows.length < blocksAtOnce || seen >= bytesPerSearch) {
        return { lines, from: after + 1, through };
      }
      await yieldToOthers();
    }
  }

  /** The last lines before a number that pass the filter. */
  async linesBefore(log: number, before: number, limit: number, filter: Filter = {}): Promise<Page> {
    const matcher = new Matcher(filter);
    const backwards: Line[] = [];
    let from = before;
    let through: number | undefined;
    let seen = 0;
    for (;;) {
      const rows = this.statements.blocksBefore.all(log, from - 1, blocksAtOnce) as BlockRow[];
      for (const row of rows) {
        const block = new Block(row);
        const end = Math.min(block.count, from - block.first);
        through ??= block.first + end - 1;
        for (const i of [...matcher.indexes(block, 0, end)].reverse()) {
          backwards.push(block.line(i));
          if (backwards.length === limit) {
            return { lines: backwards.reverse(), from: block.first + i, through };
          }
        }
        from = block.first;
        seen += block.size;
      }
      if (rows.length < blocksAtOnce || seen >= bytesPerSearch) {
        const first = through === undefined ? 1 : from;
        return { lines: backwards.reverse(), from: first, through: through ?? first - 1 };
      }
      await yieldToOthers();
    }
  }

  /** The bytes of a log's lines, each ended by a line feed, up to where it ends now. */
  *download(log: number): Generator<Buffer> {
    let next = 1;
    for (;;) {
      const rows = this.statements.dataAfter.all(log, next, blocksAtOnce) as [number, number, Buffer][];
      for (const [first, count, data] of rows) {
        yield data;
        next = first + count;
      }
      if (rows.length < blocksAtOnce) {
        return;
      }
    }
  }
}

function yieldToOthers(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** A stored block, taken apart line by line where somebody asks. */
class Block {
  readonly first: number;
  readonly count: number;
  readonly data: Buffer;
  private readonly offsets: Float64Array;
  private elapsed: Float64Array | undefined; // nanoseconds since the first line

  constructor(private readonly row: BlockRow) {
    const [first, count, , , lengths, , , , data] = row;
    this.first = first;
    this.count = count;
    this.data = data;
    this.offsets = new Float64Array(count + 1);
    let offset = 0;
    for (let i = 0; i < count; i++) {
      this.offsets[i] = offset;
      offset += lengths.readUInt32LE(4 * i) + 1;
    }
    this.offsets[count] = offset;
  }

  get last(): number {
    return this.first + this.count - 1;
  }

  get size(): number {
    return this.data.length;
  }

  get isGap(): boolean {
    return this.row[7] !== null;
  }

  /** 0, 1 or 2, as the protocol numbers them. */
  stream(i: number): number {
    return this.row[6]?.[i] ?? 0;
  }

  bytes(i: number): Buffer {
    return this.data.subarray(this.offsets[i], this.offsets[i + 1]! - 1);
  }

  line(i: number): Line {
    const bytes = this.bytes(i);
    const line: Line = {
      sequence: this.first + i,
      time: this.time(i),
      stream: streamNames[this.stream(i)] ?? null,
      text: bytes.toString('utf8', 0, longestShownLine),
    };
    if (bytes.length > longestShownLine) {
      line.cut = bytes.length - longestShownLine;
    }
    if (this.row[7] !== null) {
      line.gap = JSON.parse(this.row[7]) as GapRecord;
    }
    return line;
  }

  private time(i: number): string {
    const [, , seconds, nanos, , deltas] = this.row;
    if (this.elapsed === undefined) {
      this.elapsed = new Float64Array(this.count);
      for (let k = 1; k < this.count; k++) {
        this.elapsed[k] = this.elapsed[k - 1]! + deltas.readUInt32LE(4 * k);
      }
    }
    const sum = nanos + this.elapsed[i]!;
    const date = new Date((seconds + Math.floor(sum / 1e9)) * 1000);
    return `${date.toISOString().slice(0, 19)}.${String(sum % 1e9).padStart(9, '0')}Z`;
  }
}

/** Matcher finds the lines of a block that pass a filter, and leaves a block that has none quickly. */
class Matcher {
  private readonly needle: string;
  private readonly stream: number;

  constructor(filter: Filter) {
    this.needle = (filter.text ?? '').toLowerCase();
    this.stream = streamNames.indexOf(filter.stream ?? null);
  }

  *indexes(block: Block, from: number, to = block.count): Generator<number> {
    if (block.isGap) {
      if (from <= 0 && to > 0) {
        yield 0;
      }
      return;
    }
    if (this.needle !== '' && !block.data.toString('utf8').toLowerCase().includes(this.needle)) {
      return;
    }
    for (let i = Math.max(from, 0); i < to; i++) {
      const right = this.stream <= 0 || block.stream(i) === this.stream;
      if (right && (this.needle === '' || block.bytes(i).toString('utf8').toLowerCase().includes(this.needle))) {
        yield i;
      }
    }
  }
}

type WorkerRow = [
  number, string, string, string, string, string, string, string, string, number, number | null, string, string,
];
type LogRow = [number, string, number, number, number, number, number, number, number, string];
type EndRow = [string, number, number | null, number, string, string, number | null, number | null];

function logView([id, container, restartCount, init, lines, bytes, gaps, complete, matches, mismatch]: LogRow): LogView {
  return {
    id, container, restartCount, init: init === 1, lines, bytes, gaps, complete: complete === 1, matches: matches === 1, mismatch,
  };
}

function prepare(db: Database.Database) {
  const worker = `SELECT id, uid, namespace, name, task_id, pool, event_id, traceparent, metadata,
    registered_ms, finished_ms, reason, message FROM workers`;
  const log = 'l.id, l.container, l.restart_count, l.init, l.lines, l.bytes, l.gaps, l.complete, l.matches, l.mismatch';
  const block = 'SELECT first, count, seconds, nanos, lengths, deltas, streams, gap, data FROM blocks';
  return {
    workers: db.prepare(`${worker} WHERE id < ? ORDER BY id DESC LIMIT ?`).raw(),
    workerByUid: db.prepare(`${worker} WHERE uid = ?`).raw(),
    workerById: db.prepare(`${worker} WHERE id = ?`).raw(),
    logs: db.prepare(`SELECT ${log} FROM logs l WHERE worker = ? ORDER BY init DESC, container, restart_count`).raw(),
    log: db.prepare(`SELECT w.id, w.name, ${log} FROM logs l JOIN workers w ON w.id = l.worker WHERE l.id = ?`).raw(),
    ends: db
      .prepare(
        `SELECT container, restart_count, exit_code, signal, reason, message, started_ms, finished_ms
         FROM container_ends WHERE worker = ? ORDER BY container`,
      )
      .raw(),
    // The block that a number lies in begins at or before it.
    blocksAfter: db
      .prepare(
        `${block} WHERE log = ?1 AND first >= coalesce((SELECT max(first) FROM blocks WHERE log = ?1 AND first <= ?2), 1)
         AND first + count > ?2 ORDER BY first LIMIT ?3`,
      )
      .raw(),
    blocksBefore: db.prepare(`${block} WHERE log = ? AND first <= ? ORDER BY first DESC LIMIT ?`).raw(),
    dataAfter: db.prepare('SELECT first, count, data FROM blocks WHERE log = ? AND first >= ? ORDER BY first LIMIT ?').raw(),
  };
}
