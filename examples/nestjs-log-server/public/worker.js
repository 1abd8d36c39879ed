import { pieces } from './ansi.js';
import { byId, bytesText, countText, counted, durationText, exitText, focusOnSlash, get, listen, make, startedMs, stateBadge, timeText } from './shared.js';

/** @typedef {import('./shared.js').Worker} Worker */
/** @typedef {import('./shared.js').Log} Log */
/** @typedef {{ sequence: number, time: string, stream: 'stdout' | 'stderr' | null, text: string, cut?: number,
 *   gap?: { reason: string, message: string, fromMs: number | null, toMs: number | null, lines: number } }} Line */
/** @typedef {{ lines: Line[], from: number, through: number, log: Log }} Page */

/** How many lines are asked for at once, and how many the page holds. */
const atOnce = 500;
const most = 4000;

const clock = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3, hourCycle: 'h23' });

const address = new URL(location.href);
const uid = decodeURIComponent(address.pathname.split('/').pop() ?? '');
const view = byId('log');
const query = byId('query');
const stream = byId('stream');
const follow = byId('follow');
const jump = byId('jump');

/** @type {Worker} */
let worker;
/** @type {Log | undefined} */
let log;
/** @type {EventSource | undefined} */
let tail;
/** The lines that are on the page lie between these numbers, both inclusive. */
let from = 1;
let through = 0;
/** Lines that came while the page did not follow. */
let unseen = 0;
/** What is loaded belongs to this; an answer to an older question is dropped. */
let generation = 0;
let loading = false;
let shownLogs = '';

query.value = address.searchParams.get('q') ?? '';
stream.value = address.searchParams.get('stream') ?? '';
follow.checked = !location.hash.startsWith('#L');
for (const [id, fallback] of /** @type {[string, boolean][]} */ ([['wrap', true], ['times', false]])) {
  const box = byId(id);
  box.checked = (localStorage.getItem(id) ?? String(fallback)) === 'true';
  const show = () => view.classList.toggle(id, box.checked);
  box.addEventListener('change', () => {
    localStorage.setItem(id, String(box.checked));
    show();
    stick();
  });
  show();
}

async function begin() {
  try {
    worker = await get(`/api/workers/${encodeURIComponent(uid)}`);
  } catch (error) {
    byId('name').textContent = uid;
    view.replaceChildren(make('p', 'empty', `This worker cannot be shown: ${error instanceof Error ? error.message : error}.`));
    return;
  }
  const wanted = address.searchParams.get('log');
  log = worker.logs.find((each) => name(each) === wanted) ?? worker.logs.find((each) => !each.init) ?? worker.logs[0];
  showWorker();
  if (log) {
    await load();
  } else {
    view.replaceChildren(make('p', 'empty', 'Nothing of its logs has come yet.'));
    setTimeout(begin, 1000);
  }
}

/** What a log is called in an address. @param {Log} each */
function name(each) {
  return `${each.container}.${each.restartCount}`;
}

