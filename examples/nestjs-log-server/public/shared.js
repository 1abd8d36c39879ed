/**
 * What both pages say and how.
 *
 * @typedef {{ container: string, restartCount: number, exitCode: number | null, signal: number, reason: string,
 *   message: string, startedMs: number | null, finishedMs: number | null }} End
 * @typedef {{ id: number, container: string, restartCount: number, init: boolean, lines: number, bytes: number,
 *   gaps: number, complete: boolean, matches: boolean, mismatch: string }} Log
 * @typedef {{ id: number, uid: string, namespace: string, name: string, taskId: string, pool: string, eventId: string,
 *   metadata: Record<string, string>, registeredMs: number, finishedMs: number | null, reason: string, message: string,
 *   lines: number, bytes: number, gaps: number, ends: End[], logs: Log[] }} Worker
 */

/** The element with an id. @param {string} id @returns {any} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) {
    throw new Error(`the page has no ${id}`);
  }
  return element;
}

/**
 * Makes an element. Text is only ever text.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {string} className @param {...(string | Node)} content
 */
export function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) {
    element.className = className;
  }
  element.append(...content);
  return element;
}

const names = {
  starting: ['◌', 'Starting'],
  running: ['●', 'Running'],
  succeeded: ['✓', 'Succeeded'],
  failed: ['✕', 'Failed'],
  ended: ['?', 'Ended'],
};

/** @param {Worker} worker @returns {keyof typeof names} */
export function stateOf(worker) {
  if (worker.finishedMs === null) {
    return worker.logs.length > 0 ? 'running' : 'starting';
  }
  if (worker.reason !== '' || worker.ends.some((end) => (end.exitCode ?? 0) !== 0 || end.signal !== 0)) {
    return 'failed';
  }
  return worker.ends.length > 0 && worker.ends.every((end) => end.exitCode === 0) ? 'succeeded' : 'ended';
}

/** @param {Worker} worker */
export function stateBadge(worker) {
  const state = stateOf(worker);
  const [sign, name] = names[state];
  const icon = make('span', 'sign', sign);
  icon.setAttribute('aria-hidden', 'true');
  return make('span', `state ${state}`, icon, name);
}

/** How a worker ended: of its containers, the one that tells most. @param {Worker} worker */
export function exitText(worker) {
  if (worker.finishedMs === null) {
    return '';
  }
  const failed = worker.ends.find((end) => (end.exitCode ?? 0) !== 0) ?? worker.ends.find((end) => end.exitCode !== null);
  const parts = [];
  if (failed) {
    parts.push(`exit ${failed.exitCode}`);
    if (failed.signal !== 0) {
      parts.push(`signal ${failed.signal}`);
    }
    if (failed.reason !== '' && failed.reason !== 'Completed' && failed.reason !== 'Error') {
      parts.push(failed.reason);
    }
  }
  if (worker.reason !== '') {
    parts.push(worker.reason);
  }
  return parts.join(' · ') || 'not seen';
}

/** @param {Worker} worker */
export function startedMs(worker) {
  const starts = worker.ends.flatMap((end) => (end.startedMs === null ? [] : [end.startedMs]));
  return starts.length > 0 ? Math.min(...starts) : worker.registeredMs;
}

/** @param {Worker} worker */
export function durationText(worker) {
  const ends = worker.ends.flatMap((end) => (end.finishedMs === null ? [] : [end.finishedMs]));
  const end = worker.finishedMs === null ? Date.now() : ends.length > 0 ? Math.max(...ends) : worker.finishedMs;
  const seconds = Math.max(0, Math.round((end - startedMs(worker)) / 1000));
  const pad = (/** @type {number} */ n) => String(n).padStart(2, '0');
  if (seconds < 60) {
    return `${seconds} s`;
  }
  return seconds < 3600
    ? `${Math.floor(seconds / 60)}:${pad(seconds % 60)} min`
    : `${Math.floor(seconds / 3600)}:${pad(Math.floor(seconds / 60) % 60)} h`;
}

/** @param {number} ms */
export function timeText(ms) {
  const date = new Date(ms);
  const time = date.toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
  return date.toDateString() === new Date().toDateString()
    ? time
    : `${date.toLocaleDateString(undefined, { month: 'short', day: 'numeric' })}, ${time}`;
}

const grouped = new Intl.NumberFormat('en');

/** @param {number} count */
export function countText(count) {
  return grouped.format(count);
}

/** @param {number} count @param {string} noun */
export function counted(count, noun) {
  return `${countText(count)} ${noun}${count === 1 ? '' : 's'}`;
}

/** @param {number} bytes */
export function bytesText(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) {
    bytes /= 1024;
  }
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}

/** @param {string} path @returns {Promise<any>} */
export async function get(path) {
  const response = await fetch(path);
  if (!response.ok) {
    throw new Error(response.status === 404 ? 'not found' : `the server answers ${response.status}`);
  }
  return response.json();
}

/** Shows whether the page hears of changes. @param {'connecting' | 'live' | 'lost'} state */
export function showLink(state) {
  const link = byId('link');
  link.dataset.state = state;
  link.textContent = { connecting: 'connecting', live: 'live', lost: 'connection lost, trying again' }[state];
}

/** Listens; the browser itself connects again and says how far it had heard. @param {string} path @param {Record<string, (data: any, id: string) => void>} on */
export function listen(path, on) {
  const source = new EventSource(path);
  source.addEventListener('open', () => showLink('live'));
  source.addEventListener('error', () => showLink('lost'));
  for (const [event, handle] of Object.entries(on)) {
    source.addEventListener(event, (message) => handle(JSON.parse(message.data), message.lastEventId));
  }
  return source;
}

/** The key / goes to the search field, as in many log viewers. @param {HTMLInputElement} input */
export function focusOnSlash(input) {
  document.addEventListener('keydown', (event) => {
    const typing = event.target instanceof HTMLElement && /^(input|select|textarea)$/i.test(event.target.tagName);
    if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      input.focus();
      input.select();
    }
  });
}
