import { Crc64 } from './crc64.js';
import { lockFolder, openForWriting } from './schema.js';
import type { Answer, BlockRecord, CompleteRecord, Failure, IncompleteRecord, LogHandle, Opened, PositionRecord, Request } from './requests.js';
import type Database from 'libsql';
import path from 'node:path';

/** LogState is what the writer remembers of a log while a stream is open. It never runs ahead of the disk. */
interface LogState {
  readonly log: number;
  readonly worker: number;
  epoch: number;
  complete: boolean;
  lines: number;
  bytes: number;
  gaps: number;
  checksum: Crc64;
  end: PositionRecord | null;
}

type LogRow = [
  worker: number, lines: number, bytes: number, gaps: number, checksum: Buffer,
  endSeconds: number | null, endNanos: number | null, endLinesInSecond: number, endBytes: number, endChecksum: Buffer,
  endGaps: number, complete: number,
];

const pruneAtOnce = 10;

/**
 * Writer is the only one that writes to the database. It takes requests in groups, and a group is
 * one transaction: what waits while the disk is busy shares the next wait for it.
 */
export class Writer {
  private readonly lock: Database.Database;
  private readonly db: Database.Database;
  private readonly statements: ReturnType<typeof prepare>;
  private readonly logs = new Map<number, LogState>();
  /** Logs that the transaction changes, as they were before it. */
  private readonly before = new Map<number, LogState>();
  /** Logs to forget behind the transaction. */
  private readonly released = new Set<number>();
  private epoch = 0;

  constructor(folder: string) {
    this.lock = lockFolder(path.join(folder, 'lock.db'));
    this.db = openForWriting(path.join(folder, 'logs.db'));
    this.statements = prepare(this.db);
  }

  close(): void {
    this.db.close();
    this.lock.close();
  }

  /** Answers each request, in its order. What is answered without a failure is on the disk. */
  write(requests: readonly Request[]): Answer[] {
    try {
      return this.transact(requests);
    } catch (error) {
      if (requests.length > 1 && !isOfTheDatabase(error)) {
        return requests.flatMap((request) => this.write([request])); // one must not spoil the others
      }
      return requests.map((request) => {
        const log = 'handle' in request ? this.logs.get(request.handle.log) : undefined;
        return { failure: 'unavailable', message: String(error), sequence: log?.lines ?? 0 };
      });
    }
  }

  private transact(requests: readonly Request[]): Answer[] {
    this.before.clear();
    this.released.clear();
    this.db.exec('BEGIN IMMEDIATE');
    try {
      const answers = requests.map((request) => this.apply(request));
      for (const log of this.before.keys()) {
        this.saveLog(this.logs.get(log)!);
      }
      this.db.exec('COMMIT');
      for (const log of this.released) {
        this.logs.delete(log);
      }
      return answers;
    } catch (error) {
      for (const [log, state] of this.before) {
        this.logs.set(log, state);
      }
      if (this.db.inTransaction) {
        this.db.exec('ROLLBACK');
      }
      throw error;
    }
  }

  private apply(request: Request): Answer {
    switch (request.kind) {
      case 'register':
        return this.register(request);
      case 'open':
        return this.open(request);
      case 'append':
        return this.append(request.handle, request.block);
      case 'complete':
        return this.complete(request.handle, request.complete);
      case 'release':
        return this.release(request.handle);
      case 'finish':
        return this.finish(request);
      case 'prune':
        return this.prune(request.finishedBeforeMs);
    }
  }

  private register({ worker, nowMs }: Request & { kind: 'register' }): Answer {
    this.statements.register.run(
      worker.uid, worker.namespace, worker.name, worker.taskId, worker.pool, worker.eventId, worker.traceparent,
      JSON.stringify(worker.metadata), nowMs,
    );
    return { worker: this.workerId(worker.uid)! };
  }

  private workerId(uid: string): number | undefined {
    return (this.statements.worker.get(uid) as [number] | undefined)?.[0];
  }

  private open(request: Request & { kind: 'open' }): Opened | Failure {
    const worker = this.workerId(request.workerUid);
    if (worker === undefined) {
      return unknownWorker(request.workerUid);
    }
    const state = this.log(worker, request.container, request.restartCount, request.init);
    // Streams are numbered through, so that a number never comes back.
    this.touch(state);
    this.released.delete(state.log);
    state.epoch = ++this.epoch;
    return { worker, handle: { log: state.log, epoch: state.epoch }, resume: state.end, completed: state.complete };
  }

  /** The log of a container instance, which is made if need be. */
  private log(worker: number, container: string, restartCount: number, init: boolean): LogState {
    this.statements.makeLog.run(worker, container, restartCount, init ? 1 : 0);
    const [log] = this.statements.findLog.get(worker, container, restartCount) as [number];
    return this.logs.get(log) ?? this.loadLog(log);
  }

