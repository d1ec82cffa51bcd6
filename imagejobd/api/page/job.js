// A job's page, brought up to date once a second until the job has ended; its log comes as it is written.

import { follow, get, post, Problem, request, sleep, texts } from './api.js';
import { figure, line } from './charts.js';
import { askSecrets, confirm, notice } from './dialogs.js';
import { h, refresh, replace, setText } from './dom.js';
import { ago, count, duration, isFinal, isUuid, remark, submitter, title, when, worked } from './format.js';
import { breathe, LogView } from './log.js';
import { copies, details, errorPart, eventRow, facts, json, resultPart, timeline } from './parts.js';
import { perfDots, short } from './queue.js';

const POLL_MS = 1_000;
const EVENTS_MAX = 2_000;
const PARTS = ['callout', 'facts', 'phases', 'copies', 'perf', 'result'];
const SLICE_MS = 8;
const RUNS_MAX = 200;
const CHART_PX = 120;

const encoder = new TextEncoder();

export class JobPage {
  constructor(id) {
    this.path = `jobs/${id}`;
    this.head = h('div');
    this.state = h('span');
    this.took = h('span.note');
    this.parts = Object.fromEntries(PARTS.map((name) => [name, h('div')]));
    this.logBox = h('div');
    this.rest = h('div.rest');
    const head = h('div.job-head', this.head, h('p.status', this.state, this.took));
    this.element = h('div.job-page', head, Object.values(this.parts), this.logBox, this.rest);
  }

  async start() {
    this.ending = new AbortController();
    const { signal } = this.ending;
    if (!(await this.refresh())) return;
    this.showRest();
    this.followLog().catch((error) => signal.aborted || this.log.end(error.message));
    if (this.job.kind === 'run') this.showPerf().catch(() => {});
    if (isFinal(this.job)) return;
    while (!signal.aborted && !isFinal(this.job)) {
      await sleep(POLL_MS, signal);
      if (!document.hidden && !isFinal(this.job)) await this.refresh();
    }
  }

  // Whether the job could be read and was shown.
  async refresh() {
    try {
      const before = this.job;
      this.job = await get(this.path, this.ending.signal);
      this.show();
      if (before && !isFinal(before) && isFinal(this.job) && this.job.kind === 'run') this.showPerf().catch(() => {});
      this.readEvents();
      return true;
    } catch (error) {
      if (this.ending.signal.aborted) return false;
      const unread = [h('p.empty.problem', error.message), h('p.end', h('a', { href: '#/' }, 'All jobs'))];
      if (!this.job) replace(this.head, unread);
      return Boolean(this.job);
    }
  }

  show() {
    const { job } = this;
    const now = Date.now();
    document.title = `${title(job)} · ${job.state}`;
    this.showHead(job);
    setText(this.took, tookOf(job, now));
    refresh(this.parts.callout, waiting(job), progress(job), errorPart(job));
    refresh(this.parts.facts, factsOf(job));
    refresh(this.parts.phases, timeline(job, now));
    refresh(this.parts.copies, copies(job));
    refresh(this.parts.result, resultPart(job));
  }

  showHead(job) {
    const canRetry = job.state === 'failed' || job.state === 'cancelled';
    const isStopping = job.cancel_requested_at !== null;
    const word = isStopping ? 'Cancelling …' : 'Cancel';
    const cancel = h('button.danger', { disabled: isStopping, click: () => this.cancel() }, word);
    const retry = h('button.primary', { click: () => this.retry() }, 'Retry');
    const actions = [isFinal(job) ? null : cancel, canRetry ? retry : null];
    const kind = h('a', { href: `#/?kind=${encodeURIComponent(job.kind)}` }, job.kind);
    refresh(this.head, h('nav.crumbs', h('a', { href: '#/' }, 'Jobs'), ' / ', kind),
      h('div.head-line', h('h1', title(job)), h('div.buttons', actions)));
    refresh(this.state, h(`span.state.${job.state}`, job.state));
  }

  showRest() {
    this.events = h('tbody');
    this.history = details('Events', () => h('div.scroll', h('table.events', this.events)));
    this.history.addEventListener('toggle', () => this.readEvents());
    replace(this.rest, this.history, details('Request', () => json(this.job.spec)));
  }

  async readEvents() {
    if (!this.history?.open || this.isReading) return;
    this.isReading = true;
    try {
      for (let page = null; page?.length !== 0 && this.events.children.length < EVENTS_MAX;) {
        page = await get(`${this.path}/events?after=${this.lastEvent ?? 0}`, this.ending.signal);
        this.events.append(...page.map(eventRow));
        this.lastEvent = page.at(-1)?.id ?? this.lastEvent;
      }
    } finally {
      this.isReading = false;
    }
  }

  // What other runs have left, with this one among them: those that bear its first label, where it has one.
  async showPerf() {
    const [label] = Object.entries(this.job.labels);
    const wanted = { kind: 'run', state: 'succeeded', limit: RUNS_MAX, ...(label && { label: label.join('=') }) };
    const { jobs } = await get(`jobs?${new URLSearchParams(wanted)}`, this.ending.signal);
    const dots = perfDots(jobs.reverse(), this.job.id);
    if (dots.length < 2) return;
    const caption = label ? `Performance of runs with ${label.join('=')}` : 'Performance of runs';
    const chart = figure(caption, CHART_PX, (width, height) => line(dots, width, height, short));
    chart.say(`latest ${short(dots.at(-1).value)}`);
    replace(this.parts.perf, h('section.part', chart.element));
  }

