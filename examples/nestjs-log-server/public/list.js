import { byId, countText, counted, durationText, exitText, focusOnSlash, get, listen, make, startedMs, stateBadge, stateOf, timeText } from './shared.js';

/** @typedef {import('./shared.js').Worker} Worker */
/** @typedef {{ worker: Worker, row: HTMLTableRowElement, shown: string }} Entry */

/** How many workers the page holds; older ones are asked for. */
const most = 2000;

/** @type {Map<number, Entry>} */
const entries = new Map();
/** @type {EventSource | undefined} */
let events;
const rows = byId('rows');
const query = byId('query');
const older = byId('older');
const address = new URL(location.href);
let state = address.searchParams.get('state') ?? '';
query.value = address.searchParams.get('q') ?? '';

/** Fetches the newest workers, and listens to what changes from there on. */
async function begin() {
  events?.close();
  try {
    const { workers, more, now } = await get('/api/workers');
    entries.clear();
    rows.replaceChildren();
    older.hidden = !more;
    put(workers, () => true);
    // Of workers older than those on the page, nothing is shown.
    const newer = (/** @type {Worker} */ worker) => older.hidden || worker.id > Math.min(...entries.keys());
    events = listen(`/api/events?since=${encodeURIComponent(now)}`, { workers: (changed) => put(changed, newer), reset: begin });
  } catch (error) {
    byId('empty').hidden = false;
    byId('empty').textContent = `The workers cannot be read: ${error instanceof Error ? error.message : error}. Trying again.`;
    setTimeout(begin, 2000);
  }
}

/** @param {Worker[]} workers @param {(worker: Worker) => boolean} wanted says which of those that are not there are */
function put(workers, wanted) {
  for (const worker of workers) {
    const entry = entries.get(worker.id);
    if (entry) {
      entry.worker = worker;
    } else if (wanted(worker)) {
      const row = make('tr', '');
      entries.set(worker.id, { worker, row, shown: '' });
      // The newest first, which have the highest numbers.
      const before = [...rows.children].find((other) => Number(other.dataset.id) < worker.id);
      row.dataset['id'] = String(worker.id);
      rows.insertBefore(row, before ?? null);
    }
  }
  while (entries.size > most) {
    const last = Math.min(...entries.keys());
    entries.get(last)?.row.remove();
    entries.delete(last);
  }
  render();
}

function render() {
  /** @type {string[]} */
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const counts = { starting: 0, running: 0, succeeded: 0, failed: 0, ended: 0 };
  let shown = 0;
  for (const entry of entries.values()) {
    const { worker, row } = entry;
    const now = stateOf(worker);
    counts[now]++;
    renderRow(entry);
    const text = [worker.name, worker.namespace, worker.taskId, worker.pool, worker.uid, ...Object.values(worker.metadata)].join('\n').toLowerCase();
    const right = state === '' || now === state || (state === 'running' && now === 'starting');
    row.hidden = !right || !words.every((word) => text.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  const parts = [counted(counts.running + counts.starting, 'worker').replace(/workers?$/, 'running'), `${countText(counts.succeeded)} succeeded`, `${countText(counts.failed)} failed`];
  if (counts.ended > 0) {
    parts.push(`${countText(counts.ended)} ended unseen`);
  }
  setText(byId('summary'), parts.join(' · '));
  const empty = byId('empty');
  empty.hidden = shown > 0;
  setText(empty, entries.size === 0 ? 'No workers yet. They appear here by themselves.' : 'No worker passes the filter.');
  for (const button of document.querySelectorAll('[data-filter]')) {
    button.setAttribute('aria-pressed', String(button instanceof HTMLElement && button.dataset['filter'] === state));
  }
}

/** @param {Entry} entry */
function renderRow(entry) {
  const { worker, row } = entry;
  const duration = durationText(worker);
  const shown = JSON.stringify([worker, duration]);
  if (shown === entry.shown) {
    return;
  }
  entry.shown = shown;
  const link = make('a', 'worker-link', worker.name || worker.uid);
  link.href = `/workers/${encodeURIComponent(worker.uid)}`;
  const focused = row.contains(document.activeElement);
  const exit = exitText(worker);
  const gaps = worker.gaps > 0 ? [make('span', 'warn', counted(worker.gaps, 'gap'))] : [];
  row.replaceChildren(
    make('td', '', stateBadge(worker)),
    make('td', '', link, make('small', '', worker.namespace)),
    make('td', 'mono', worker.taskId),
    make('td', '', worker.pool),
    make('td', 'number', countText(worker.lines), ...gaps),
    make('td', 'quiet', timeText(startedMs(worker))),
    make('td', 'number quiet', duration),
    make('td', exit.startsWith('exit 0') ? 'quiet' : 'exit', exit),
  );
  if (focused) {
    link.focus();
  }
}

/** @param {HTMLElement} element @param {string} text */
function setText(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/** Keeps the filter in the address, so that a reload shows the same. */
function filter() {
  const { searchParams } = address;
  for (const [name, value] of [['q', query.value.trim()], ['state', state]]) {
    if (value) {
      searchParams.set(name, value);
    } else {
      searchParams.delete(name);
    }
  }
  history.replaceState(null, '', address);
  render();
}

query.addEventListener('input', filter);
byId('filters').addEventListener('submit', (/** @type {Event} */ event) => event.preventDefault());
byId('filters').addEventListener('click', (/** @type {MouseEvent} */ event) => {
  if (event.target instanceof HTMLElement && event.target.dataset['filter'] !== undefined) {
    state = event.target.dataset['filter'];
    filter();
  }
});
rows.addEventListener('click', (/** @type {MouseEvent} */ event) => {
  const target = event.target instanceof Element ? event.target : undefined;
  if (!target?.closest('a') && !getSelection()?.toString()) {
    target?.closest('tr')?.querySelector('a')?.click();
  }
});
older.addEventListener('click', async () => {
  const { workers, more } = await get(`/api/workers?before=${Math.min(...entries.keys())}`);
  older.hidden = !more;
  put(workers, () => true);
});
focusOnSlash(query);
setInterval(render, 1000); // durations of running workers
await begin();
