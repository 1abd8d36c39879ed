import { readFileSync } from 'node:fs';

/** A socket address; an empty host in a variable means every address of the machine. */
export interface Address {
  host: string;
  port: number;
}

/** Config is what the environment says; `node dist/src/main.js --help` prints the variables. */
export class Config {
  /** Where gRPC is served. */
  readonly listen: Address;
  /** Where the page is served; undefined serves none. */
  readonly httpListen: Address | undefined;
  /** Names by which browsers may ask for the page, besides localhost and addresses. */
  readonly httpHosts: readonly string[];
  /** Folder of the database. */
  readonly dataDir: string;
  /** Files of the server's certificate, its key, and of the authority whose clients may come. */
  readonly tls: { cert: string; key: string; clientCa: string | undefined } | undefined;
  /** File with the token that a relay has to send, or undefined. It is read again when it changes. */
  readonly authTokenFile: string | undefined;
  /** Limits that relays are told; 0 leaves them the protocol's defaults. */
  readonly maxBatchBytes: number;
  readonly windowBatches: number;
  /** How long ended workers and their logs are kept, in milliseconds; undefined keeps them. */
  readonly retentionMs: number | undefined;
  /** How long stopping may take, in milliseconds. */
  readonly shutdownTimeoutMs: number;

  /** Reads the environment. The error of a wrong one says all that is wrong, in one line. */
  constructor(env: Readonly<Record<string, string | undefined>>) {
    const problems: string[] = [];
    const text = (name: string): string | undefined => env[name]?.trim() || undefined;
    const parsed = <T>(name: string, fallback: string, parse: (value: string) => T | undefined, want: string): T | undefined => {
      const value = parse(text(name) ?? fallback);
      if (value === undefined) {
        problems.push(`${name} is ${JSON.stringify(text(name))}, want ${want}`);
      }
      return value;
    };
    const file = (name: string): string | undefined => {
      const path = text(name);
      if (path !== undefined) {
        try {
          readFileSync(path);
        } catch (error) {
          problems.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
        }
      }
      return path;
    };

    this.listen = parsed('LISTEN', '127.0.0.1:50051', address, 'host:port or :port')!;
    this.httpListen =
      text('HTTP_LISTEN') === 'off' ? undefined : parsed('HTTP_LISTEN', '127.0.0.1:8080', address, 'host:port, :port or off');
    this.httpHosts = (text('HTTP_HOSTS') ?? '').split(',').map((host) => host.trim().toLowerCase()).filter(Boolean);
    this.dataDir = text('DATA_DIR') ?? 'data';
    this.maxBatchBytes = parsed('MAX_BATCH_BYTES', '0', wholeNumber, 'a whole number')!;
    this.windowBatches = parsed('WINDOW_BATCHES', '0', wholeNumber, 'a whole number')!;
    this.retentionMs = text('RETENTION') && parsed('RETENTION', '', duration, 'a duration such as 90m, 24h or 7d') || undefined;
    this.shutdownTimeoutMs = parsed('SHUTDOWN_TIMEOUT', '10s', duration, 'a duration such as 10s')!;
    this.authTokenFile = file('AUTH_TOKEN_FILE');
    const cert = file('TLS_CERT_FILE');
    const key = file('TLS_KEY_FILE');
    const clientCa = file('TLS_CLIENT_CA_FILE');
    this.tls = cert && key ? { cert, key, clientCa } : undefined;
    if (!this.tls && (cert || key || clientCa)) {
      problems.push('TLS takes both TLS_CERT_FILE and TLS_KEY_FILE');
    }
    if (problems.length > 0) {
      throw new Error(problems.join('; '));
    }
  }

  /** What is allowed and yet may not be meant. */
  warnings(): string[] {
    const warnings: string[] = [];
    if (this.authTokenFile && !this.tls && !isLoopback(this.listen.host)) {
      warnings.push('the token crosses the network in plaintext: AUTH_TOKEN_FILE is set, TLS_CERT_FILE is not');
    }
    if (this.httpListen && !isLoopback(this.httpListen.host)) {
      warnings.push('the page shows all logs to whoever reaches HTTP_LISTEN');
    }
    return warnings;
  }
}

/** What --help prints. */
export const usage = `Log server for Ottoscaler's workers. It is configured by environment variables:

  LISTEN              where gRPC is served (127.0.0.1:50051); :50051 means every address
  HTTP_LISTEN         where the page is served (127.0.0.1:8080); off serves none. It asks nobody who he is
  HTTP_HOSTS          names by which browsers may ask for the page, comma-separated; localhost and addresses always may
  DATA_DIR            folder of the database (data)
  TLS_CERT_FILE       certificate of the gRPC server, PEM; none serves plaintext. Files of TLS are read again when they change
  TLS_KEY_FILE        its key
  TLS_CLIENT_CA_FILE  authority of client certificates; with it, a relay without one is turned away
  AUTH_TOKEN_FILE     file with a token that relays have to send, as metadata "authorization: Bearer <token>"
  MAX_BATCH_BYTES     limit that relays are told, 0 for the protocol's (0)
  WINDOW_BATCHES      limit that relays are told, 0 for the protocol's (0)
  RETENTION           how long ended workers and their logs are kept, such as 7d; empty keeps them
  SHUTDOWN_TIMEOUT    how long stopping may take (10s)
`;

function address(value: string): Address | undefined {
  const match = /^(\[[0-9a-f:.]+\]|[^:[\]]*):(\d{1,5})$/i.exec(value);
  const port = Number(match?.[2]);
  return match && port > 0 && port <= 65535 ? { host: match[1]!.replace(/^\[|\]$/g, '') || '::', port } : undefined;
}

/** An address as it stands in a URL. */
export function hostPort({ host, port }: Address): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}

function wholeNumber(value: string): number | undefined {
  return /^\d{1,9}$/.test(value) ? Number(value) : undefined;
}

function duration(value: string): number | undefined {
  const match = /^(\d{1,9})(ms|s|m|h|d)$/.exec(value);
  const units: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
  return match ? Number(match[1]) * units[match[2]!]! : undefined;
}
