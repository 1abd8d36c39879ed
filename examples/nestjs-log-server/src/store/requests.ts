/** What the store asks of its writer thread, and what it is told. */

export interface WorkerRecord {
  uid: string;
  namespace: string;
  name: string;
  taskId: string;
  pool: string;
  eventId: string;
  traceparent: string;
  metadata: Record<string, string>;
}

/** Position is a place in a log, kept for the relay as it came. */
export interface PositionRecord {
  sequence: number;
  time: { seconds: number; nanos: number } | null;
  linesInSecond: number;
  bytes: number;
  checksum: Uint8Array;
  gapCount: number;
}

export interface GapRecord {
  reason: string;
  message: string;
  /** Nanoseconds are cut: these times are for people. */
  fromMs: number | null;
  toMs: number | null;
  lines: number;
  bytes: number;
}

/** BlockRecord is a batch, its columns in one piece of memory that changes hands between the threads. */
export interface BlockRecord {
  first: number;
  count: number;
  seconds: number;
  nanos: number;
  /** lengths and deltas of 32 bits each, a byte of streams if there are any, then the lines, each with its line feed. */
  columns: ArrayBuffer;
  hasStreams: boolean;
  gap: GapRecord | null;
  end: PositionRecord;
}

export interface CompleteRecord {
  lines: number;
  bytes: number;
  gaps: number;
  checksum: Uint8Array;
}

export interface ContainerEndRecord {
  container: string;
  restartCount: number;
  exitCode: number | null;
  signal: number;
  reason: string;
  message: string;
  startedMs: number | null;
  finishedMs: number | null;
}

/** IncompleteRecord is a log that the relay has given up, and what it had read behind the last acknowledgement. */
export interface IncompleteRecord {
  container: string;
  restartCount: number;
  init: boolean;
  lines: number;
  bytes: number;
  /** More of it may be missing: it was not read to its end. */
  unread: boolean;
}

/** LogHandle is one stream's hold on a log; the next stream's makes it worthless. */
export interface LogHandle {
  log: number;
  epoch: number;
}

export type Request =
  | { kind: 'register'; worker: WorkerRecord; nowMs: number }
  | { kind: 'open'; workerUid: string; container: string; restartCount: number; init: boolean }
  | { kind: 'append'; handle: LogHandle; block: BlockRecord }
  | { kind: 'complete'; handle: LogHandle; complete: CompleteRecord }
  | { kind: 'release'; handle: LogHandle }
  | { kind: 'finish'; workerUid: string; reason: string; message: string; containers: ContainerEndRecord[]; incomplete: IncompleteRecord[]; nowMs: number }
  | { kind: 'prune'; finishedBeforeMs: number };

/** Failure says why a request did nothing. */
export interface Failure {
  failure: 'superseded' | 'unknown worker' | 'complete' | 'unavailable';
  message: string;
  /** The last line that is stored of the log that it was about. */
  sequence: number;
}

export type Registered = { worker: number };
export type Opened = { worker: number; handle: LogHandle; resume: PositionRecord | null; completed: boolean };
export type Appended = { worker: number; stored: boolean; sequence: number; gap: boolean };
export type Completed = { worker: number; matches: boolean; message: string };
export type Pruned = { workers: number };
export type Answer = Registered | Opened | Appended | Completed | Pruned | Failure;

export function isFailure(answer: Answer): answer is Failure {
  return 'failure' in answer;
}

/** Changed says that something was stored: of a worker, and of one of its logs if it says so. */
export interface Changed {
  kind: Request['kind'];
  worker: number;
  log?: number;
}
