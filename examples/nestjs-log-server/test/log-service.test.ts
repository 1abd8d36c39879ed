import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { credentials, Metadata, status } from '@grpc/grpc-js';
import type { ServiceError } from '@grpc/grpc-js';
import Database from 'libsql';
import type { LogServiceClient } from '../src/gen/ottoscaler/logs/v1/LogService.js';
import { client, finish, register, RelayStream } from './relay.js';
import { killServers, RunningServer, temporaryFolder } from './server.js';

const folder = temporaryFolder();
let server: RunningServer;
let to: LogServiceClient;
let nextWorker = 1;

before(async () => {
  server = await RunningServer.start(folder.path);
  to = client(server.address);
});

after(async () => {
  to.close();
  await server.end();
  folder.remove();
  killServers();
});

async function newWorker(): Promise<string> {
  const uid = `uid-${nextWorker++}`;
  await register(to, { uid, name: `w-${uid}`, taskId: 'task', pool: 'default' });
  return uid;
}

async function download(uid: string, index = 0): Promise<Buffer> {
  const worker = (await (await fetch(`${server.page}/api/workers/${uid}`)).json()) as { logs: { id: number }[] };
  return Buffer.from(await (await fetch(`${server.page}/api/logs/${worker.logs[index]!.id}/download`)).arrayBuffer());
}

test('many batches in flight are answered in their order and stored once', async () => {
  const uid = await newWorker();
  const stream = new RelayStream(to);
  await stream.open(uid);
  const text: string[] = [];
  for (let b = 0; b < 200; b++) {
    const lines = Array.from({ length: 50 }, (_, i) => `line ${b * 50 + i}`);
    text.push(...lines);
    stream.send({ batch: stream.batch(lines) });
  }
  let last = 0;
  while (last < 10_000) {
    const { ack } = await stream.answer();
    assert.equal(ack!.verdict, 1);
    assert.ok(ack!.sequence > last, `${ack!.sequence} follows ${last}`);
    last = ack!.sequence;
  }
  assert.deepEqual(await stream.complete(), { matches: true, message: '' });
  stream.close();
  assert.equal(await stream.outcome(), 'ok');
  assert.equal((await download(uid)).toString(), `${text.join('\n')}\n`);
});

test('of a batch that is held in part, the rest is stored with its times and streams', async () => {
  const uid = await newWorker();
  const stream = new RelayStream(to);
  await stream.open(uid);
  await stream.append('one', 'two');
  const again = new RelayStream(to);
  await again.open(uid);
  again.sequence = 0;
  again.bytes = 0;
  again.sum = new (again.sum.constructor as new () => typeof again.sum)();
  const nanos = [0, 600_000_000, 700_000_000, 5];
  again.send({ batch: again.batch(['one', 'two', 'three', 'four'], { baseTime: { seconds: 100, nanos: 900_000_000 }, timeDeltas: nanos, streams: [1, 1, 2, 1] }) });
  assert.equal((await again.answer()).ack!.sequence, 4);
  assert.equal((await again.complete()).matches, true);
  const worker = (await (await fetch(`${server.page}/api/workers/${uid}`)).json()) as { logs: { id: number }[] };
  const page = (await (await fetch(`${server.page}/api/logs/${worker.logs[0]!.id}/lines`)).json()) as { lines: { text: string; time: string; stream: string }[] };
  assert.deepEqual(page.lines.map((line) => line.text), ['one', 'two', 'three', 'four']);
  assert.deepEqual(page.lines.slice(2).map((line) => [line.time, line.stream]), [
    ['1970-01-01T00:01:42.200000000Z', 'stderr'],
    ['1970-01-01T00:01:42.200000005Z', 'stdout'],
  ]);
  again.close();
});

test('batches that contradict themselves are refused, and the server goes on', async () => {
  const uid = await newWorker();
  const wrong: [string, (stream: RelayStream) => object][] = [
    ['no lines', (s) => s.batch([])],
    ['lengths beyond the data', (s) => s.batch(['one'], { lengths: [4] })],
    ['too few times', (s) => s.batch(['one', 'two'], { timeDeltas: [0] })],
    ['too many streams', (s) => s.batch(['one'], { streams: [1, 1] })],
    ['an end elsewhere', (s) => s.batch(['one'], { end: { sequence: 7 } })],
    ['no end', (s) => s.batch(['one'], { end: null })],
    ['line 0', (s) => s.batch(['one'], { firstSequence: 0 })],
    ['a gap with text', (s) => s.batch(['one'], { gap: { reason: 'rotated' } })],
  ];
  for (const [what, make] of wrong) {
    const stream = new RelayStream(to);
    await stream.open(uid);
    stream.send({ batch: make(stream) });
    assert.equal(((await stream.outcome()) as ServiceError).code, status.INVALID_ARGUMENT, what);
  }
  const stream = new RelayStream(to);
  assert.equal((await stream.open(uid)).resume, null);
  assert.equal((await stream.append('right')).sequence, 1);
  stream.close();
});

