import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/** What the tests share: real servers, each a process of its own with a folder of its own. */

const program = fileURLToPath(new URL('../src/main.js', import.meta.url));

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

export function temporaryFolder(): { path: string; remove: () => void } {
  const folder = mkdtempSync(path.join(tmpdir(), 'log-server-'));
  return { path: folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}

const running = new Set<ChildProcess>();

/** Kills the servers of tests that have failed: a process does not end before its children. */
export function killServers(): void {
  for (const server of running) {
    server.kill('SIGKILL');
  }
}

/** RunningServer is the program, started as a user starts it. */
export class RunningServer {
  private process: ChildProcess | undefined;
  output = '';

  private constructor(
    readonly address: string,
    readonly page: string,
    readonly folder: string,
    private readonly env: Record<string, string>,
  ) {}

  static async start(folder: string, env: Record<string, string> = {}): Promise<RunningServer> {
    const address = `127.0.0.1:${await freePort()}`;
    const httpAddress = `127.0.0.1:${await freePort()}`;
    const server = new RunningServer(address, `http://${httpAddress}`, folder, {
      LISTEN: address,
      HTTP_LISTEN: httpAddress,
      DATA_DIR: folder,
      ...env,
    });
    await server.begin();
    return server;
  }

  /** Starts the program, again after it has ended. */
  async begin(): Promise<void> {
    const started = spawn(process.execPath, ['--enable-source-maps', program], {
      env: { PATH: process.env['PATH'] ?? '', ...this.env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.process = started;
    running.add(started);
    started.once('exit', () => running.delete(started));
    this.output = '';
    for (const stream of [started.stdout, started.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => (this.output += text));
    }
    for (let i = 0; i < 600 && !this.output.includes('serving:'); i++) {
      if (started.exitCode !== null || started.signalCode !== null) {
        throw new Error(`the server ended: ${this.output}`);
      }
      await sleep(50);
    }
    if (!this.output.includes('serving:')) {
      throw new Error(`the server does not serve: ${this.output}`);
    }
  }

  /** Ends the program and returns its exit status, null if the signal ended it. */
  async end(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<number | null> {
    const { process: ending } = this;
    this.process = undefined;
    if (!ending || ending.exitCode !== null || ending.signalCode !== null) {
      return ending?.exitCode ?? null;
    }
    const ended = once(ending, 'exit');
    ending.kill(signal);
    const [code] = (await ended) as [number | null];
    return code;
  }
}
