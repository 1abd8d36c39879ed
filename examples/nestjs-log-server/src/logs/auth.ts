import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { ServerInterceptingCall, status } from '@grpc/grpc-js';
import type { ServerInterceptor } from '@grpc/grpc-js';
import { packageName } from './contract.js';

/**
 * Turns away calls that do not bring the token of a file. Health checks need none. The file is looked
 * at for each call, of which there are few: a stream is one.
 */
export function requireToken(file: string): ServerInterceptor {
  let read = { mtimeMs: -1, token: '' };
  const token = (): string => {
    const { mtimeMs } = statSync(file);
    if (mtimeMs !== read.mtimeMs) {
      read = { mtimeMs, token: readFileSync(file, 'utf8').trim() };
    }
    return read.token;
  };
  return (method, call) =>
    new ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, proceed) => {
            let want = '';
            try {
              want = token();
            } catch {
              // No token can be right while the file cannot be read.
            }
            const [got] = metadata.get('authorization');
            if (!method.path.startsWith(`/${packageName}.`) || (want !== '' && same(`Bearer ${want}`, String(got)))) {
              proceed(metadata);
            } else {
              call.sendStatus({ code: status.UNAUTHENTICATED, details: 'the token is missing or wrong', metadata: null });
            }
          },
        }),
    });
}

/** Compares in a time that tells nothing of where they differ. */
function same(a: string, b: string): boolean {
  const hash = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(hash(a), hash(b));
}