test('a relay that does not read its answers fills no memory and is answered when it does', async () => {
  const uid = await newWorker();
  const stream = new RelayStream(to);
  await stream.open(uid);
  for (let b = 0; b < 300; b++) {
    stream.send({ batch: stream.batch([Buffer.alloc(100_000, 'x')]) });
  }
  while ((await stream.answer()).ack!.sequence < 300);
  assert.equal((await stream.complete()).matches, true);
  stream.close();
});

test('a cancelled stream leaves the log to the next one', async () => {
  const uid = await newWorker();
  for (let i = 1; i <= 20; i++) {
    const stream = new RelayStream(to);
    assert.equal((await stream.open(uid)).resume?.sequence ?? 0, i - 1);
    assert.equal((await stream.append(`line ${i}`)).sequence, i);
    stream.cancel();
  }
});

test('lines behind the end of a complete log are refused', async () => {
  const uid = await newWorker();
  const stream = new RelayStream(to);
  await stream.open(uid);
  await stream.append('one');
  assert.equal((await stream.complete()).matches, true);
  stream.send({ batch: stream.batch(['two']) });
  assert.equal(((await stream.outcome()) as ServiceError).code, status.FAILED_PRECONDITION);
});

test('while the database cannot be written, lines are asked for again, and none is lost', async () => {
  const uid = await newWorker();
  const stream = new RelayStream(to);
  await stream.open(uid);
  await stream.append('one');
  const other = new Database(path.join(folder.path, 'logs.db'));
  other.exec('BEGIN IMMEDIATE');
  const batches = [stream.batch(['two']), stream.batch(['three'])];
  for (const batch of batches) {
    stream.send({ batch });
  }
  const { ack } = await stream.answer();
  assert.deepEqual([ack!.verdict, ack!.sequence, ack!.reason], [2, 1, 'unavailable']);
  assert.match(ack!.message, /locked/);
  assert.ok(ack!.retryAfter!.seconds > 0);
  other.exec('ROLLBACK');
  other.close();
  await sleep(ack!.retryAfter!.seconds * 1000);
  for (const batch of batches) {
    stream.send({ batch });
  }
  let last = 0;
  while (last < 3) {
    last = (await stream.answer()).ack!.sequence;
  }
  assert.deepEqual(await stream.complete(), { matches: true, message: '' });
  stream.close();
});

test('a second server does not work in the same folder', async () => {
  await assert.rejects(RunningServer.start(folder.path), /another server works in this folder/);
});

test('a folder where nothing can be written is named', async () => {
  await assert.rejects(RunningServer.start('/proc/self'), /user \d+ cannot make \/proc\/self\/lock\.db/);
});

test('SIGTERM ends streams with UNAVAILABLE and the program with status 0, and nothing stored is lost', async () => {
  const own = temporaryFolder();
  const ending = await RunningServer.start(own.path);
  const relay = client(ending.address);
  await register(relay, { uid: 'u', name: 'w' });
  const stream = new RelayStream(relay);
  await stream.open('u');
  await stream.append('one', 'two');
  const watching = await fetch(`${ending.page}/api/events`); // a page that listens must not hold it up
  const ended = ending.end();
  assert.equal(((await stream.outcome()) as ServiceError).code, status.UNAVAILABLE);
  assert.equal(await ended, 0, ending.output);
  await watching.body?.cancel();
  await ending.begin();
  const again = new RelayStream(relay);
  assert.equal((await again.open('u')).resume!.sequence, 2);
  again.close();
  relay.close();
  await ending.end();
  own.remove();
});

test('killed in the middle of a stream and started again, the server has every line once', async () => {
  const own = temporaryFolder();
  const killed = await RunningServer.start(own.path);
  const relay = client(killed.address);
  await register(relay, { uid: 'u', name: 'w' });
  const lines = Array.from({ length: 20_000 }, (_, i) => `line ${i + 1} ${'.'.repeat(i % 90)}`);
  let acknowledged = 0;
  for (let kills = 0; ; ) {
    const stream = new RelayStream(relay);
    let opened;
    try {
      opened = await stream.open('u');
    } catch (error) {
      assert.equal((error as ServiceError).code, status.UNAVAILABLE);
      continue;
    }
    assert.ok(stream.sequence >= acknowledged, `resumes at ${stream.sequence}, line ${acknowledged} was acknowledged`);
    assert.equal(opened.resume?.sequence ?? 0, stream.sequence);
    acknowledged = stream.sequence;
    try {
      while (acknowledged < lines.length) {
        // A window, or all is sent before enough is acknowledged to kill it often enough.
        while (stream.sequence < lines.length && stream.sequence < acknowledged + 1500) {
          stream.send({ batch: stream.batch(lines.slice(stream.sequence, stream.sequence + 100)) });
        }
        acknowledged = (await stream.answer()).ack!.sequence;
        if (kills < 4 && acknowledged > (kills + 1) * 3000) {
          kills++;
          await killed.end('SIGKILL'); // with batches under way
          await killed.begin();
        }
      }
    } catch (error) {
      assert.equal((error as ServiceError).code, status.UNAVAILABLE);
      continue;
    }
    assert.equal(kills, 4);
    assert.deepEqual(await stream.complete(), { matches: true, message: '' });
    stream.close();
    break;
  }
  const worker = (await (await fetch(`${killed.page}/api/workers/u`)).json()) as { logs: { id: number }[] };
  const text = await (await fetch(`${killed.page}/api/logs/${worker.logs[0]!.id}/download`)).text();
  assert.equal(text, `${lines.join('\n')}\n`);
  relay.close();
  await killed.end();
  own.remove();
});

