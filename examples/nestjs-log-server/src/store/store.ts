import { EventEmitter, once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type {
  Answer, Appended, BlockRecord, Changed, Completed, CompleteRecord, ContainerEndRecord, Failure, IncompleteRecord, LogHandle, Opened, Pruned, Registered, Request, WorkerRecord,
} from './requests.js';
import { isFailure } from './requests.js';

/** Memory that lines may take between the network and the disk, over all streams. */
const maxWaitingBytes = 64 * 1024 * 1024;

/**
 * Store keeps workers and their logs. Every method resolves when its change is on the disk, or to a
 * [Failure] when it did nothing; none rejects.
 */
export class Store {
  /** Emits 'changed' with a [Changed]; 'failed' when the writer is gone for good. */
  readonly events = new EventEmitter<{ changed: [Changed]; failed: [Error] }>();

  private readonly waiting = new Map<number, { request: Request; resolve: (answer: Answer) => void; bytes: number }>();
  private readonly queueing: (() => void)[] = [];
  private nextId = 1;
  private waitingBytes = 0;
  private gone: string | undefined;

  private constructor(private readonly writer: Worker) {
    writer.on('message', (answers: { id: number; answer: Answer }[]) => {
      for (const { id, answer } of answers) {
        this.settle(id, answer);
      }
    });
    writer.on('error', (error) => this.fail(error));
    writer.on('exit', () => this.fail(new Error('the writer has ended')));
    this.events.setMaxListeners(0); // one for each reader of the page
  }

  /** Opens the store in a folder, which is made if it is not there. */
  static async open(folder: string): Promise<Store> {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const writer = new Worker(new URL('./writer-thread.js', import.meta.url), { workerData: { folder } });
    await once(writer, 'message'); // rejects with the error of a writer that cannot begin
    return new Store(writer);
  }

  /** Writes what waits, then ends the writer. */
  async close(): Promise<void> {
    if (this.gone === undefined) {
      this.gone = 'the store is closed';
      const exited = once(this.writer, 'exit');
      this.writer.postMessage('close');
      await exited;
    }
  }

  register(worker: WorkerRecord): Promise<Registered | Failure> {
    return this.ask({ kind: 'register', worker, nowMs: Date.now() });
  }

  open(workerUid: string, container: string, restartCount: number, init: boolean): Promise<Opened | Failure> {
    return this.ask({ kind: 'open', workerUid, container, restartCount, init });
  }

  /** Takes the block's memory with it. */
  append(handle: LogHandle, block: BlockRecord): Promise<Appended | Failure> {
    return this.ask({ kind: 'append', handle, block }, block.columns);
  }

  complete(handle: LogHandle, complete: CompleteRecord): Promise<Completed | Failure> {
    return this.ask({ kind: 'complete', handle, complete });
  }

  release(handle: LogHandle): Promise<Answer> {
    return this.ask({ kind: 'release', handle });
  }

  finish(
    workerUid: string, reason: string, message: string, containers: ContainerEndRecord[], incomplete: IncompleteRecord[],
  ): Promise<Registered | Failure> {
    return this.ask({ kind: 'finish', workerUid, reason, message, containers, incomplete, nowMs: Date.now() });
  }

  /** Deletes some of the workers that ended before a time, with their logs; it says how many. */
  prune(finishedBeforeMs: number): Promise<Pruned | Failure> {
    return this.ask({ kind: 'prune', finishedBeforeMs });
  }

  /** Resolves when there is room for more lines between the network and the disk. */
  async room(): Promise<void> {
    while (this.waitingBytes >= maxWaitingBytes) {
      await new Promise<void>((resolve) => this.queueing.push(resolve));
    }
  }

  private ask<A extends Answer>(request: Request, memory?: ArrayBuffer): Promise<A | Failure> {
    if (this.gone !== undefined) {
      return Promise.resolve({ failure: 'unavailable', message: this.gone, sequence: 0 });
    }
    const id = this.nextId++;
    const bytes = memory?.byteLength ?? 0;
    this.waitingBytes += bytes;
    return new Promise<A | Failure>((resolve) => {
      this.waiting.set(id, { request, resolve: resolve as (answer: Answer) => void, bytes });
      this.writer.postMessage({ id, request }, memory ? [memory] : []);
    });
  }

  private settle(id: number, answer: Answer): void {
    const { request, resolve, bytes } = this.waiting.get(id)!;
    this.waiting.delete(id);
    this.waitingBytes -= bytes;
    resolve(answer);
    if (!isFailure(answer) && 'worker' in answer && request.kind !== 'release') {
      const log = 'handle' in request ? request.handle.log : 'handle' in answer ? answer.handle.log : undefined;
      this.events.emit('changed', { kind: request.kind, worker: answer.worker, ...(log === undefined ? {} : { log }) });
    }
    if (this.waitingBytes < maxWaitingBytes) {
      for (const proceed of this.queueing.splice(0)) {
        proceed();
      }
    }
  }

  private fail(error: Error): void {
    if (this.gone !== undefined) {
      return; // we closed it
    }
    this.gone = error.message;
    for (const id of [...this.waiting.keys()]) {
      this.settle(id, { failure: 'unavailable', message: error.message, sequence: 0 });
    }
    this.events.emit('failed', error);
  }
}
