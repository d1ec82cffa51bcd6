// The parts of a job's page that show what it has done: phases, copies, an error, a result, its history.

import { h } from './dom.js';
import { bytes, count, duration, host, plural, when } from './format.js';

const PHASES_MAX = 40;
const VALUE_MAX_CHARS = 20_000;
const EVENT_MAX_CHARS = 1_000;

// What to do about an error, by its code; the message says what went wrong.
export const ADVICE = {
  invalid: 'Correct the request, and submit it anew.',
  unauthenticated: 'Check the username and the password, or the token, and submit the job with good ones.',
  denied: 'Whoever runs the registry has to grant this login access; then retry.',
  not_found: 'Check the name and the tag, and that it is there; then retry.',
  conflict: 'Something else stands in its place: look at both, then decide.',
  too_large: 'Make it smaller, or ask the operator to raise the limit that the message names.',
  policy: 'Change the line that the message names; the rules are the operator’s [policy].',
  egress: 'The operator’s [egress] forbids that address: use another, or ask for it.',
  queue_full: 'Wait until the queue is shorter, then submit it again.',
  draining: 'The daemon is being restarted: submit it again in a moment.',
  storage_full: 'The operator has to make room on the disk; then retry.',
  fetch_failed: 'Check that the URL can be reached from the build host, and what it serves; then retry.',
  build_failed: 'The end of the log shows the step that failed. Correct it, and submit it anew.',
  push_failed: 'Look at what the registry said; once it is in order, retry.',
  copy_failed: 'The targets below say what went wrong at each; retry copies only what is missing.',
  engine_unavailable: 'The operator has to look at the Docker Engine; then retry.',
  registry_unavailable: 'Check that the registry can be reached from the build host; then retry.',
  run_failed: 'The end of the log shows what the program said before it stopped.',
  out_of_memory: 'Let the program use less memory, or ask for a larger kinds.run.memory_bytes.',
  result_missing: 'Write /data/perf.json before the program ends with status 0.',
  result_invalid: 'Write an object with a finite number named perf into /data/perf.json.',
  timeout: 'Make it faster, or ask the operator to raise the limit that the message names; then retry.',
  quarantined: 'The daemon crashed three times while this job ran alone. Look at the log before a retry.',
  secrets_lost: 'Submit it again with its passwords.',
  internal: 'This is a defect of imagejobd: its own log has the details.',
};

export function errorPart(job) {
  const { error } = job;
  if (!error) return null;
  const isPast = job.state === 'queued' || job.state === 'running';
  if (job.state === 'cancelled') return h('p.callout.plain', error.message);
  const heading = isPast ? `Attempt ${job.attempt} did not succeed; it is tried again` : 'Failed';
  return h(isPast ? 'div.callout.warning' : 'div.callout.failed', h('p.callout-head', heading, h('code', error.code)),
    h('p.message', error.message),
    !isPast && ADVICE[error.code] ? h('p.advice', ADVICE[error.code]) : null);
}

// The time in the queue and each phase, against the time from submission to end (or now).
export function timeline(job, now) {
  const at = (iso) => (iso ? Date.parse(iso) : now);
  const from = at(job.created_at);
  const span = Math.max(at(job.finished_at) - from, 1);
  const began = job.started_at ?? job.finished_at;
  const waited = { name: 'queued', attempt: 1, started_at: job.created_at, finished_at: began };
  const rows = [waited, ...(job.phases ?? [])];
  const left = rows.length - PHASES_MAX;
  const bar = ({ name, attempt, started_at: started, finished_at: finished }, index) => {
    const isCut = !finished && job.state !== 'running' && index > 0;
    const [start, end] = [at(started), isCut ? at(started) : at(finished)];
    const isFailed = job.state === 'failed' && index > 0 && index === rows.length - 1;
    const how = index === 0 ? 'queued' : isFailed ? 'failed' : finished ? 'done' : isCut ? 'cut' : 'running';
    const fill = h(`span.fill.${how}`);
    fill.style.left = `${((start - from) / span) * 100}%`;
    fill.style.width = `${Math.max(((end - start) / span) * 100, 0.4)}%`;
    const times = `${when(started)} to ${finished ? when(finished) : isCut ? 'a crash' : 'now'}`;
    return h('li', { title: times }, h('span.name', name, attempt > 1 ? h('small', ` ${attempt}`) : null),
      h('span.track', fill), h('span.took', isCut ? 'cut off' : duration((end - start) / 1000)));
  };
  const list = left > 0 ? [rows[0], ...rows.slice(left + 1)] : rows;
  return section('Phases', left > 0 ? h('p.note', `${plural(left, 'earlier phase')} left out`) : null,
    h('ol.phases', list.map((phase) => bar(phase, rows.indexOf(phase)))));
}