test('ended workers are deleted after RETENTION, others are not', async () => {
  const own = temporaryFolder();
  const pruning = await RunningServer.start(own.path);
  const relay = client(pruning.address);
  for (const uid of ['ended', 'running']) {
    await register(relay, { uid, name: uid });
    const stream = new RelayStream(relay);
    await stream.open(uid);
    await stream.append('one');
    stream.close();
    await stream.outcome();
  }
  await finish(relay, { workerUid: 'ended' });
  relay.close();
  await pruning.end();
  const { Store } = await import('../src/store/store.js');
  const store = await Store.open(own.path);
  assert.deepEqual(await store.prune(Date.now() - 3_600_000), { workers: 0 });
  assert.deepEqual(await store.prune(Date.now() + 1000), { workers: 1 });
  await store.close();
  await pruning.begin();
  const { workers } = (await (await fetch(`${pruning.page}/api/workers`)).json()) as { workers: { uid: string }[] };
  assert.deepEqual(workers.map((worker) => worker.uid), ['running']);
  await pruning.end();
  own.remove();
});

test('a token is asked for, and read again when it changes', async () => {
  const own = temporaryFolder();
  const file = path.join(own.path, 'token');
  writeFileSync(file, 'first\n');
  const guarded = await RunningServer.start(path.join(own.path, 'data'), { AUTH_TOKEN_FILE: file });
  const relay = client(guarded.address);
  const withToken = (token: string): Metadata => {
    const metadata = new Metadata();
    metadata.set('authorization', `Bearer ${token}`);
    return metadata;
  };
  await assert.rejects(register(relay, { uid: 'u' }), { code: status.UNAUTHENTICATED });
  await assert.rejects(register(relay, { uid: 'u' }, withToken('second')), { code: status.UNAUTHENTICATED });
  await assert.rejects(new RelayStream(relay).open('u'), { code: status.UNAUTHENTICATED });
  await register(relay, { uid: 'u' }, withToken('first'));
  await new RelayStream(relay, withToken('first')).open('u');
  writeFileSync(file, 'second');
  await register(relay, { uid: 'u' }, withToken('second'));
  assert.ok(!guarded.output.includes('second'));
  relay.close();
  await guarded.end();
  own.remove();
});

test('with TLS and an authority for clients, only a relay with a certificate is let in', async () => {
  const own = temporaryFolder();
  const at = (name: string): string => path.join(own.path, name);
  const openssl = (...args: string[]): void => void execFileSync('openssl', args, { stdio: 'pipe' });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl('req', '-x509', ...key, '-days', '2', '-subj', '/CN=authority', '-keyout', at('ca.key'), '-out', at('ca.crt'));
  for (const name of ['server', 'relay']) {
    openssl('req', ...key, '-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', at(`${name}.key`), '-out', at(`${name}.csr`));
    openssl('x509', '-req', '-days', '2', '-in', at(`${name}.csr`), '-CA', at('ca.crt'), '-CAkey', at('ca.key'), '-CAcreateserial', '-copy_extensions', 'copy', '-out', at(`${name}.crt`));
  }
  const secure = await RunningServer.start(at('data'), {
    TLS_CERT_FILE: at('server.crt'), TLS_KEY_FILE: at('server.key'), TLS_CLIENT_CA_FILE: at('ca.crt'),
  });
  const ca = readFileSync(at('ca.crt'));
  const stranger = client(secure.address, credentials.createSsl(ca));
  await assert.rejects(register(stranger, { uid: 'u' }), { code: status.UNAVAILABLE });
  const relay = client(secure.address, credentials.createSsl(ca, readFileSync(at('relay.key')), readFileSync(at('relay.crt'))));
  await register(relay, { uid: 'u', name: 'w' });
  const stream = new RelayStream(relay);
  await stream.open('u');
  assert.equal((await stream.append('secret')).sequence, 1);
  stream.close();
  stranger.close();
  relay.close();
  await secure.end();
  own.remove();
});
