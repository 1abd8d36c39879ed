import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { LogServiceClient } from '../src/gen/ottoscaler/logs/v1/LogService.js';
import { client, finish, register, RelayStream } from './relay.js';
import { RunningServer, temporaryFolder } from './server.js';

/** What the page listens to, as a browser asks for it again after a break. */

const folder = temporaryFolder();
let server: RunningServer;
let to: LogServiceClient;

before(async () => {
  server = await RunningServer.start(folder.path);
  to = client(server.address);
});

after(async () => {
  to.close();
  await server.end();
  folder.remove();
});

interface Event {
  id: string;
  event: string;
  data: never;
}

/** Listens until something has come. */
async function listen(path: string, until: (events: readonly Event[]) => boolean, lastEventId?: string): Promise<Event[]> {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(new Error(`nothing more came on ${path}`)), 30_000);
  const response = await fetch(server.page + path, { signal: abort.signal, headers: lastEventId === undefined ? {} : { 'last-event-id': lastEventId } });
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type')!, /^text\/event-stream/);
  const events: Event[] = [];
  let text = '';
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    text += piece;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const fields = new Map(text.slice(0, end).split('\n').map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)]));
      text = text.slice(end + 2);
      if (fields.has('data')) {
        events.push({ id: fields.get('id') ?? '', event: fields.get('event')!, data: JSON.parse(fields.get('data')!) as never });
      }
    }
    if (until(events)) {
      break;
    }
  }
  clearTimeout(timer);
  abort.abort();
  return events;
}

async function newLog(uid: string): Promise<{ stream: RelayStream; log: number }> {
  await register(to, { uid, name: uid });
  const stream = new RelayStream(to);
  await stream.open(uid);
  const worker = (await (await fetch(`${server.page}/api/workers/${uid}`)).json()) as { logs: { id: number }[] };
  return { stream, log: worker.logs[0]!.id };
}

function sequences(events: readonly Event[]): number[] {
  return events.flatMap((event) => (event.event === 'lines' ? (event.data as { lines: { sequence: number }[] }).lines.map((line) => line.sequence) : []));
}

test('a tail goes on behind the last event, whatever comes meanwhile', async () => {
  const { stream, log } = await newLog('tail');
  await stream.append('1', '2', '3');
  const first = await listen(`/api/logs/${log}/events?after=1`, (events) => sequences(events).length === 2);
  assert.deepEqual(sequences(first), [2, 3]);
  const { id } = first.filter((event) => event.event === 'lines').at(-1)!;
  assert.equal(id, '3');
  await stream.append('4');
  setTimeout(() => void stream.append('5'), 200);
  const second = await listen(`/api/logs/${log}/events?after=1`, (events) => sequences(events).includes(5), id);
  assert.deepEqual(sequences(second), [4, 5]);
  stream.close();
});

test('a long log comes whole and in order while it is written', async () => {
  const { stream, log } = await newLog('long');
  const lines = 20_000;
  const sending = (async () => {
    while (stream.sequence < lines) {
      stream.send({ batch: stream.batch(Array.from({ length: 500 }, (_, i) => `line ${stream.sequence + i + 1}`)) });
      await stream.answer();
    }
  })();
  const events = await listen(`/api/logs/${log}/events`, (all) => sequences(all).length >= lines);
  await sending;
  assert.deepEqual(sequences(events), Array.from({ length: lines }, (_, i) => i + 1));
  stream.close();
});

test('a search through a tail skips what does not match, and still says how far it is', async () => {
  const { stream, log } = await newLog('search');
  await stream.append('apple', 'pear', 'Apple pie', 'plum');
  const [event] = await listen(`/api/logs/${log}/events?q=apple`, (events) => sequences(events).length === 2);
  assert.deepEqual(sequences([event!]), [1, 3]);
  assert.equal(event!.id, '4');
  stream.close();
});

test('the list hears of workers that changed since it was away, and only of those', async () => {
  const { stream } = await newLog('away');
  const { now } = (await (await fetch(`${server.page}/api/workers`)).json()) as { now: string };
  await register(to, { uid: 'new', name: 'new' });
  await stream.append('one');
  await stream.complete();
  stream.close();
  await finish(to, { workerUid: 'away' });
  const seen = (events: readonly Event[]): string[] => events.flatMap((event) => (event.data as { uid: string }[]).map((worker) => worker.uid));
  const events = await listen('/api/events', (all) => new Set(seen(all)).size >= 2, now);
  assert.deepEqual([...new Set(seen(events))].sort(), ['away', 'new']);
  const again = await listen(`/api/events?since=nothing`, () => true, 'another-7');
  assert.equal(again[0]!.event, 'reset', 'what a former server said must not be believed');
});

test('the oldest workers are a page away', async () => {
  for (let i = 0; i < 205; i++) {
    await register(to, { uid: `many-${i}`, name: `many-${i}` });
  }
  interface List {
    workers: { id: number; uid: string }[];
    more: boolean;
  }
  const first = (await (await fetch(`${server.page}/api/workers`)).json()) as List;
  assert.equal(first.workers.length, 200);
  assert.equal(first.more, true);
  assert.equal(first.workers[0]!.uid, 'many-204');
  const second = (await (await fetch(`${server.page}/api/workers?before=${first.workers.at(-1)!.id}`)).json()) as List;
  assert.equal(second.more, false);
  assert.equal(second.workers[0]!.uid, 'many-4');
});

test('lines before and after any number are found, whatever blocks they lie in', async () => {
  const { stream, log } = await newLog('pages');
  const texts: string[] = [];
  for (let size = 1; size <= 12; size++) {
    const lines = Array.from({ length: size }, (_, i) => `line ${texts.length + i + 1}${i % 3 === 0 ? ' third' : ''}`);
    texts.push(...lines);
    await stream.append(...lines);
  }
  interface Lines {
    lines: { sequence: number; text: string }[];
    from: number;
    through: number;
  }
  const ask = async (query: string): Promise<Lines> => (await (await fetch(`${server.page}/api/logs/${log}/lines?${query}`)).json()) as Lines;
  const expected = (from: number, through: number, word: string): number[] =>
    texts.flatMap((text, i) => (i + 1 >= from && i + 1 <= through && text.includes(word) ? [i + 1] : []));
  for (const word of ['', 'third']) {
    for (let at = 0; at <= texts.length + 1; at++) {
      const after = await ask(`after=${at}&limit=7&q=${word}`);
      assert.deepEqual(after.lines.map((line) => line.sequence), expected(at + 1, texts.length, word).slice(0, 7), `after ${at} ${word}`);
      const earlier = await ask(`before=${at}&limit=7&q=${word}`);
      assert.deepEqual(earlier.lines.map((line) => line.sequence), expected(1, at - 1, word).slice(-7), `before ${at} ${word}`);
      for (const line of [...after.lines, ...earlier.lines]) {
        assert.equal(line.text, texts[line.sequence - 1]);
      }
    }
  }
  stream.close();
});
