import { Config, usage } from './config.js';
import { widenReceiveWindow } from './receive-window.js';

/** Starts the server and waits until it is told to stop. Status 2 is a wrong configuration, 1 a failure. */
async function main(): Promise<number> {
  if (process.argv.length > 2) {
    const help = process.argv[2] === '--help' || process.argv[2] === '-h';
    (help ? process.stdout : process.stderr).write(usage);
    return help ? 0 : 2;
  }
  let config: Config;
  try {
    config = new Config(process.env);
  } catch (error) {
    process.stderr.write(`nestjs-log-server: ${message(error)}\n`);
    return 2;
  }
  const told = new Promise<undefined>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.once(signal, () => resolve(undefined));
    }
  });
  widenReceiveWindow();
  const { start } = await import('./app.js');
  let failure: Error | undefined;
  try {
    const app = await start(config);
    failure = await Promise.race([told, app.failed]);
    setTimeout(() => {
      process.stderr.write('nestjs-log-server: stopping took longer than SHUTDOWN_TIMEOUT\n');
      process.exit(1);
    }, config.shutdownTimeoutMs).unref();
    await app.close();
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
  }
  if (failure) {
    process.stderr.write(`nestjs-log-server: ${failure.message}\n`);
    return 1;
  }
  return 0;
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

// A promise that nobody waits for must not end a server that others use. It is a bug all the same.
process.on('unhandledRejection', (reason) => {
  process.stderr.write(`nestjs-log-server: unhandled: ${reason instanceof Error ? reason.stack : String(reason)}\n`);
});

process.exit(await main());
