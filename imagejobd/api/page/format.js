// How values read: times, sizes, and what a job is called.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
const FINAL = new Set(['succeeded', 'failed', 'cancelled']);
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const number = new Intl.NumberFormat('en');

export const STATES = ['queued', 'running', 'succeeded', 'failed', 'cancelled'];
export const KINDS = ['build', 'run', 'dispatch', 'distribute'];
export const isFinal = (job) => FINAL.has(job.state);
export const isUuid = (text) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text ?? '');
export const count = (n) => number.format(n);
export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;
export const when = (iso) => (iso ? day.format(new Date(iso)) : '');

// Seconds as a person says them: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h.
export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  if (s < 3600) return pair(s / 60, 'min', 60, 's');
  if (s < 86400) return pair(s / 3600, 'h', 60, 'min');
  return pair(s / 86400, 'd', 24, 'h');
}

function pair(value, unit, parts, part) {
  let whole = Math.floor(value);
  let rest = Math.round((value - whole) * parts);
  if (rest === parts) [whole, rest] = [whole + 1, 0];
  return rest ? `${whole} ${unit} ${rest} ${part}` : `${whole} ${unit}`;
}

export function ago(iso, now = Date.now()) {
  if (!iso) return '';
  const s = (now - Date.parse(iso)) / 1000;
  if (s < 0) return `in ${duration(-s)}`;
  if (s < 10) return 'now';
  for (const [size, unit] of [[86400, 'd'], [3600, 'h'], [60, 'min']]) {
    if (s >= size) return `${Math.floor(s / size)} ${unit} ago`;
  }
  return `${Math.floor(s)} s ago`;
}

export function bytes(n) {
  let unit = 0;
  let value = n;
  while (value >= 1000 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

// Seconds that a job has worked: to its end, or until now.
export function worked(job, now = Date.now()) {
  if (!job.started_at) return null;
  return ((job.finished_at ? Date.parse(job.finished_at) : now) - Date.parse(job.started_at)) / 1000;
}

// What a job is about, in one line.
export function title(job) {
  const { spec = {}, result } = job;
  if (job.kind === 'distribute') return sourceOf(spec);
  if (job.kind === 'dispatch') return result?.image ?? result?.what ?? spec.file_name ?? 'payload';
  if (job.kind === 'run') return 'Dockerfile';
  return spec.image ?? spec.image_name ?? job.kind;
}

function sourceOf({ source = {}, targets = [] }) {
  const ref = source.ref ? `${source.ref.includes(':') ? '@' : ':'}${source.ref}` : '';
  const image = source.image ? `${source.image}${ref}` : 'images';
  return `${image} → ${targets.length === 1 ? host(targets[0].endpoint) : plural(targets.length, 'target')}`;
}

export const host = (endpoint) => String(endpoint ?? '').replace(/^https?:\/\//, '').replace(/\/(v2\/?)?$/, '');

// What can be said of a job's state in the list, after its name.
export function remark(job) {
  if (job.state === 'failed' && job.error) return job.error.message;
  if (job.state === 'queued') return job.waiting_for ?? (job.error ? `again after: ${job.error.message}` : '');
  if (job.state === 'running') return job.cancel_requested_at ? 'cancelling' : steps(job) ?? job.phase ?? '';
  if (job.kind === 'run' && typeof job.result?.perf === 'number') return `perf ${job.result.perf}`;
  return '';
}

function steps(job) {
  const { percent, step, steps: total, step_name: name } = job.progress ?? {};
  const share = typeof percent === 'number' ? `${Math.round(percent)} %` : step && total ? `${step}/${total}` : null;
  const where = job.phase === 'building' && name ? name : job.phase;
  return share ? `${where} · ${share}` : where;
}

export function submitter(job) {
  const { name, email, sub, azp } = job.submitter ?? {};
  return name ?? email ?? sub ?? azp ?? '';
}
