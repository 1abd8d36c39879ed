/// <reference lib="dom" />
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import http from 'node:http';
import { mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import type { Browser, Page } from 'playwright-core';
import type { LogServiceClient } from '../src/gen/ottoscaler/logs/v1/LogService.js';
import { client, finish, register, RelayStream } from './relay.js';
import { RunningServer, temporaryFolder } from './server.js';

/** The page, in the browser that Debian has, with a relay that sends while it is watched. */

const executablePath = process.env['CHROMIUM'] ?? '/usr/bin/chromium';
const screenshots = process.env['SCREENSHOTS'] ?? fileURLToPath(new URL('../../dist/screenshots', import.meta.url));

const folder = temporaryFolder();
let server: RunningServer;
let to: LogServiceClient;
let browser: Browser;
let page: Page;
const problems: string[] = [];

before(async () => {
  server = await RunningServer.start(path.join(folder.path, 'data'));
  to = client(server.address);
  browser = await chromium.launch({
    executablePath,
    args: [
      '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage',
    ],
  });
  page = await browser.newPage({ viewport: { width: 1280, height: 800 }, colorScheme: 'light' });
  page.on('pageerror', (error) => problems.push(`exception: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error') {
      problems.push(message.text());
    }
  });
  mkdirSync(screenshots, { recursive: true });
});

after(async () => {
  await browser?.close();
  to?.close();
  await server?.end();
  folder.remove();
});

const seconds = 1_000;
const now = Math.floor(Date.now() / seconds);

function shot(name: string): Promise<Buffer> {
  return page.screenshot({ path: path.join(screenshots, `${name}.png`) });
}

interface Told {
  uid: string;
  name: string;
  task: string;
  pool: string;
  lines: number;
  code: number | null;
  ago: number;
  took: number;
  reason?: string;
  signal?: number;
}

const tail = (text: string): ReturnType<Page['locator']> => page.locator('#log .line .x', { hasText: text });

test('the list shows workers as they come, run and end', async () => {
  const told: Told[] = [
    { uid: 'a1', name: 'otto-build-8f2c-0', task: 'build-1841', pool: 'default', lines: 812, code: 0, ago: 1900, took: 431 },
    { uid: 'a2', name: 'otto-build-8f2c-1', task: 'build-1841', pool: 'default', lines: 805, code: 0, ago: 1899, took: 428 },
    { uid: 'a3', name: 'otto-e2e-51d0-0', task: 'e2e-nightly', pool: 'large', lines: 3120, code: 137, ago: 1500, took: 655, reason: 'OOMKilled', signal: 9 },
    { uid: 'a4', name: 'otto-lint-c77e-0', task: 'lint-1842', pool: 'small', lines: 64, code: 1, ago: 700, took: 38 },
    { uid: 'a5', name: 'otto-test-03ab-0', task: 'test-1842', pool: 'default', lines: 1290, code: 0, ago: 690, took: 372 },
    { uid: 'a6', name: 'otto-test-03ab-1', task: 'test-1842', pool: 'default', lines: 1283, code: 0, ago: 690, took: 391 },
    { uid: 'a7', name: 'otto-image-d9f1-0', task: 'image-1842', pool: 'large', lines: 415, code: null, ago: 96, took: 0 },
    { uid: 'a8', name: 'otto-docs-4be2-0', task: 'docs-1843', pool: 'small', lines: 37, code: null, ago: 21, took: 0 },
  ];
  await page.goto(server.page);
  await page.getByText('No workers yet').waitFor();
  await page.locator('#link[data-state=live]').waitFor();
  for (const worker of told) {
    await tell(worker);
  }
  await page.locator('tbody tr').nth(7).waitFor();
  await page.getByText('2 running · 4 succeeded · 2 failed').waitFor();
  const row = page.locator('tr', { hasText: 'otto-e2e-51d0-0' });
  assert.match(await row.innerText(), /Failed[\s\S]*e2e-nightly[\s\S]*large[\s\S]*3,120[\s\S]*exit 137 · signal 9 · OOMKilled/);
  await page.locator('tr', { hasText: 'otto-docs-4be2-0' }).getByText('37', { exact: true }).waitFor();
  assert.match(await page.locator('tbody tr').first().innerText(), /otto-docs/, 'the newest comes first');
  await shot('workers');
});

async function tell(worker: Told): Promise<void> {
  const { uid, code } = worker;
  await register(to, { uid, name: worker.name, namespace: 'ottoscaler', taskId: worker.task, pool: worker.pool, eventId: '1790612-0', metadata: { repository: 'shop/api' } });
  const stream = new RelayStream(to);
  await stream.open(uid);
  const lines = Array.from({ length: worker.lines }, (_, i) => `step ${i + 1} of ${worker.lines}`);
  while (stream.sequence < lines.length) {
    await stream.append(...lines.slice(stream.sequence, stream.sequence + 500));
  }
  if (code === null) {
    return;
  }
  assert.equal((await stream.complete()).matches, true);
  stream.close();
  const started = now - worker.ago;
  await finish(to, {
    workerUid: uid,
    containers: [
      {
        container: 'agent', exitCode: code, signal: worker.signal ?? 0, reason: worker.reason ?? (code === 0 ? 'Completed' : 'Error'),
        startedTime: { seconds: started }, finishedTime: { seconds: started + worker.took },
      },
    ],
  });
}

test('the list is filtered by text and state, and a reload keeps the filter', async () => {
  const visible = (): Promise<number> => page.locator('tbody tr:visible').count();
  await page.keyboard.press('/');
  await page.keyboard.type('1842');
  assert.equal(await visible(), 4);
  await page.getByRole('button', { name: 'Failed' }).click();
  assert.equal(await visible(), 1);
  await page.reload();
  await page.locator('tbody tr:visible').first().waitFor();
  assert.equal(await visible(), 1);
  assert.equal(await page.getByRole('button', { name: 'Failed' }).getAttribute('aria-pressed'), 'true');
  await page.getByRole('searchbox').fill('');
  await page.getByRole('button', { name: 'All', exact: true }).click();
  assert.equal(await visible(), 8);
  assert.equal(new URL(page.url()).search, '');
});

let stream: RelayStream;

test('the lines of a running worker are seen as they arrive', async () => {
  await register(to, {
    uid: 'live', name: 'otto-release-7a40-0', namespace: 'ottoscaler', taskId: 'release-2.14.0', pool: 'large', eventId: '1790613-2',
    metadata: { repository: 'shop/api', commit_sha: '4f0c2d9', triggered_by: 'mina' },
  });
  const init = new RelayStream(to);
  await init.open('live', 'prepare', 0, true);
  await init.append('cloning shop/api at 4f0c2d9', 'done in 1.8 s');
  await init.complete();
  init.close();

  await page.getByRole('link', { name: 'otto-release-7a40-0' }).click();
  stream = new RelayStream(to);
  await stream.open('live');
  await send({}, '\u001b[1;34m==>\u001b[0m Building \u001b[1mshop/api 2.14.0\u001b[0m');
  await page.reload(); // it began at the init container, which was the only log
  await tail('Building shop/api 2.14.0').waitFor();
  const steps = [
    'resolving dependencies: 412 packages', 'compiling src/checkout', 'compiling src/catalogue', 'compiling src/session',
    '\u001b[32m✓\u001b[0m unit tests: 1,204 passed', 'linking shop-api (18.4 MB)',
  ];
  for (const step of steps) {
    await send({ streams: [1] }, step);
    await page.locator('#log .line').nth(stream.sequence - 1).waitFor();
  }
  await send({ streams: [2] }, '\u001b[33mwarning\u001b[0m: src/session/cookie.ts: SameSite is not set, the browser decides');
  await page.locator('.line.stderr').waitFor();
  stream.send({ batch: stream.gap('rotated', 'the node removed them before they were read', 38, now + 8) });
  assert.equal((await stream.answer()).ack!.verdict, 1);
  await page.locator('.gap', { hasText: '38 lines missing here' }).waitFor();
  const layers = Array.from({ length: 40 }, (_, i) => `pushing layer ${i + 1}/40  sha256:${createHash('sha256').update(`${i}`).digest('hex')}`);
  await send({ streams: [1, 1, 1, 1, 1, 1, 1, 1] }, ...layers.slice(0, 8));
  await tail('pushing layer 8/40').waitFor();
  await page.getByLabel('Times').check();
  await page.locator('#state .running').waitFor();
  await shot('live');
  await send({}, ...layers.slice(8));
  await tail('pushing layer 40/40').waitFor();
  assert.ok(await atEnd(), 'the page does not follow');
});

async function send(more: { streams?: (1 | 2)[] }, ...lines: string[]): Promise<void> {
  const batch = stream.batch(lines, { baseTime: { seconds: now + stream.sequence, nanos: 250_000_000 }, ...more });
  stream.send({ batch });
  const { ack } = await stream.answer();
  assert.equal(ack!.sequence, stream.sequence);
}

function atEnd(): Promise<boolean> {
  return page.locator('#log').evaluate((log) => log.scrollHeight - log.scrollTop - log.clientHeight < 4);
}

test('text of a worker is never markup', async () => {
  await send({}, '<img src=x onerror="document.title=1"><script>document.title=2</script> & \u0000 \ufffd');
  await tail('<img src=x onerror').waitFor();
  assert.equal(await page.locator('#log img, #log script').count(), 0);
  assert.match(await page.title(), /^otto-release/);
});

test('a search shows the lines that match, new ones too, and survives a reload', async () => {
  await page.getByRole('searchbox').fill('COMPILING');
  await tail('compiling src/session').waitFor();
  await page.waitForFunction(() => document.querySelectorAll('#log .line').length === 3);
  assert.equal(await page.locator('#log .gap').count(), 1, 'a search must not hide that lines are missing');
  assert.equal(await page.locator('#log mark').first().innerText(), 'compiling');
  await send({}, 'nothing of the kind', 'compiling src/admin');
  await tail('compiling src/admin').waitFor();
  assert.equal(await page.locator('#log .line').count(), 4);
  await page.reload();
  await tail('compiling src/admin').waitFor();
  assert.equal(await page.locator('#log .line').count(), 4);
  assert.equal(await page.getByRole('searchbox').inputValue(), 'COMPILING');
  await page.getByRole('combobox').selectOption('stderr');
  await page.waitForFunction(() => document.querySelectorAll('#log .line').length === 0);
  await page.getByRole('searchbox').fill('');
  await page.locator('.line.stderr').waitFor();
  await page.getByRole('combobox').selectOption('');
  await tail('pushing layer 40/40').waitFor();
});

test('who scrolls up is left alone, and comes back to the end', async () => {
  await page.locator('#log').hover();
  await page.mouse.wheel(0, -600);
  await page.waitForFunction(() => !(document.querySelector('#follow') as HTMLInputElement).checked);
  const top = await page.locator('#log').evaluate((log) => log.scrollTop);
  await send({}, 'said while nobody followed');
  await page.getByRole('button', { name: '1 new line' }).waitFor();
  assert.equal(await page.locator('#log').evaluate((log) => log.scrollTop), top);
  await page.getByRole('button', { name: '1 new line' }).click();
  await tail('said while nobody followed').waitFor();
  assert.ok(await atEnd());
});

test('a long log is loaded piece by piece, and a line has an address', async () => {
  await page.goto(`${server.page}/workers/a3#L1200`);
  await page.locator('.here[data-sequence="1200"]').waitFor();
  const first = async (): Promise<number> => Number(await page.locator('#log .line').first().getAttribute('data-sequence'));
  assert.ok((await first()) > 1);
  for (let i = 0; i < 200 && (await first()) > 1; i++) {
    await page.locator('#log').press('Home');
    await page.waitForTimeout(50);
  }
  assert.equal(await first(), 1);
  await page.getByRole('button', { name: /To the end/ }).click();
  await tail('step 3120 of 3120').waitFor();
  assert.match(await page.locator('#verdict').innerText(), /complete, checksum matches/);
});

test('the page hears again from a server that was killed, without a line twice', async () => {
  await page.goto(`${server.page}/workers/live`);
  await tail('said while nobody followed').waitFor();
  await server.end('SIGKILL');
  await page.locator('#link[data-state=lost]').waitFor();
  problems.length = 0; // a refused connection is an error on the console
  await server.begin();
  stream = new RelayStream(to);
  await stream.open('live');
  await send({}, 'the server is back');
  await tail('the server is back').waitFor({ timeout: 60_000 });
  await page.locator('#link[data-state=live]').waitFor();
  const numbers = await page.locator('#log [data-sequence]').evaluateAll((rows) => rows.map((row) => Number((row as HTMLElement).dataset['sequence'])));
  assert.deepEqual(numbers, Array.from({ length: stream.sequence }, (_, i) => i + 1));
  problems.length = 0;
});

test('the end of a worker is seen', async () => {
  assert.equal((await stream.complete()).matches, true);
  stream.close();
  await finish(to, {
    workerUid: 'live',
    containers: [{ container: 'agent', exitCode: 0, reason: 'Completed', startedTime: { seconds: now - 90 }, finishedTime: { seconds: now } }],
  });
  await page.locator('#state .succeeded').waitFor();
  assert.equal(await page.locator('#exit').innerText(), 'exit 0');
  assert.match(await page.locator('#verdict').innerText(), /1 gap · complete, checksum matches/);
  await shot('ended');
});

test('the end stays in sight when the window changes', async () => {
  for (const [width, height] of [[400, 700], [1280, 500], [1280, 800]] as const) {
    await page.setViewportSize({ width, height });
    await page.waitForFunction(() => {
      const log = document.querySelector('#log')!;
      return log.scrollHeight > log.clientHeight && log.scrollHeight - log.scrollTop - log.clientHeight < 4;
    });
    assert.ok(await page.getByLabel('Follow').isChecked());
  }
});

test('a log is downloaded byte for byte', async () => {
  const downloading = page.waitForEvent('download');
  await page.getByRole('link', { name: 'Download' }).click();
  const download = await downloading;
  assert.equal(download.suggestedFilename(), 'otto-release-7a40-0-agent-0.log');
  const text = readFileSync(await download.path(), 'utf8');
  assert.ok(text.startsWith('\u001b[1;34m==>\u001b[0m Building'));
  assert.equal(text.split('\n').length, stream.sequence + 1);
});

test('the page is dark where that is preferred', async () => {
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.goto(server.page);
  await page.locator('tbody tr').first().waitFor();
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(ground, 'rgb(15, 17, 23)');
  await shot('dark');
  await page.emulateMedia({ colorScheme: 'light' });
});

test('nothing went wrong in the browser', () => {
  assert.deepEqual(problems, []);
});

/** Asks as a program does that is no browser: any method, path and Host. */
function ask(method: string, target: string, host = '127.0.0.1'): Promise<{ status: number; headers: http.IncomingHttpHeaders; text: string }> {
  const { port } = new URL(server.page);
  return new Promise((resolve, reject) => {
    const request = http.request({ host: '127.0.0.1', port, method, path: target, headers: { host } }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (piece: string) => (text += piece));
      response.on('end', () => resolve({ status: response.statusCode!, headers: response.headers, text }));
    });
    request.on('error', reject).end();
  });
}

test('the page only reads, and only for names that are its own', async () => {
  for (const method of ['POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS']) {
    assert.equal((await ask(method, '/api/workers')).status, 405, method);
  }
  assert.equal((await ask('GET', '/api/workers', 'logs.attacker.example')).status, 421);
  assert.equal((await ask('GET', '/', 'localhost.attacker.example:8080')).status, 421);
  assert.equal((await ask('GET', '/', 'logs')).status, 421);
  for (const host of ['localhost', 'localhost:8080', '127.0.0.1:1', '[::1]:8080', '10.1.2.3']) {
    assert.equal((await ask('GET', '/', host)).status, 200, host);
  }
});

test('paths do not leave the folder of the page', async () => {
  for (const target of ['/../package.json', '/%2e%2e/package.json', '/..%2fpackage.json', '/....//package.json', '/%00', '/style.css/../../package.json', '//etc/passwd']) {
    const { status, text } = await ask('GET', target);
    assert.ok(status >= 400, `${target}: ${status}`);
    assert.ok(!text.includes('nestjs-log-server'), target);
  }
});

test('every answer carries the policy that keeps foreign code out', async () => {
  for (const target of ['/', '/workers/a1', '/list.js', '/api/workers', '/nothing']) {
    const { headers } = await ask('GET', target);
    assert.match(String(headers['content-security-policy']), /default-src 'none'; script-src 'self'/, target);
    assert.equal(headers['x-content-type-options'], 'nosniff');
    assert.equal(headers['x-powered-by'], undefined);
  }
});

test('wrong questions are answered with 4xx', async () => {
  for (const [target, status] of [['/api/logs/x/lines', 400], ['/api/logs/1/lines?before=-1', 400], ['/api/logs/1/lines?stream=both', 400], ['/api/logs/99999/lines', 404], ['/api/logs/99999/download', 404], ['/api/logs/99999/events', 404], ['/api/workers/nobody', 404]] as const) {
    assert.equal((await ask('GET', target)).status, status, target);
  }
});