  private loadLog(log: number): LogState {
    const row = this.statements.loadLog.get(log) as LogRow;
    const [worker, lines, bytes, gaps, checksum, endSeconds, endNanos, endLinesInSecond, endBytes, endChecksum, endGaps, complete] = row;
    const state: LogState = {
      log, worker, epoch: 0, complete: complete === 1, lines, bytes, gaps, checksum: Crc64.from(checksum), end: null,
    };
    if (lines > 0) {
      const time = endSeconds === null ? null : { seconds: endSeconds, nanos: endNanos! };
      state.end = { sequence: lines, time, linesInSecond: endLinesInSecond, bytes: endBytes, checksum: endChecksum, gapCount: endGaps };
    }
    this.logs.set(log, state);
    return state;
  }

  /** Remembers a log as it is, before it is changed. */
  private touch(state: LogState): void {
    if (!this.before.has(state.log)) {
      this.before.set(state.log, { ...state, checksum: state.checksum.clone() });
    }
  }

  private saveLog(s: LogState): void {
    this.statements.saveLog.run(
      s.lines, s.bytes, s.gaps, s.checksum.bytes(), s.end?.time?.seconds ?? null, s.end?.time?.nanos ?? null,
      s.end?.linesInSecond ?? 0, s.end?.bytes ?? 0, s.end?.checksum ?? Buffer.alloc(0), s.end?.gapCount ?? 0, s.log,
    );
  }

  private held(handle: LogHandle): LogState | Failure {
    const state = this.logs.get(handle.log);
    if (state?.epoch !== handle.epoch) {
      return { failure: 'superseded', message: 'another stream has taken over this log', sequence: 0 };
    }
    return state;
  }

  private append(handle: LogHandle, block: BlockRecord): Answer {
    const state = this.held(handle);
    if ('failure' in state) {
      return state;
    }
    const { worker } = state;
    const last = block.first + block.count - 1;
    if (block.first > state.lines + 1) {
      return { worker, stored: false, sequence: state.lines, gap: true };
    }
    if (last <= state.lines) {
      return { worker, stored: false, sequence: last, gap: false };
    }
    if (state.complete) {
      return { failure: 'complete', message: `the log is complete with ${state.lines} lines`, sequence: state.lines };
    }
    this.touch(state);
    const row = columns(block, state.lines + 1 - block.first);
    this.statements.block.run(
      handle.log, row.first, row.count, row.seconds, row.nanos, row.lengths, row.deltas, row.streams,
      block.gap === null ? null : JSON.stringify(block.gap), row.data,
    );
    state.lines = last;
    state.bytes += row.data.length - row.count;
    state.gaps += block.gap === null ? 0 : 1;
    state.checksum.update(row.data);
    state.end = block.end;
    return { worker, stored: true, sequence: last, gap: false };
  }

  private complete(handle: LogHandle, complete: CompleteRecord): Answer {
    const state = this.held(handle);
    if ('failure' in state) {
      return state;
    }
    const differences: string[] = [];
    const compare = (what: string, theirs: number | string, ours: number | string): void => {
      if (theirs !== ours) {
        differences.push(`${what}: the relay has ${theirs}, the server ${ours}`);
      }
    };
    compare('lines', complete.lines, state.lines);
    compare('bytes', complete.bytes, state.bytes);
    compare('gaps', complete.gaps, state.gaps);
    const theirs = Buffer.from(complete.checksum).toString('hex') || '0'.repeat(16);
    compare('checksum', theirs, state.checksum.bytes().toString('hex'));
    const message = differences.join('; ');
    if (!state.complete) {
      this.touch(state);
      state.complete = true;
      this.statements.complete.run(message === '' ? 1 : 0, message, handle.log);
    }
    return { worker: state.worker, matches: message === '', message };
  }

  /** Forgets a log whose stream has ended. It is loaded again if there is another one. */
  private release(handle: LogHandle): Answer {
    const state = this.held(handle);
    if ('failure' in state) {
      return state;
    }
    this.released.add(handle.log);
    return { worker: state.worker };
  }

  private finish(request: Request & { kind: 'finish' }): Answer {
    const worker = this.workerId(request.workerUid);
    if (worker === undefined) {
      return unknownWorker(request.workerUid);
    }
    const { changes } = this.statements.finish.run(request.nowMs, request.reason, request.message, worker);
    if (changes > 0) {
      for (const c of request.containers) {
        this.statements.containerEnd.run(
          worker, c.container, c.restartCount, c.exitCode, c.signal, c.reason, c.message, c.startedMs, c.finishedMs,
        );
      }
      for (const log of request.incomplete) {
        this.giveUp(worker, log);
      }
    }
    return { worker };
  }

