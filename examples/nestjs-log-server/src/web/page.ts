import { isIP } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { NestExpressApplication } from '@nestjs/platform-express';
import type { NextFunction, Request, Response } from 'express';
import type { Config } from '../config.js';

/** Files of the page: plain HTML, CSS and modules, as they are served. */
const folder = fileURLToPath(new URL('../../../public', import.meta.url));

const headers = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
};

/** Lets through what only reads, and what was asked for by a name that is ours. */
export function guardPage(app: NestExpressApplication, { httpHosts }: Config): void {
  app.disable('x-powered-by');
  app.use((request: Request, response: Response, next: NextFunction) => {
    response.set(headers);
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.status(405).set('allow', 'GET, HEAD').send('this page only reads\n');
    } else if (!isOurs(request.headers.host ?? '', httpHosts)) {
      response.status(421).send('asked for by a name that is not in HTTP_HOSTS\n');
    } else {
      next();
    }
  });
}

/**
 * A site may let its name point here, and its scripts then read what is served (DNS rebinding); the
 * browser still says whose name it asked for. An address cannot be rebound.
 */
function isOurs(host: string, names: readonly string[]): boolean {
  const name = host.replace(/:\d*$/, '').toLowerCase();
  return name === 'localhost' || isIP(name.replace(/^\[|\]$/g, '')) !== 0 || names.includes(name);
}

/** Serves the files of the page. */
export function servePage(app: NestExpressApplication): void {
  app.useStaticAssets(folder, { index: 'index.html', setHeaders: (response) => void response.setHeader('cache-control', 'no-cache') });
}

/** The page of one worker, which finds out from its address which one. */
export function sendWorkerPage(response: Response): void {
  response.sendFile('worker.html', { root: folder, headers: { 'cache-control': 'no-cache' } });
}
