import 'reflect-metadata';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { ChannelOptions, Server, ServerInterceptor } from '@grpc/grpc-js';
import { ConsoleLogger, Logger, Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { Transport } from '@nestjs/microservices';
import type { MicroserviceOptions } from '@nestjs/microservices';
import type { NestExpressApplication } from '@nestjs/platform-express';
import { HealthImplementation } from 'grpc-health-check';
import { Config, hostPort } from './config.js';
import { requireToken } from './logs/auth.js';
import { loader, packageName, protoFile, serviceName } from './logs/contract.js';
import { credentials } from './logs/credentials.js';
import { LogServiceController } from './logs/log-service.controller.js';
import { Reader } from './store/reader.js';
import { Store } from './store/store.js';
import { Changes } from './web/changes.js';
import { EventStreams } from './web/event-streams.js';
import { guardPage, servePage } from './web/page.js';
import { WebController } from './web/web.controller.js';

/** The largest message that is taken: a line of 3 MiB with all that may surround it. */
const maxMessageBytes = 4 * 1024 * 1024;
const pruneEveryMs = 60_000;
/** How long calls may take to end when the server stops. */
const drainMs = 2000;

/** App is a running server. */
export interface App {
  /** Stops in the order of the data: streams end, what waits is written, the database is closed. */
  close(): Promise<void>;
  /** Resolves with the reason when the server cannot go on. */
  failed: Promise<Error>;
}

/** Starts a server; it is serving once this resolves. */
export async function start(config: Config): Promise<App> {
  const logger = new ConsoleLogger({ json: !process.stdout.isTTY, logLevels: ['log', 'warn', 'error', 'fatal'] });
  const store = await Store.open(config.dataDir);
  try {
    return await serve(config, store, logger);
  } catch (error) {
    await store.close();
    throw error;
  }
}

async function serve(config: Config, store: Store, logger: ConsoleLogger): Promise<App> {
  const reader = new Reader(config.dataDir);

  @Module({
    controllers: [LogServiceController, WebController],
    providers: [
      { provide: Config, useValue: config },
      { provide: Store, useValue: store },
      { provide: Reader, useValue: reader },
      Changes,
      EventStreams,
    ],
  })
  class AppModule {}

  const app = await NestFactory.create<NestExpressApplication>(AppModule, { logger, abortOnError: false, forceCloseConnections: true });
  const health = new HealthImplementation({ '': 'SERVING', [`${packageName}.${serviceName}`]: 'SERVING' });
  const setHealth = (now: 'SERVING' | 'NOT_SERVING'): void => {
    health.setStatus('', now);
    health.setStatus(`${packageName}.${serviceName}`, now);
  };
  let grpcServer: Server | undefined;
  const interceptors: ServerInterceptor[] = config.authTokenFile ? [requireToken(config.authTokenFile)] : [];
  app.connectMicroservice<MicroserviceOptions>({
    transport: Transport.GRPC,
    options: {
      package: packageName,
      protoPath: protoFile,
      loader,
      url: hostPort(config.listen),
      credentials: credentials(config),
      maxReceiveMessageLength: maxMessageBytes,
      // A relay whose machine has vanished says nothing: it is asked.
      keepalive: { keepaliveTimeMs: 60_000, keepaliveTimeoutMs: 20_000 },
      channelOptions: { interceptors } as ChannelOptions,
      onLoadPackageDefinition: (_definition: unknown, server: Server) => {
        grpcServer = server;
        health.addToServer(server);
      },
    },
  });
  guardPage(app, config);
  servePage(app);
  await app.startAllMicroservices();
  if (config.httpListen) {
    await app.listen(config.httpListen.port, config.httpListen.host);
  } else {
    await app.init();
  }
  const log = new Logger('Server');
  for (const warning of config.warnings()) {
    log.warn(warning);
  }
  const page = config.httpListen ? `, page on http://${hostPort(config.httpListen)}/` : '';
  log.log(`serving: gRPC on ${hostPort(config.listen)}${config.tls ? ' with TLS' : ''}${page}, database in ${config.dataDir}`);

  const pruning = setInterval(() => void prune(config, store, log), pruneEveryMs);
  let closing: Promise<void> | undefined;
  return {
    close: () =>
      (closing ??= (async () => {
        clearInterval(pruning);
        setHealth('NOT_SERVING');
        app.get(LogServiceController).endStreams();
        // Statuses have to reach the relays before the connections go. A watcher of health never ends.
        await Promise.race([promisify(grpcServer!.tryShutdown.bind(grpcServer!))(), sleep(drainMs, undefined, { ref: false })]);
        await app.close();
        await store.close();
        reader.close();
      })()),
    failed: new Promise((resolve) =>
      store.events.once('failed', (error) => {
        setHealth('NOT_SERVING');
        resolve(error);
      }),
    ),
  };
}

/** Deletes what is older than it may be, a little at a time so that others can write. */
async function prune({ retentionMs }: Config, store: Store, log: Logger): Promise<void> {
  if (retentionMs === undefined) {
    return;
  }
  let sum = 0;
  for (;;) {
    const pruned = await store.prune(Date.now() - retentionMs);
    if (!('workers' in pruned) || pruned.workers === 0) {
      break;
    }
    sum += pruned.workers;
  }
  if (sum > 0) {
    log.log(`deleted ${sum} workers that ended more than RETENTION ago`);
  }
}

