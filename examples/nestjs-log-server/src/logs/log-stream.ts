import { status } from '@grpc/grpc-js';
import type { Appended, Failure, LogHandle } from '../store/requests.js';
import { isFailure } from '../store/requests.js';
import type { Store } from '../store/store.js';
import { pack, position } from './batch.js';
import type { Ack, Batch, Call, Complete, Open, StreamLogsRequest, StreamLogsResponse } from './contract.js';
import { verdict } from './contract.js';
import { StatusError } from './status-error.js';

/** Lines of one stream that may wait for the disk at the same time. They share its next write. */
const maxBatches = 16;
const maxBytes = 4 * 1024 * 1024;
/** How long the relay waits before it sends again what could not be stored. */
const retryAfterSeconds = 1;

/** What a stream tells the others of its service. */
export interface StreamOwner {
  /** The stream holds this log now; whoever held it does no longer. */
  opened(stream: LogStream, log: number): void;
}

/**
 * LogStream serves one StreamLogs call. It takes a message only when there is room for it, so a slow
 * disk slows the relay down and fills no memory, and it answers when lines are stored.
 */
export class LogStream {
  private handle: LogHandle | undefined;
  private waiting = 0;
  private waitingBytes = 0;
  private wake: (() => void) | undefined;
  private ack: Ack | undefined;
  private ackScheduled = false;
  private over = false;

  constructor(
    private readonly call: Call,
    private readonly store: Store,
    private readonly owner: StreamOwner,
  ) {
    call.on('cancelled', () => this.end());
    for (const event of ['readable', 'end', 'drain']) {
      call.on(event, () => this.wake?.());
    }
  }

  /** The log that the stream has opened, by the store's number. */
  get log(): number | undefined {
    return this.handle?.log;
  }

  /** Resolves when the call is over. A call that goes wrong is ended with a status; this rejects only for a bug. */
  async run(): Promise<void> {
    try {
      for (let request = await this.next(); request; request = await this.next()) {
        await this.take(request);
      }
      await this.settled(() => this.waiting === 0);
      this.flush();
      if (!this.over) {
        this.end();
        this.call.end();
      }
    } catch (error) {
      if (error instanceof StatusError) {
        this.fail(error.code, error.details);
      } else {
        this.fail(status.INTERNAL, String(error));
        throw error;
      }
    } finally {
      this.end();
      if (this.handle) {
        await this.store.release(this.handle);
      }
    }
  }

  /** Ends the call with a status. What was stored has been answered, or the next Opened says so. */
  fail(code: status, details: string): void {
    if (!this.over) {
      this.end();
      this.call.emit('error', { code, details });
    }
  }

  private end(): void {
    this.over = true;
    this.wake?.();
  }

  /**
   * The next message, or undefined when there is none to come. An iterator of the call would destroy
   * it at its end, and at an error of ours from outside, and with it the answers and the status that
   * are not sent yet.
   */
  private async next(): Promise<StreamLogsRequest | undefined> {
    while (!this.over) {
      const request = this.call.read() as StreamLogsRequest | null;
      if (request !== null) {
        return request;
      }
      if (this.call.readableEnded) {
        return undefined;
      }
      await this.change();
    }
    return undefined;
  }

  private async take(request: StreamLogsRequest): Promise<void> {
    if (request.message === 'open' && !this.handle) {
      await this.open(request.open!);
    } else if (request.message === 'batch' && this.handle) {
      await this.append(this.handle, request.batch!);
    } else if (request.message === 'complete' && this.handle) {
      await this.complete(this.handle, request.complete!);
    } else {
      const what = request.message ?? 'nothing that this server knows';
      throw new StatusError(status.INVALID_ARGUMENT, this.handle ? `${what} comes within a stream` : `a stream begins with ${what}`);
    }
  }

  private async open(open: Open): Promise<void> {
    if (open.container === '') {
      throw new StatusError(status.INVALID_ARGUMENT, 'a stream names no container');
    }
    const opened = await this.store.open(open.workerUid, open.container, open.restartCount, open.init);
    if (isFailure(opened)) {
      throw failed(opened);
    }
    this.handle = opened.handle;
    this.owner.opened(this, opened.handle.log);
    this.write({ opened: { resume: opened.resume && position(opened.resume), completed: opened.completed } });
  }

  private async append(handle: LogHandle, batch: Batch): Promise<void> {
    const block = pack(batch);
    const bytes = block.columns.byteLength;
    await this.settled(() => this.waiting < maxBatches && (this.waiting === 0 || this.waitingBytes + bytes <= maxBytes));
    await this.store.room();
    if (this.over) {
      return;
    }
    this.waiting++;
    this.waitingBytes += bytes;
    void this.store.append(handle, block).then((answer) => {
      this.waiting--;
      this.waitingBytes -= bytes;
      this.answer(answer);
      this.wake?.();
    });
  }

  private answer(answer: Appended | Failure): void {
    if (!isFailure(answer)) {
      const { sequence } = answer;
      this.acknowledge(
        answer.gap
          ? { verdict: verdict.retry, sequence, reason: 'gap', message: `lines behind line ${sequence} are missing` }
          : { verdict: verdict.ack, sequence },
      );
    } else if (answer.failure === 'unavailable' && answer.sequence > 0) {
      const retryAfter = { seconds: retryAfterSeconds };
      this.acknowledge({ verdict: verdict.retry, sequence: answer.sequence, reason: 'unavailable', message: answer.message, retryAfter });
    } else {
      const error = failed(answer);
      this.fail(error.code, error.details);
    }
  }

  /** Answers soon, and once for all that was stored at once: acknowledgements are cumulative. */
  private acknowledge(ack: Ack): void {
    if (this.ack?.verdict === verdict.retry && ack.verdict === verdict.ack) {
      this.flush(); // the relay has to hear of both
    }
    this.ack = ack;
    if (!this.ackScheduled) {
      this.ackScheduled = true;
      setImmediate(() => {
        this.ackScheduled = false;
        this.flush();
      });
    }
  }

  private flush(): void {
    if (this.ack) {
      const { ack } = this;
      this.ack = undefined;
      this.write({ ack });
    }
  }

  private async complete(handle: LogHandle, complete: Complete): Promise<void> {
    await this.settled(() => this.waiting === 0);
    this.flush();
    const completed = await this.store.complete(handle, {
      lines: complete.lineCount,
      bytes: complete.byteCount,
      gaps: complete.gapCount,
      checksum: Uint8Array.from(complete.checksum),
    });
    if (isFailure(completed)) {
      throw failed(completed);
    }
    this.write({ completed: { matches: completed.matches, message: completed.message } });
  }

  private write(response: StreamLogsResponse): void {
    if (!this.over) {
      this.call.write(response);
    }
  }

  /** Waits until something is so, or the call is over. A relay that reads no answers is waited for, too. */
  private async settled(so: () => boolean): Promise<void> {
    while (!this.over && (!so() || this.call.writableNeedDrain)) {
      await this.change();
    }
  }

  private change(): Promise<void> {
    return new Promise((resolve) => {
      this.wake = resolve;
    });
  }
}

function failed(failure: Failure): StatusError {
  const codes = {
    superseded: status.ABORTED,
    'unknown worker': status.FAILED_PRECONDITION,
    complete: status.FAILED_PRECONDITION,
    unavailable: status.UNAVAILABLE,
  };
  return new StatusError(codes[failure.failure], failure.message);
}
