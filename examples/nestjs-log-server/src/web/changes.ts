import { randomBytes } from 'node:crypto';
import { Inject, Injectable } from '@nestjs/common';
import type { OnModuleDestroy, OnModuleInit } from '@nestjs/common';
import type { Changed } from '../store/requests.js';
import { Store } from '../store/store.js';

/** How many changed workers are remembered for pages that come back. */
const remembered = 10_000;

/**
 * Changes numbers what happens to workers, so that a page that was away asks for the workers that
 * changed since, and is told if that is not known any more.
 */
@Injectable()
export class Changes implements OnModuleInit, OnModuleDestroy {
  /** A server that starts again numbers from the beginning; this tells its numbers from the former one's. */
  private readonly run = randomBytes(6).toString('hex');
  private readonly revisions = new Map<number, number>(); // by worker, the oldest first
  private readonly onChanged = (changed: Changed): void => this.note(changed.worker);
  private revision = 0;
  private forgotten = 0;

  constructor(@Inject(Store) private readonly store: Store) {}

  onModuleInit(): void {
    this.store.events.on('changed', this.onChanged);
  }

  onModuleDestroy(): void {
    this.store.events.off('changed', this.onChanged);
  }

  private note(worker: number): void {
    this.revisions.delete(worker);
    this.revisions.set(worker, ++this.revision);
    if (this.revisions.size > remembered) {
      const [oldest, revision] = this.revisions.entries().next().value!;
      this.revisions.delete(oldest);
      this.forgotten = revision;
    }
  }

  /** A name for now. */
  now(): string {
    return `${this.run}-${this.revision}`;
  }

  /** The workers that changed since a former now, or undefined if nobody knows. */
  since(then: string): number[] | undefined {
    const [run, number] = then.split('-');
    const revision = Number(number);
    if (run !== this.run || !(revision >= this.forgotten)) {
      return undefined;
    }
    const changed: number[] = [];
    for (const [worker, at] of [...this.revisions].reverse()) {
      if (at <= revision) {
        break;
      }
      changed.push(worker);
    }
    return changed;
  }
}
