import { credentials, loadPackageDefinition, Metadata } from '@grpc/grpc-js';
import type { ChannelCredentials, ClientDuplexStream, ServiceError } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { loader, protoFile } from '../src/logs/contract.js';
import type { LogServiceClient } from '../src/gen/ottoscaler/logs/v1/LogService.js';
import type { ProtoGrpcType } from '../src/gen/logs.js';
import type { Position } from '../src/logs/contract.js';
import type { Batch } from '../src/gen/ottoscaler/logs/v1/Batch.js';
import type { FinishWorkerRequest } from '../src/gen/ottoscaler/logs/v1/FinishWorkerRequest.js';
import type { StreamLogsRequest } from '../src/gen/ottoscaler/logs/v1/StreamLogsRequest.js';
import type { StreamLogsResponse__Output } from '../src/gen/ottoscaler/logs/v1/StreamLogsResponse.js';
import type { Worker } from '../src/gen/ottoscaler/logs/v1/Worker.js';
import { Crc64 } from '../src/store/crc64.js';

/** A relay by hand: the protocol's other side, for tests and the benchmark. */

export function client(address: string, channel: ChannelCredentials = credentials.createInsecure()): LogServiceClient {
  const { ottoscaler } = loadPackageDefinition(loadSync(protoFile, loader)) as unknown as ProtoGrpcType;
  return new ottoscaler.logs.v1.LogService(address, channel);
}

export function register(to: LogServiceClient, worker: Worker, metadata = new Metadata()): Promise<unknown> {
  return unary((done) => to.registerWorker({ worker }, metadata, { deadline: Date.now() + 20_000 }, done));
}

export function finish(to: LogServiceClient, request: FinishWorkerRequest): Promise<unknown> {
  return unary((done) => to.finishWorker(request, new Metadata(), { deadline: Date.now() + 20_000 }, done));
}

function unary<T>(call: (done: (error: ServiceError | null, answer?: T) => void) => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    call((error, answer) => (error ? reject(error) : resolve(answer!)));
  });
}

export type LineText = string | Buffer;

/** RelayStream is the stream of one container instance. It counts as a relay counts. */
export class RelayStream {
  readonly answers: StreamLogsResponse__Output[] = [];
  ended: ServiceError | 'ok' | undefined;
  sequence = 0;
  bytes = 0;
  gaps = 0;
  sum = new Crc64();
  private readonly call: ClientDuplexStream<StreamLogsRequest, StreamLogsResponse__Output>;
  private waiters: (() => void)[] = [];

  constructor(to: LogServiceClient, metadata = new Metadata()) {
    this.call = to.streamLogs(metadata) as ClientDuplexStream<StreamLogsRequest, StreamLogsResponse__Output>;
    this.call.on('data', (answer: StreamLogsResponse__Output) => {
      this.answers.push(answer);
      this.wake();
    });
    this.call.on('error', (error: ServiceError) => this.end(error));
    this.call.on('end', () => this.end('ok'));
  }

  private end(how: ServiceError | 'ok'): void {
    this.ended ??= how;
    this.wake();
  }

  private wake(): void {
    for (const waiter of this.waiters.splice(0)) {
      waiter();
    }
  }

  async answer(): Promise<StreamLogsResponse__Output> {
    while (this.answers.length === 0) {
      if (this.ended) {
        throw this.ended === 'ok' ? new Error('the stream has ended') : this.ended;
      }
      await this.changed();
    }
    return this.answers.shift()!;
  }

  /** Resolves with how the stream ends. */
  async outcome(): Promise<ServiceError | 'ok'> {
    while (!this.ended) {
      await this.changed();
    }
    return this.ended;
  }

  private changed(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('nothing came for 30 seconds')), 30_000);
      this.waiters.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  async open(workerUid: string, container = 'agent', restartCount = 0, init = false) {
    this.send({ open: { workerUid, container, restartCount, init } });
    const { opened } = await this.answer();
    if (opened?.resume) {
      this.sequence = opened.resume.sequence;
      this.bytes = opened.resume.bytes;
      this.gaps = opened.resume.gapCount;
      this.sum = Crc64.from(opened.resume.checksum);
    }
    return opened!;
  }

  send(request: StreamLogsRequest): boolean {
    return this.call.write(request);
  }

  /** The next batch, counted as sent. */
  batch(lines: readonly LineText[], more: Partial<Batch> = {}): Batch {
    const buffers = lines.map((line) => (typeof line === 'string' ? Buffer.from(line) : line));
    const firstSequence = this.sequence + 1;
    const data = Buffer.concat(buffers.flatMap((line) => [line, Buffer.from('\n')]));
    this.sequence += buffers.length;
    this.bytes += data.length - buffers.length;
    this.sum.update(data);
    return {
      firstSequence,
      baseTime: { seconds: 1_790_000_000 + firstSequence, nanos: 123_456_789 },
      data,
      lengths: buffers.map((line) => line.length),
      timeDeltas: buffers.map((_, i) => (i === 0 ? 0 : 1_000_000)),
      end: this.position(),
      ...more,
    };
  }

  position(): Position {
    return {
      sequence: this.sequence,
      time: { seconds: 1_790_000_000 + this.sequence, nanos: 987_654_321 },
      linesInSecond: 7,
      bytes: this.bytes,
      checksum: this.sum.bytes(),
      gapCount: this.gaps,
    };
  }

  /** Sends lines as a batch and returns the answer. */
  async append(...lines: LineText[]) {
    this.send({ batch: this.batch(lines) });
    return (await this.answer()).ack!;
  }

  /** The next batch, which is a gap. */
  gap(reason: string, message: string, lineCount = 0, fromSeconds = 1_790_000_000): Batch {
    this.gaps++; // before its own position is made
    return this.batch([''], { gap: { reason, message, lineCount, fromTime: { seconds: fromSeconds }, toTime: { seconds: fromSeconds + 2 } } });
  }

  async complete(differing: { lineCount?: number; byteCount?: number; checksum?: Buffer; gapCount?: number } = {}) {
    this.send({
      complete: { lineCount: this.sequence, byteCount: this.bytes, checksum: this.sum.bytes(), gapCount: this.gaps, ...differing },
    });
    return (await this.answer()).completed!;
  }

  close(): void {
    this.call.end();
  }

  cancel(): void {
    this.call.cancel();
  }
}
