import { pipeline } from 'node:stream/promises';
import { Readable } from 'node:stream';
import { BadRequestException, Controller, Get, Headers, Inject, NotFoundException, Param, ParseIntPipe, Query, Res } from '@nestjs/common';
import type { Response } from 'express';
import { Reader } from '../store/reader.js';
import type { Filter, LogView, Page, WorkerView } from '../store/reader.js';
import type { Changed } from '../store/requests.js';
import { Store } from '../store/store.js';
import { Changes } from './changes.js';
import { EventStreams } from './event-streams.js';
import { sendWorkerPage } from './page.js';

const workersPerPage = 200;
const mostLines = 1000;
/** How often a page hears of changes at most. */
const listEveryMs = 500;
const tailEveryMs = 100;
/** Without a change, it is looked again after this: a notice is not a promise. */
const lookAgainMs = 10_000;

/** What the page asks for. All of it only reads. */
@Controller()
export class WebController {
  constructor(
    @Inject(Reader) private readonly reader: Reader,
    @Inject(Store) private readonly store: Store,
    @Inject(Changes) private readonly changes: Changes,
    @Inject(EventStreams) private readonly streams: EventStreams,
  ) {}

  @Get('workers/:uid')
  workerPage(@Res() response: Response): void {
    sendWorkerPage(response);
  }

  @Get('favicon.ico')
  favicon(@Res() response: Response): void {
    response.redirect(301, '/icon.svg');
  }

  /** The newest workers, or those before one. */
  @Get('api/workers')
  workers(@Query('before') before?: string): { workers: WorkerView[]; more: boolean; now: string } {
    const now = this.changes.now();
    const workers = this.reader.workers(workersPerPage, number(before, 'before'));
    return { workers, more: workers.length === workersPerPage, now };
  }

  @Get('api/workers/:uid')
  worker(@Param('uid') uid: string): WorkerView {
    return found(this.reader.worker(uid));
  }

  /** Workers as they change: 'workers' with some of them, 'reset' when the list is to be fetched anew. */
  @Get('api/events')
  async events(@Res() response: Response, @Headers('last-event-id') last?: string, @Query('since') since?: string): Promise<void> {
    await this.streams.serve(response, async (stream) => {
      const wake = (): void => stream.wake();
      this.store.events.on('changed', wake);
      try {
        let then = last || since || this.changes.now();
        while (stream.isOpen) {
          const now = this.changes.now();
          const changed = this.changes.since(then);
          if (changed === undefined) {
            await stream.send('reset', {}, now);
          } else if (changed.length > 0) {
            const workers = changed.map((id) => this.reader.workerById(id)).filter((worker) => worker !== undefined);
            await stream.send('workers', workers, now);
          }
          then = now;
          await pause(listEveryMs);
          if (this.changes.now() === then) {
            await stream.wait(lookAgainMs);
          }
        }
      } finally {
        this.store.events.off('changed', wake);
      }
    });
  }

  /** Lines before or after a number. */
  @Get('api/logs/:log/lines')
  async lines(
    @Param('log', ParseIntPipe) log: number,
    @Query('before') before?: string,
    @Query('after') after?: string,
    @Query('limit') limit?: string,
    @Query('q') text?: string,
    @Query('stream') stream?: string,
  ): Promise<Page & { log: LogView }> {
    const view = found(this.reader.log(log)).log;
    const most = Math.min(Math.max(number(limit, 'limit') ?? mostLines, 1), mostLines);
    const filter = filterOf(text, stream);
    const page =
      after === undefined
        ? await this.reader.linesBefore(log, number(before, 'before') ?? view.lines + 1, most, filter)
        : await this.reader.linesAfter(log, number(after, 'after') ?? 0, most, filter);
    return { ...page, log: view };
  }

  /** Lines behind a number as they come: 'lines' with a page of them; and 'worker' with the log's worker when that changes. */
  @Get('api/logs/:log/events')
  async tail(
    @Res() response: Response,
    @Param('log', ParseIntPipe) log: number,
    @Headers('last-event-id') last?: string,
    @Query('after') after?: string,
    @Query('q') text?: string,
    @Query('stream') stream?: string,
  ): Promise<void> {
    const { worker } = found(this.reader.log(log));
    const filter = filterOf(text, stream);
    let through = number(last || after, 'after') ?? 0;
    await this.streams.serve(response, async (events) => {
      let dirty = true;
      let workerDirty = true;
      const note = (changed: Changed): void => {
        if (changed.worker === worker && (changed.log === log || changed.kind !== 'append')) {
          dirty = true;
          workerDirty ||= changed.kind !== 'append';
          events.wake();
        }
      };
      this.store.events.on('changed', note);
      try {
        while (events.isOpen) {
          dirty = false;
          const view = this.reader.log(log)?.log;
          if (!view) {
            return; // deleted meanwhile
          }
          const page = await this.reader.linesAfter(log, through, mostLines, filter);
          if (page.through > through) {
            through = page.through;
            await events.send('lines', { ...page, log: view }, String(through));
            if (through < view.lines) {
              continue; // there is more already
            }
          }
          if (workerDirty) {
            workerDirty = false;
            await events.send('worker', this.reader.workerById(worker));
          }
          await pause(tailEveryMs);
          if (!dirty) {
            await events.wait(lookAgainMs);
          }
        }
      } finally {
        this.store.events.off('changed', note);
      }
    });
  }

  /** A log as a file: its lines, byte for byte, each ended by a line feed. */
  @Get('api/logs/:log/download')
  async download(@Res() response: Response, @Param('log', ParseIntPipe) log: number): Promise<void> {
    const { log: view, name: worker } = found(this.reader.log(log));
    const file = `${worker}-${view.container}-${view.restartCount}.log`.replace(/[^\w.-]/g, '_');
    response.set({
      'content-type': 'text/plain; charset=utf-8',
      'content-disposition': `attachment; filename="${file}"`,
      'cache-control': 'no-store',
    });
    await pipeline(Readable.from(this.reader.download(log)), response).catch(() => response.destroy());
  }
}

function found<T>(thing: T | undefined): T {
  if (thing === undefined) {
    throw new NotFoundException();
  }
  return thing;
}

function number(text: string | undefined, name: string): number | undefined {
  if (text === undefined || text === '') {
    return undefined;
  }
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new BadRequestException(`${name} is no line number`);
  }
  return value;
}

function filterOf(text: string | undefined, stream: string | undefined): Filter {
  if (stream !== undefined && stream !== '' && stream !== 'stdout' && stream !== 'stderr') {
    throw new BadRequestException('stream is stdout or stderr');
  }
  return { text: text || undefined, stream: stream || undefined };
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
