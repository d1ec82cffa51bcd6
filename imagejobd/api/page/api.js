// The native API. The token, where one is needed, is in this module's memory only: it is gone with the page.

const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 15_000;
// The daemon sends a comment every 15 s; a stream that is silent for longer is dead.
const SILENCE_MAX_MS = 40_000;
const WATCH_EVERY_MS = 5_000;

const root = new URL('api/v2/', document.baseURI);
let token = '';
let asking = null;
let askToken = async () => '';
let reach = () => {};

// `ask(why)` gets a token from the user; `reached(yes)` hears whether the daemon answers.
export function connect({ ask, reached }) {
  askToken = ask;
  reach = reached;
}

// What the daemon refused. `code` is its stable one, `message` is for the user.
export class Problem extends Error {
  constructor(status, { code, detail } = {}) {
    super(detail ?? `the daemon answered with status ${status}`);
    Object.assign(this, { status, code });
  }
}

export const get = async (path, signal) => (await request(path, { signal })).json();

export async function post(path, body) {
  const headers = { 'Content-Type': 'application/json' };
  return (await request(path, { method: 'POST', body: JSON.stringify(body ?? {}), headers })).json();
}

// An answer with a good status. Throws a `Problem`, or `TypeError` where there is no connection; asks for a token.
export async function request(path, options = {}) {
  for (;;) {
    const used = token;
    const response = await send(path, used, options);
    if (response.ok) return response;
    const problem = new Problem(response.status, await response.json().catch(() => ({})));
    if (response.status !== 401) throw problem;
    if (used === token) await renew(problem.message);
    options.signal?.throwIfAborted();
  }
}

async function send(path, used, options) {
  const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
  try {
    const response = await fetch(new URL(path, root), { ...options, headers, cache: 'no-store' });
    reach(true);
    return response;
  } catch (error) {
    if (error.name !== 'AbortError') reach(false);
    throw error;
  }
}

export function useToken(text) {
  token = text;
}

// One question for all that wait for its answer.
async function renew(why) {
  asking ??= askToken(why).then((answer) => {
    useToken(answer);
    asking = null;
  });
  await asking;
}

export const sleep = (ms, signal) => new Promise((resolve) => {
  const wake = () => {
    clearTimeout(timer);
    signal.removeEventListener('abort', wake);
    resolve();
  };
  const timer = setTimeout(wake, ms);
  signal.addEventListener('abort', wake);
});

// Server-sent events from `path` until `onEvent` returns true or `signal` aborts; after a cut it goes on with
// Last-Event-ID. Throws the `Problem` of a request that will not be answered later either.
//
// A browser keeps six connections to a daemon, for all its tabs: those that nobody sees give theirs back.
export async function follow(path, { onEvent, onOpen, signal: ending }) {
  let last = '';
  let wait = RETRY_FIRST_MS;
  while (!ending.aborted) {
    while (document.hidden && !ending.aborted) await sleep(RETRY_FIRST_MS, ending);
    const signal = AbortSignal.any([ending, hidden(ending)]);
    const began = Date.now();
    const headers = { Accept: 'text/event-stream', ...(last ? { 'Last-Event-ID': last } : {}) };
    try {
      const response = await request(path, { headers, signal });
      onOpen?.();
      for await (const event of events(response.body)) {
        if (event.id) last = event.id;
        if (onEvent(event) === true) return;
      }
    } catch (error) {
      if (error instanceof Problem && error.status < 500) throw error;
    }
    if (Date.now() - began > RETRY_MAX_MS) wait = RETRY_FIRST_MS;
    await sleep(wait * (0.5 + Math.random() / 2), ending);
    wait = Math.min(wait * 2, RETRY_MAX_MS);
  }
}

// Aborts when nobody sees the page any more.
function hidden(signal) {
  const controller = new AbortController();
  document.addEventListener('visibilitychange', () => controller.abort(), { once: true, signal });
  return controller.signal;
}

// The pieces of a body, as text. A body that falls silent ends, as one does whose connection was cut.
export async function* texts(body, silenceMs = Infinity) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let heard = Date.now();
  const watch = setInterval(() => Date.now() - heard > silenceMs && reader.cancel(), WATCH_EVERY_MS);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard = Date.now();
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    clearInterval(watch);
    reader.cancel().catch(() => {});
  }
}

// WHATWG HTML 9.2.6: lines end in CRLF, LF or CR; an event ends at an empty line; a cut one is left out.
async function* events(body) {
  let rest = '';
  let event = { id: '', type: 'message', data: [] };
  for await (const text of texts(body, SILENCE_MAX_MS)) {
    // A CR at the end may be the half of a CRLF.
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line !== '') field(event, line);
      else {
        if (event.data.length) yield event;
        event = { id: '', type: 'message', data: [] };
      }
    }
  }
}

function field(event, line) {
  const colon = line.indexOf(':');
  if (colon === 0) return;
  const name = colon < 0 ? line : line.slice(0, colon);
  const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
  if (name === 'data') event.data.push(value);
  else if (name === 'event') event.type = value;
  else if (name === 'id') event.id = value;
}
