import { Injectable } from '@nestjs/common';
import type { BeforeApplicationShutdown } from '@nestjs/common';
import type { Response } from 'express';

/** How many pages may watch at once. */
const maxStreams = 200;
const heartbeatMs = 15_000;

/** EventStream is a connection that a page listens to: https://html.spec.whatwg.org/multipage/server-sent-events.html. */
export class EventStream {
  private open = true;
  private readonly wakers = new Set<() => void>();

  constructor(private readonly response: Response) {
    response.on('drain', () => this.wake());
    response.on('close', () => this.close());
    response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-store', 'x-accel-buffering': 'no' });
    response.write('retry: 1000\n\n');
  }

  get isOpen(): boolean {
    return this.open;
  }

  /** Sends an event and waits until the page has taken what was sent. */
  async send(event: string, data: unknown, id?: string): Promise<void> {
    if (this.open) {
      const name = id === undefined ? '' : `id: ${id}\n`;
      this.response.write(`${name}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
    }
    while (this.open && this.response.writableNeedDrain) {
      await this.wait(heartbeatMs);
    }
  }

  /** Waits to be woken, or for some time. */
  wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const waker = (): void => {
        clearTimeout(timer);
        this.wakers.delete(waker);
        resolve();
      };
      const timer = setTimeout(waker, ms);
      this.wakers.add(waker);
    });
  }

  /** Ends all waits. */
  wake(): void {
    for (const waker of [...this.wakers]) {
      waker();
    }
  }

  /** Says that the connection lives, which a proxy may want to hear, and hears whether it does. */
  beat(): void {
    if (this.open && !this.response.writableNeedDrain) {
      this.response.write(': beat\n\n');
    }
  }

  close(): void {
    if (this.open) {
      this.open = false;
      this.response.end();
      this.wake();
    }
  }
}

/** EventStreams are all connections that pages listen to. */
@Injectable()
export class EventStreams implements BeforeApplicationShutdown {
  private readonly streams = new Set<EventStream>();

  /** Serves a stream until either side ends it. */
  async serve(response: Response, run: (stream: EventStream) => Promise<void>): Promise<void> {
    if (this.streams.size >= maxStreams) {
      response.status(503).set('retry-after', '10').send('too many pages are watching\n');
      return;
    }
    const stream = new EventStream(response);
    const beating = setInterval(() => stream.beat(), heartbeatMs);
    this.streams.add(stream);
    try {
      await run(stream);
    } finally {
      clearInterval(beating);
      this.streams.delete(stream);
      stream.close();
    }
  }

  beforeApplicationShutdown(): void {
    for (const stream of this.streams) {
      stream.close();
    }
  }
}