/** Loads the log anew: its end, or what is around the line of the address. */
async function load() {
  if (!log) {
    return;
  }
  const mine = ++generation;
  tail?.close();
  const line = Number(/^#L(\d+)$/.exec(location.hash)?.[1] ?? 0);
  const before = line > 0 && !follow.checked ? `&before=${line + atOnce / 2}` : '';
  /** @type {Page} */
  let page;
  try {
    page = await get(`/api/logs/${log.id}/lines?limit=${atOnce}${before}${filter()}`);
  } catch (error) {
    view.replaceChildren(make('p', 'empty', `The log cannot be read: ${error instanceof Error ? error.message : error}.`));
    return;
  }
  if (mine !== generation) {
    return;
  }
  log = page.log;
  from = page.from;
  through = page.through;
  unseen = 0;
  view.replaceChildren(...page.lines.map(row));
  // From the end of what is stored on, also when the page shows an older part.
  const after = before ? page.log.lines : through;
  tail = listen(`/api/logs/${log.id}/events?after=${after}${filter()}`, {
    lines: (/** @type {Page} */ next) => mine === generation && came(next),
    worker: (/** @type {Worker} */ next) => mine === generation && changed(next),
  });
  if (line > 0 && !follow.checked) {
    const row = view.querySelector(`[data-sequence="${line}"]`);
    row?.classList.add('here');
    row?.scrollIntoView({ block: 'center' });
  }
  stick();
  showCount();
  await fill();
}

function filter() {
  const parts = [query.value && `q=${encodeURIComponent(query.value)}`, stream.value && `stream=${stream.value}`];
  return parts.filter(Boolean).map((part) => `&${part}`).join('');
}

/** New lines are there. @param {Page} page */
function came(page) {
  log = page.log;
  if (follow.checked && page.from <= through + 1) {
    const fresh = page.lines.filter((line) => line.sequence > through);
    view.append(...fresh.map(row));
    through = page.through;
    trim('first');
    stick();
  } else {
    unseen += page.lines.length;
  }
  showCount();
}

/** @param {Worker} next */
function changed(next) {
  if (next) {
    worker = next;
    log = worker.logs.find((each) => each.id === log?.id) ?? log;
    showWorker();
    showCount();
  }
}

/** Takes away what is too much, at the end that nobody looks at. @param {'first' | 'last'} side */
function trim(side) {
  while (view.childElementCount > most) {
    const element = side === 'first' ? view.firstElementChild : view.lastElementChild;
    const sequence = Number(element.dataset.sequence);
    if (side === 'first') {
      from = sequence + 1;
    } else {
      through = sequence - 1;
    }
    element.remove();
  }
}

/** Keeps the end in sight while following. */
function stick() {
  if (follow.checked) {
    view.scrollTop = view.scrollHeight;
  }
}

/** Loads more above until the page is full, or there is no more: a search may find little at once. */
async function fill() {
  while (from > 1 && view.scrollHeight <= view.clientHeight && (await loadBefore()));
}

async function loadBefore() {
  if (loading || !log || from <= 1) {
    return false;
  }
  loading = true;
  const mine = generation;
  try {
    /** @type {Page} */
    const page = await get(`/api/logs/${log.id}/lines?limit=${atOnce}&before=${from}${filter()}`);
    if (mine !== generation) {
      return false;
    }
    const height = view.scrollHeight;
    from = page.from;
    view.prepend(...page.lines.map(row));
    view.scrollTop += view.scrollHeight - height;
    if (!follow.checked) {
      trim('last');
    }
    showCount();
    return true;
  } finally {
    loading = false;
  }
}

async function loadAfter() {
  if (loading || !log || through >= log.lines) {
    return;
  }
  loading = true;
  const mine = generation;
  try {
    /** @type {Page} */
    const page = await get(`/api/logs/${log.id}/lines?limit=${atOnce}&after=${through}${filter()}`);
    if (mine !== generation) {
      return;
    }
    log = page.log;
    through = Math.max(through, page.through);
    view.append(...page.lines.map(row));
    trim('first');
    showCount();
  } finally {
    loading = false;
  }
}

/** @param {Line} line */
function row(line) {
  if (line.gap) {
    const { gap } = line;
    const span = gap.fromMs !== null && gap.toMs !== null ? `, between ${timeText(gap.fromMs)} and ${timeText(gap.toMs)}` : '';
    const lost = gap.lines > 0 ? counted(gap.lines, 'line') : 'Lines';
    const text = `${lost} missing here${span}: ${gap.message || gap.reason}`;
    const element = make('div', 'gap', make('span', 'sign', '⚠'), make('span', '', text));
    element.dataset['sequence'] = String(line.sequence);
    element.title = gap.reason;
    return element;
  }
  const number = make('a', 'n', String(line.sequence));
  number.href = `#L${line.sequence}`;
  number.tabIndex = -1;
  const time = make('time', 't', clock.format(new Date(line.time)));
  time.dateTime = line.time;
  time.title = line.time;
  const text = make('span', 'x');
  for (const piece of pieces(line.text)) {
    text.append(...marked(piece.text, piece.classes));
  }
  if (line.cut) {
    text.append(make('em', 'cut', ` … ${bytesText(line.cut)} more, in the download`));
  }
  const element = make('div', line.stream === 'stderr' ? 'line stderr' : 'line', number, time);
  if (line.stream === 'stderr') {
    const sign = make('abbr', 's', 'err');
    sign.title = 'written to stderr';
    element.append(sign);
  }
  element.append(text);
  element.dataset['sequence'] = String(line.sequence);
  return element;
}

/** Text with what is searched for marked. @param {string} text @param {string} classes @returns {(Node | string)[]} */
function marked(text, classes) {
  const needle = query.value.toLowerCase();
  const lower = text.toLowerCase();
  /** @type {(Node | string)[]} */
  const nodes = [];
  let at = 0;
  // Where changing the case changes the length, the places do not fit.
  if (needle && lower.length === text.length) {
    for (let hit = lower.indexOf(needle); hit >= 0; hit = lower.indexOf(needle, at)) {
      nodes.push(text.slice(at, hit), make('mark', '', text.slice(hit, hit + needle.length)));
      at = hit + needle.length;
    }
  }
  nodes.push(text.slice(at));
  return classes ? [make('span', classes, ...nodes)] : nodes;
}

function showWorker() {
  document.title = `${worker.name || uid} · Ottoscaler logs`;
  byId('name').textContent = worker.name || uid;
  byId('crumb').textContent = worker.name || uid;
  byId('state').replaceChildren(stateBadge(worker));
  byId('exit').textContent = exitText(worker);
  const facts = [
    ['Task', worker.taskId],
    ['Pool', worker.pool],
    ['Namespace', worker.namespace],
    ['Started', timeText(startedMs(worker))],
    ['Duration', durationText(worker)],
    ['Event', worker.eventId],
    ...Object.entries(worker.metadata),
    ['Message', worker.message || (worker.ends.find((end) => end.message !== '')?.message ?? '')],
  ];
  byId('facts').replaceChildren(
    ...facts.filter(([, value]) => value).map(([term, value]) => make('div', '', make('dt', '', term ?? ''), make('dd', '', value ?? ''))),
  );
  const logs = JSON.stringify([address.search, log?.id, worker.logs.map((each) => each.id)]);
  if (logs !== shownLogs) {
    shownLogs = logs; // made anew only then: somebody may have the focus there
    byId('tabs').replaceChildren(...worker.logs.map(tab));
  }
}

/** @param {Log} each */
function tab(each) {
  const link = make('a', '', each.container);
  const to = new URL(address);
  to.searchParams.set('log', name(each));
  to.hash = '';
  link.href = to.pathname + to.search;
  if (each.init) {
    link.append(make('small', '', 'init'));
  }
  if (each.restartCount > 0) {
    link.append(make('small', '', `restart ${each.restartCount}`));
  }
  if (each.id === log?.id) {
    link.setAttribute('aria-current', 'page');
  }
  return link;
}

function showCount() {
  if (!log) {
    return;
  }
  byId('download').href = `/api/logs/${log.id}/download`;
  const shown = view.childElementCount;
  const all = `${counted(log.lines, 'line')}, ${bytesText(log.bytes)}`;
  const filtered = query.value || stream.value;
  byId('count').textContent = filtered ? `${countText(shown)}${from > 1 ? '+' : ''} of ${all}` : all;
  const verdict = byId('verdict');
  const gaps = log.gaps > 0 ? `${counted(log.gaps, 'gap')} · ` : '';
  if (!log.complete) {
    verdict.textContent = `${gaps}${worker.finishedMs === null ? 'still writing' : 'incomplete: the worker ended before its log was complete'}`;
    verdict.className = worker.finishedMs === null ? '' : 'warn';
  } else {
    verdict.textContent = `${gaps}${log.matches ? 'complete, checksum matches' : `complete, but ${log.mismatch}`}`;
    verdict.className = log.matches && log.gaps === 0 ? 'good' : 'warn';
  }
  jump.hidden = follow.checked;
  jump.textContent = unseen > 0 ? `${counted(unseen, 'new line')} ↓` : 'To the end ↓';
}

/** Keeps the filter in the address, so that a reload shows the same. */
function filtered() {
  for (const [key, value] of [['q', query.value], ['stream', stream.value]]) {
    if (value) {
      address.searchParams.set(key, value);
    } else {
      address.searchParams.delete(key);
    }
  }
  history.replaceState(null, '', address.pathname + address.search + location.hash);
  showWorker();
  void load();
}

/** @type {number | undefined} */
let typing;
query.addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(filtered, 200);
});
stream.addEventListener('change', filtered);
byId('filters').addEventListener('submit', (/** @type {Event} */ event) => event.preventDefault());

