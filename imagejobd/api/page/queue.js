// What waits and what runs, by kind, with pause and resume; and how it has been lately.

import { get, post } from './api.js';
import { bars, columns, figure, line } from './charts.js';
import { askReason, confirm, notice } from './dialogs.js';
import { h, replace } from './dom.js';
import { ago, count, duration, title, worked } from './format.js';

const SAMPLE_JOBS = 300;
const BARS_MAX = 60;
const BINS = 90;
const CHART_PX = 56;

export class QueuePanel {
  constructor() {
    this.cards = h('div.kinds');
    this.depth = figure('Queued and running', CHART_PX, (width, height) => columns(this.series, width, height));
    this.durations = figure('Durations', CHART_PX, (width, height) => bars(this.ended, width, height));
    this.perf = figure('Performance of runs', CHART_PX, (width, height) => line(this.runs, width, height, short));
    const charts = [this.depth, this.durations, this.perf];
    this.charts = h('div.charts', { hidden: true }, charts.map(({ element }) => element));
    this.element = h('section.queue', { 'aria-label': 'Queue' }, this.cards, this.charts);
    Object.assign(this, { series: [], ended: [], runs: [], last: '' });
  }

  async refresh(signal) {
    const queue = await get('queue', signal);
    // Once a minute too, for the times in it; but not under somebody's hands.
    const text = JSON.stringify([queue, Math.floor(Date.now() / 60_000)]);
    if (text === this.last || this.cards.contains(document.activeElement)) return;
    this.last = text;
    this.showKinds(queue);
  }

  showKinds(queue) {
    const kinds = Object.entries(queue.kinds);
    replace(this.cards, kinds.map(([kind, numbers]) => this.card(kind, numbers)));
  }

  card(kind, { queued, running, slots, paused, waiting_for: waitingFor, oldest_queued_at: oldest }) {
    const verb = paused ? 'Resume' : 'Pause';
    const click = () => (paused ? this.resume(kind) : this.pause(kind));
    const button = h('button.quiet', { click, 'aria-label': `${verb} ${kind}` }, verb);
    const why = paused ? `Paused: ${paused.reason || 'no reason given'} (${paused.by}, ${ago(paused.since)})`
      : waitingFor ?? (queued && oldest ? `the oldest came ${ago(oldest)}` : '');
    const name = ['div.kind', paused && 'paused', !queued && !running && 'idle'].filter(Boolean).join('.');
    return h(name, h('div.kind-head', h('a', { href: `#/?kind=${encodeURIComponent(kind)}` }, kind), button),
      h('div.numbers', h('span', h('b', count(running)), slots ? ` / ${count(slots)}` : '', ' running'),
        h('span', h('b', count(queued)), ' queued')),
      why ? h('p.why', { title: why }, why) : null);
  }

  async pause(kind) {
    const reason = await askReason(kind);
    if (reason !== null) await this.steer('queue/pause', { kind, reason }, `${kind} is paused`);
  }

  async resume(kind) {
    if (await confirm(`Resume ${kind}?`, 'Jobs that wait are started as slots are free.', 'Resume')) {
      await this.steer('queue/resume', { kind }, `${kind} goes on`);
    }
  }

  async steer(path, body, done) {
    try {
      const queue = await post(path, body);
      this.showKinds(queue);
      notice(done);
    } catch (error) {
      notice(error.message, true);
    }
  }

  // The charts, from the newest jobs of all kinds.
  async refreshCharts(signal) {
    const { jobs } = await get(`jobs?limit=${SAMPLE_JOBS}`, signal);
    jobs.reverse();
    this.charts.hidden = jobs.length < 2;
    if (jobs.length < 2) return;
    this.series = depths(jobs);
    this.depth.say(`last ${duration((Date.now() - Date.parse(jobs[0].created_at)) / 1000)}`);
    const ended = jobs.filter((job) => job.finished_at && job.started_at).slice(-BARS_MAX);
    this.ended = ended.map((job) => {
      const value = worked(job);
      return { value, state: job.state, label: `${title(job)}: ${job.state} in ${duration(value)}` };
    });
    this.durations.say(ended.length ? `median ${duration(median(this.ended.map(({ value }) => value)))}` : '');
    this.runs = perfDots(jobs);
    this.perf.element.hidden = this.runs.length < 2;
    if (this.runs.length) this.perf.say(`latest ${short(this.runs.at(-1).value)}`);
    for (const chart of [this.depth, this.durations, this.perf]) chart.redraw();
  }

}

// The runs that have left a number, as dots; the one that is `here` stands out.
export function perfDots(jobs, here) {
  return jobs.filter((job) => job.kind === 'run' && typeof job.result?.perf === 'number').map((job) => ({
    t: Date.parse(job.finished_at), value: job.result.perf, isHere: job.id === here,
    label: `${job.result.perf}, ${ago(job.finished_at)}`, go: () => { location.hash = `#/jobs/${job.id}`; } }));
}

export const short = (value) => Number(value.toPrecision(4)).toString();

// How many jobs waited and worked at each time, as the jobs themselves tell: those before the first are not counted.
function depths(jobs) {
  const [from, to] = [Date.parse(jobs[0].created_at), Date.now()];
  const at = (iso) => (iso ? Date.parse(iso) : Infinity);
  const waiting = jobs.map((job) => [at(job.created_at), at(job.started_at ?? job.finished_at)]);
  const working = jobs.filter((job) => job.started_at).map((job) => [at(job.started_at), at(job.finished_at)]);
  const series = Object.entries({ running: working, queued: waiting });
  return series.map(([name, spans]) => ({ name, values: levels(spans, from, to) }));
}

// The most at once in each of `BINS` parts of the time.
function levels(spans, from, to) {
  const changes = spans.flatMap(([start, end]) => [[start, 1], [end, -1]]).sort(([a], [b]) => a - b);
  const width = Math.max(to - from, 1) / BINS;
  let [level, index] = [0, 0];
  return Array.from({ length: BINS }, (_, bin) => {
    let most = level;
    for (; index < changes.length && changes[index][0] <= from + (bin + 1) * width; index++) {
      level += changes[index][1];
      most = Math.max(most, level);
    }
    return most;
  });
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}
