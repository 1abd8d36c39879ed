import { experimental, ServerCredentials } from '@grpc/grpc-js';
import type { Config } from '../config.js';

/** How often the files of TLS are looked at. */
const refreshMs = 30_000;

/** Plaintext, TLS, or TLS for clients with a certificate. Certificates may be renewed under a running server. */
export function credentials({ tls }: Config): ServerCredentials {
  if (!tls) {
    return ServerCredentials.createInsecure();
  }
  const files = new experimental.FileWatcherCertificateProvider({
    certificateFile: tls.cert,
    privateKeyFile: tls.key,
    ...(tls.clientCa === undefined ? {} : { caCertificateFile: tls.clientCa }),
    refreshIntervalMs: refreshMs,
  });
  return experimental.createCertificateProviderServerCredentials(files, tls.clientCa === undefined ? null : files, tls.clientCa !== undefined);
}