// A bar for each target: what was there, what was mounted, what was sent.
export function copies(job) {
  const targets = job.kind === 'distribute' ? totals(job) : [];
  if (!targets.length) return null;
  const { images = 0, images_done: done = 0 } = job.progress ?? {};
  const legend = [['skipped', 'already there'], ['mounted', 'mounted'], ['sent', 'sent']].map(([name, text]) =>
    h('span.key', h(`span.part.${name}`), text));
  const number = images > 1 ? h('span', `${count(done)} of ${count(images)} images`) : null;
  return section('Targets', h('p.note.legend', number, legend),
    h('ul.copies', targets.map(copyRow)));
}

function copyRow({ endpoint, image, error, outcome, ...sizes }) {
  const { sent_bytes: sent, mounted_bytes: mounted, skipped_bytes: skipped, total_bytes: total } = sizes;
  const whole = Math.max(total, sent + mounted + skipped, 1);
  const part = (name, size) => {
    const element = h(`span.part.${name}`, { title: `${name}: ${bytes(size)}` });
    element.style.width = `${(size / whole) * 100}%`;
    return element;
  };
  const have = sent + mounted + skipped;
  const said = error ? 'failed' : total ? `${bytes(have)} of ${bytes(total)}` : have ? `${bytes(sent)} sent` : '';
  return h(error ? 'li.failed' : 'li', h('span.name', host(endpoint), image ? ` / ${image}` : ''),
    h('span.track', part('skipped', skipped), part('mounted', mounted), part('sent', sent)),
    h('span.took', [said, outcome].filter(Boolean).join(', ')),
    error ? h('p.message', error) : null);
}

// By target: from the result of a job that succeeded, which has them by image, else from its progress.
function totals(job) {
  const names = ['sent_bytes', 'mounted_bytes', 'skipped_bytes'];
  const images = job.result?.images;
  if (!images) return (job.progress?.targets ?? []).map((target) => ({ ...target, outcome: '' }));
  return job.spec.targets.map((target, index) => {
    const pushes = images.map((image) => image.targets?.[index]).filter(Boolean);
    const sum = (name) => pushes.reduce((total, push) => total + (push[name] ?? 0), 0);
    const sums = Object.fromEntries(names.map((name) => [name, sum(name)]));
    const tags = [...new Set(pushes.flatMap((push) => Object.values(push.tags ?? {})))];
    return { endpoint: target.endpoint, image: target.image, ...sums, total_bytes: 0, outcome: tags.join(', ') };
  });
}

// What the job has left; what is large or nested, as JSON.
export function resultPart(job) {
  const { result } = job;
  if (!result) return null;
  const { images, ...rest } = result;
  const isNested = ([, value]) => value !== null && typeof value === 'object';
  const flat = Object.entries(rest).filter((pair) => pair[1] !== null && !isNested(pair));
  const nested = Object.entries(images ? { images, ...rest } : rest).filter(isNested);
  return section('Result', facts(flat.map(([name, value]) => [name.replaceAll('_', ' '), h('code', value)])),
    nested.map(([name, value]) => details(name.replaceAll('_', ' '), () => json(value))));
}

export const section = (title, ...content) => h('section.part', h('h2', title), content);

export const facts = (pairs) => h('dl.facts',
  pairs.filter(([, value]) => value || value === 0).map(([name, value]) =>
    h('div', h('dt', name), h('dd', value))));

// Its content is made when it is opened.
export function details(title, make) {
  const element = h('details', h('summary', title));
  element.addEventListener('toggle', () => element.open && element.children.length === 1 && element.append(make()));
  return element;
}

export function json(value) {
  const text = JSON.stringify(value, null, 2);
  const rest = text.length - VALUE_MAX_CHARS;
  const more = rest > 0 ? `\n… ${count(rest)} more characters` : '';
  return h('pre.json', text.slice(0, VALUE_MAX_CHARS), more);
}

export function eventRow({ at, type, data }) {
  const { error, ...rest } = data ?? {};
  const text = (value) => (typeof value === 'object' ? JSON.stringify(value) : value);
  const said = Object.entries(rest).map(([name, value]) => `${name}: ${text(value)}`);
  if (error) said.push(typeof error === 'string' ? error : `${error.code}: ${error.message}`);
  return h('tr', h('td.time', { title: when(at) }, at.slice(11, 23)), h('td', type.replaceAll('_', ' ')),
    h('td.data', said.join(' · ').slice(0, EVENT_MAX_CHARS)));
}