function followAgain() {
  follow.checked = true;
  history.replaceState(null, '', address.pathname + address.search);
  void load();
}
jump.addEventListener('click', followAgain);
follow.addEventListener('change', () => {
  if (follow.checked) {
    followAgain();
  } else {
    showCount();
  }
});

let lastTop = 0;
view.addEventListener('scroll', () => {
  const up = view.scrollTop < lastTop;
  lastTop = view.scrollTop;
  const bottom = view.scrollHeight - view.scrollTop - view.clientHeight < 4;
  if (up && !bottom && follow.checked) {
    follow.checked = false;
    showCount();
  }
  if (view.scrollTop < 200) {
    void loadBefore();
  }
  if (bottom && !up && !follow.checked) {
    if (log && through >= log.lines && unseen === 0) {
      follow.checked = true;
      showCount();
    } else {
      void loadAfter();
    }
  }
});
view.addEventListener('click', (/** @type {MouseEvent} */ event) => {
  if (event.target instanceof HTMLAnchorElement && event.target.className === 'n') {
    event.preventDefault();
    follow.checked = false;
    history.replaceState(null, '', address.pathname + address.search + event.target.hash);
    view.querySelector('.here')?.classList.remove('here');
    event.target.parentElement?.classList.add('here');
    showCount();
  }
});
new ResizeObserver(stick).observe(view);
focusOnSlash(query);
setInterval(() => worker && worker.finishedMs === null && showWorker(), 1000); // its duration
await begin();