  async followLog() {
    const { signal } = this.ending;
    this.log = new LogView({ isFollowing: this.job.state !== 'succeeded', download: () => this.download() });
    replace(this.logBox, this.log.element);
    if (isFinal(this.job)) {
      await this.readLog(signal);
      return this.log.end();
    }
    let offset = 0;
    const onEvent = ({ id, type, data }) => {
      const text = data.join('\n');
      // An event ends with its last line, unless its `id`, the offset after it, leaves no room for the line's end.
      if (type === 'log') this.log.append(Number(id) - offset > encoder.encode(text).length ? `${text}\n` : text);
      offset = Number(id);
      return type === 'end';
    };
    await follow(`${this.path}/log`, { onEvent, signal });
    this.log.end();
    return this.refresh();
  }

  // A log as text, from its beginning; once more where the connection was cut.
  async readLog(signal) {
    while (!signal.aborted) {
      try {
        const { body } = await request(`${this.path}/log`, { signal });
        let rested = performance.now();
        for await (const text of texts(body)) {
          this.log.append(text);
          if (performance.now() - rested < SLICE_MS) continue;
          await breathe();
          rested = performance.now();
        }
        return;
      } catch (error) {
        if (signal.aborted || error instanceof Problem) throw error;
        await sleep(POLL_MS, signal);
        this.log.clear();
      }
    }
  }

  async download() {
    try {
      const blob = await (await request(`${this.path}/log`)).blob();
      const link = document.createElement('a');
      link.href = URL.createObjectURL(blob);
      link.download = `${this.job.id}.log`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), POLL_MS);
    } catch (error) {
      notice(error.message, true);
    }
  }

  async cancel() {
    const effect = 'What it is doing is stopped within seconds, in the engine too.';
    if (!(await confirm('Cancel this job?', effect, 'Cancel the job', true))) return;
    try {
      await post(`${this.path}/cancel`);
      await this.refresh();
    } catch (error) {
      notice(error.message, true);
    }
  }

  async retry() {
    const effect = 'A new job is made that does what this one should have done.';
    if (!(await confirm('Retry this job?', effect, 'Retry'))) return;
    try {
      await this.repeat({});
    } catch (error) {
      const names = error.code === 'conflict' ? this.job.secret_names : null;
      if (!names?.length) notice(error.message, true);
      else await this.repeatWith(await askSecrets(names));
    }
  }

  // `secrets` are texts; a distribution's are JSON, which the daemon reads as such.
  async repeatWith(secrets) {
    if (!secrets) return;
    try {
      await this.repeat({ secrets });
    } catch (error) {
      notice(error.message, true);
    }
  }

  async repeat(body) {
    const job = await post(`${this.path}/retry`, body);
    if (isUuid(job.id)) location.hash = `#/jobs/${job.id}`;
  }

  key(event) {
    if (event.key === '/') this.log?.field.focus();
    else if (event.key === 'c' && this.job && !isFinal(this.job)) this.cancel();
    else if (event.key === 'r' && this.job && this.job.state !== 'succeeded' && isFinal(this.job)) this.retry();
    else return false;
    return true;
  }

  close() {
    this.ending.abort();
  }
}

function tookOf(job, now) {
  const seconds = worked(job, now);
  if (job.state === 'queued') return `for ${duration((now - Date.parse(job.created_at)) / 1000)}`;
  if (seconds === null) return ago(job.finished_at ?? job.created_at, now);
  return job.finished_at ? `in ${duration(seconds)}, ${ago(job.finished_at, now)}` : `for ${duration(seconds)}`;
}

// Why a queued job does not run yet, and when it may.
function waiting(job) {
  if (job.state !== 'queued') return null;
  const { position, eta_seconds: eta, not_before: notBefore, waiting_for: waitingFor } = job;
  const said = [
    waitingFor,
    notBefore && Date.parse(notBefore) > Date.now() ? `not before ${when(notBefore)}` : null,
    typeof position === 'number' ? (position ? `${count(position)} ahead of it` : 'the next of its kind') : null,
    typeof eta === 'number' ? `starts in about ${duration(eta)}` : null].filter(Boolean);
  return said.length ? h('p.callout.plain', said.join(' · ')) : null;
}

function progress(job) {
  if (job.state !== 'running' || job.kind === 'distribute') return null;
  const { percent } = job.progress ?? {};
  const bar = typeof percent === 'number' ? h('progress', { max: 100, value: percent }) : null;
  return h('div.progress', h('span', remark(job)), bar);
}

function factsOf(job) {
  const labels = Object.entries(job.labels).map(([name, value]) =>
    h('a.tag', { href: `#/?${new URLSearchParams({ label: `${name}=${value}` })}` }, `${name}=${value}`));
  const who = [submitter(job), job.client && `client ${job.client}`].filter(Boolean).join(', ');
  const { tags, source } = job.spec;
  return facts([
    ['submitted', h('span', { title: ago(job.created_at) }, when(job.created_at))],
    ['by', who], ['tenant', job.tenant === 'local' ? null : job.tenant],
    ['tags', tags?.join?.(', ')], ['source', source?.endpoint],
    ['attempt', job.attempt > 1 && job.attempt], ['crashes', job.crashes || null], ['priority', job.priority || null],
    ['labels', labels.length ? h('span.tags', labels) : null],
    ['retry of', isUuid(job.retry_of) ? h('a', { href: `#/jobs/${job.retry_of}` }, job.retry_of) : null],
    ['idempotency key', job.idempotency_key], ['number', count(job.number)], ['id', h('code', job.id)]]);
}
