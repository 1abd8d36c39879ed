import { parentPort, workerData } from 'node:worker_threads';
import type { Request } from './requests.js';
import { Writer } from './writer.js';

/** The thread of the writer: it gathers what comes while it writes, and writes that as one group. */

const port = parentPort!;
const maxGroup = 256;
const waiting: { id: number; request: Request }[] = [];
let scheduled = false;
let closing = false;

const writer = new Writer((workerData as { folder: string }).folder);

function drain(): void {
  scheduled = false;
  const group = waiting.splice(0, maxGroup);
  const answers = writer.write(group.map(({ request }) => request));
  port.postMessage(group.map(({ id }, i) => ({ id, answer: answers[i]! })));
  if (waiting.length > 0) {
    schedule();
  } else if (closing) {
    close();
  }
}

function schedule(): void {
  if (!scheduled) {
    scheduled = true;
    setImmediate(drain); // after all messages that are here already
  }
}

function close(): void {
  writer.close();
  port.close();
}

port.on('message', (message: { id: number; request: Request } | 'close') => {
  if (message === 'close') {
    closing = true;
    if (waiting.length === 0) {
      close();
    }
    return;
  }
  waiting.push(message);
  schedule();
});
port.postMessage('ready');
