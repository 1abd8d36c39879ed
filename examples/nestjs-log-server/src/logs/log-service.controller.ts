import { status } from '@grpc/grpc-js';
import { Controller, Inject, Logger } from '@nestjs/common';
import { GrpcMethod, GrpcStreamCall, RpcException } from '@nestjs/microservices';
import { Config } from '../config.js';
import { isFailure } from '../store/requests.js';
import { Store } from '../store/store.js';
import { milliseconds } from './batch.js';
import type { Call, FinishWorkerRequest, FinishWorkerResponse, RegisterWorkerRequest, RegisterWorkerResponse } from './contract.js';
import { LogStream } from './log-stream.js';
import type { StreamOwner } from './log-stream.js';

/** The service of logs.proto. */
@Controller()
export class LogServiceController implements StreamOwner {
  private readonly logger = new Logger('LogService');
  private readonly streams = new Set<LogStream>();
  private readonly holders = new Map<number, LogStream>(); // by log
  private stopping = false;

  constructor(
    @Inject(Store) private readonly store: Store,
    @Inject(Config) private readonly config: Config,
  ) {}

  @GrpcMethod('LogService', 'RegisterWorker')
  async registerWorker({ worker }: RegisterWorkerRequest): Promise<RegisterWorkerResponse> {
    if (!worker?.uid) {
      throw new RpcException({ code: status.INVALID_ARGUMENT, message: 'a worker without a UID is registered' });
    }
    const registered = await this.store.register(worker);
    if (isFailure(registered)) {
      throw new RpcException({ code: status.UNAVAILABLE, message: registered.message });
    }
    return { limits: { maxBatchBytes: this.config.maxBatchBytes, windowBatches: this.config.windowBatches } };
  }

  /** The raw call, because only that gives back-pressure. Nest lets a rejection here end the process, so there is none. */
  @GrpcStreamCall('LogService', 'StreamLogs')
  async streamLogs(call: Call): Promise<void> {
    const stream = new LogStream(call, this.store, this);
    if (this.stopping) {
      stream.fail(status.UNAVAILABLE, 'the server is shutting down');
      return;
    }
    this.streams.add(stream);
    try {
      await stream.run();
    } catch (error) {
      this.logger.error(`a stream from ${call.getPeer()} broke: ${error instanceof Error ? error.stack : String(error)}`);
    } finally {
      this.streams.delete(stream);
      if (stream.log !== undefined && this.holders.get(stream.log) === stream) {
        this.holders.delete(stream.log);
      }
    }
  }

  @GrpcMethod('LogService', 'FinishWorker')
  async finishWorker(request: FinishWorkerRequest): Promise<FinishWorkerResponse> {
    const finished = await this.store.finish(
      request.workerUid,
      request.reason,
      request.message,
      request.containers.map((c) => ({
        container: c.container,
        restartCount: c.restartCount,
        exitCode: c._exitCode ? (c.exitCode ?? null) : null,
        signal: c.signal,
        reason: c.reason,
        message: c.message,
        startedMs: milliseconds(c.startedTime),
        finishedMs: milliseconds(c.finishedTime),
      })),
      request.incomplete.map(({ container, restartCount, init, lostLines, lostBytes, unread }) => ({
        container, restartCount, init, lines: lostLines, bytes: lostBytes, unread,
      })),
    );
    if (isFailure(finished)) {
      const code = finished.failure === 'unavailable' ? status.UNAVAILABLE : status.FAILED_PRECONDITION;
      throw new RpcException({ code, message: finished.message });
    }
    return {};
  }

  opened(stream: LogStream, log: number): void {
    this.holders.get(log)?.fail(status.ABORTED, 'another stream has taken over this log');
    this.holders.set(log, stream);
  }

  /** Streams never end by themselves: a server that waited for them would not stop. */
  endStreams(): void {
    this.stopping = true;
    for (const stream of this.streams) {
      stream.fail(status.UNAVAILABLE, 'the server is shutting down');
    }
  }
}