  /** Ends a log of which no more will come. All of it may be here, if only the answer was lost. */
  private giveUp(worker: number, given: IncompleteRecord): void {
    const state = this.log(worker, given.container, given.restartCount, given.init);
    if (!state.complete) {
      this.touch(state);
      state.complete = true;
      const message = `${given.lines} lines (${given.bytes} bytes) behind it were given up${given.unread ? ', and it was not read to its end' : ''}`;
      this.statements.complete.run(0, message, state.log);
    }
  }

  private prune(finishedBeforeMs: number): Answer {
    return { workers: this.statements.prune.run(finishedBeforeMs, pruneAtOnce).changes };
  }
}

/** An error that any other request would meet as well, such as a full disk (https://sqlite.org/rescode.html). */
function isOfTheDatabase(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  return /^SQLITE_(BUSY|FULL|IOERR|CANTOPEN|READONLY|CORRUPT|NOTADB|LOCKED|NOMEM)/.test(code);
}

function unknownWorker(uid: string): Failure {
  return { failure: 'unknown worker', message: `worker ${uid} is not registered`, sequence: 0 };
}

/** Cuts a block into the columns of its row, without the lines at its beginning that are held already. */
export function columns(block: BlockRecord, held: number) {
  const count = block.count - held;
  const lengths = new Uint32Array(block.columns, 0, block.count);
  const deltas = new Uint32Array(block.columns, 4 * block.count, block.count);
  const streams = block.hasStreams ? new Uint8Array(block.columns, 8 * block.count, block.count) : null;
  const text = new Uint8Array(block.columns, (block.hasStreams ? 9 : 8) * block.count);
  let skipped = 0;
  let nanos = block.nanos;
  for (let i = 0; i < held; i++) {
    skipped += lengths[i]! + 1;
    nanos += deltas[i + 1]!; // held is less than count, so there is one more
  }
  // A copy: a group that fails is tried again with the same blocks.
  const after = deltas.slice(held);
  after[0] = 0;
  return {
    first: block.first + held,
    count,
    seconds: block.seconds + Math.floor(nanos / 1e9),
    nanos: nanos % 1e9,
    lengths: asBuffer(lengths.subarray(held)),
    deltas: asBuffer(after),
    streams: streams && asBuffer(streams.subarray(held)),
    data: asBuffer(text.subarray(skipped)),
  };
}

function asBuffer(view: Uint8Array | Uint32Array): Buffer {
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}

function prepare(db: Database.Database) {
  return {
    register: db.prepare(
      `INSERT INTO workers (uid, namespace, name, task_id, pool, event_id, traceparent, metadata, registered_ms)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (uid) DO NOTHING`,
    ),
    worker: db.prepare('SELECT id FROM workers WHERE uid = ?').raw(),
    makeLog: db.prepare(
      `INSERT INTO logs (worker, container, restart_count, init) VALUES (?, ?, ?, ?)
       ON CONFLICT (worker, container, restart_count) DO NOTHING`,
    ),
    findLog: db.prepare('SELECT id FROM logs WHERE worker = ? AND container = ? AND restart_count = ?').raw(),
    loadLog: db
      .prepare(
        `SELECT worker, lines, bytes, gaps, checksum, end_seconds, end_nanos, end_lines_in_second, end_bytes, end_checksum, end_gaps, complete
         FROM logs WHERE id = ?`,
      )
      .raw(),
    block: db.prepare(
      `INSERT INTO blocks (log, first, count, seconds, nanos, lengths, deltas, streams, gap, data)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    saveLog: db.prepare(
      `UPDATE logs SET lines = ?, bytes = ?, gaps = ?, checksum = ?,
         end_seconds = ?, end_nanos = ?, end_lines_in_second = ?, end_bytes = ?, end_checksum = ?, end_gaps = ? WHERE id = ?`,
    ),
    complete: db.prepare('UPDATE logs SET complete = 1, matches = ?, mismatch = ? WHERE id = ?'),
    finish: db.prepare('UPDATE workers SET finished_ms = ?, reason = ?, message = ? WHERE id = ? AND finished_ms IS NULL'),
    containerEnd: db.prepare(
      `INSERT INTO container_ends (worker, container, restart_count, exit_code, signal, reason, message, started_ms, finished_ms)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (worker, container) DO NOTHING`,
    ),
    prune: db.prepare('DELETE FROM workers WHERE id IN (SELECT id FROM workers WHERE finished_ms < ? ORDER BY finished_ms LIMIT ?)'),
  };
}
