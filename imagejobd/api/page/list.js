// The list of jobs: those in view are in the document, the others in memory, and older ones come as they are scrolled
// to. The newest are asked for again whenever something has happened.

import { follow, get, sleep } from './api.js';
import { h, replace, setText } from './dom.js';
import {
  ago, count, duration, isFinal, KINDS, plural, remark, STATES, submitter, title, when, worked,
} from './format.js';
import { QueuePanel } from './queue.js';

const HEAD_JOBS = 100;
const PAGE_JOBS = 500;
const MARGIN_ROWS = 8;
const LOADED_MAX_JOBS = 100_000;
// A text is looked for among the jobs that are here, and so many are fetched for it.
const SEARCHED_JOBS = 10_000;
const LABELS_SHOWN = 2;
const REFRESH_MIN_MS = 700;
const POLL_MS = 2_000;
const QUEUE_POLL_MS = 3_000;
const CHARTS_POLL_MS = 20_000;
const FILTERS = ['state', 'kind', 'label', 'text'];
const RUNNING_REFRESHED_MAX = 20;

export class JobList {
  constructor(query) {
    this.filters = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? '']));
    Object.assign(this, { jobs: [], shown: [], rows: new Map(), current: null, next: null, searchMax: SEARCHED_JOBS });
    this.texts = new WeakMap();
    this.queue = new QueuePanel();
    this.rowsBox = h('div.rows', { role: 'list', 'aria-label': 'Jobs' });
    this.tail = h('div.tail');
    this.element = h('div.list-page', this.queue.element, this.filterBar(), this.rowsBox, this.tail);
  }

  filterBar() {
    const field = (name, attributes) => {
      const input = (event) => this.setFilter(name, event.target.value.trim());
      const search = { type: 'search', spellcheck: 'false', autocomplete: 'off' };
      return h(`input.${name}`, { ...search, value: this.filters[name], input, ...attributes });
    };
    this.text = field('text', { placeholder: 'Filter by image, person, error', 'aria-label': 'Text' });
    this.label = field('label', { placeholder: 'label=value', 'aria-label': 'Label', pattern: '[^=]+=.*' });
    this.states = STATES.map((state) =>
      h(`button.chip.${state}`, { 'data-state': state, click: () => this.toggleState(state) }, state));
    this.kind = h('select', { 'aria-label': 'Kind', change: () => this.setFilter('kind', this.kind.value) },
      h('option', { value: '' }, 'all kinds'),
      KINDS.map((kind) => h('option', { value: kind, selected: kind === this.filters.kind }, kind)));
    this.showStates();
    const chips = h('div.chips', { role: 'group', 'aria-label': 'States' }, this.states);
    return h('div.filters', this.text, chips, this.kind, this.label);
  }

  toggleState(state) {
    const wanted = new Set(this.filters.state.split(',').filter(Boolean));
    if (!wanted.delete(state)) wanted.add(state);
    this.setFilter('state', STATES.filter((name) => wanted.has(name)).join(','));
  }

  showStates() {
    const wanted = this.filters.state.split(',');
    for (const chip of this.states) chip.setAttribute('aria-pressed', wanted.includes(chip.dataset.state));
  }

  setFilter(name, value) {
    this.filters[name] = value;
    this.showStates();
    const query = new URLSearchParams(Object.entries(this.filters).filter(([, wanted]) => wanted));
    history.replaceState(null, '', query.size ? `#/?${query}` : '#/');
    this.searchMax = SEARCHED_JOBS;
    if (name === 'text') this.show();
    else this.restart();
  }

  clearFilters() {
    for (const name in this.filters) this.filters[name] = '';
    this.text.value = this.label.value = this.kind.value = '';
    this.setFilter('state', '');
  }

  // The path of a page of the list; a label that is still being typed is left out.
  path(more) {
    const { state, kind, label } = this.filters;
    const wanted = { state, kind, label: label.indexOf('=') > 0 ? label : '', ...more };
    return `jobs?${new URLSearchParams(Object.entries(wanted).filter(([, value]) => value))}`;
  }

  start() {
    this.ending = new AbortController();
    const { signal } = this.ending;
    addEventListener('scroll', () => this.draw(), { signal, passive: true });
    addEventListener('resize', () => this.forget(), { signal });
    if (this.isLoaded) this.forget();
    else this.restart();
    this.loop(() => this.queue.refresh(signal), QUEUE_POLL_MS);
    this.loop(() => this.queue.refreshCharts(signal), CHARTS_POLL_MS);
    this.loop(async () => this.tick(), 1_000);
    const soon = () => this.refreshSoon();
    // With every event, and for those that it has missed. What is refused the list itself says.
    follow('events', { onEvent: soon, onOpen: soon, signal }).catch(() => {});
  }

  async loop(act, everyMs) {
    const { signal } = this.ending;
    while (!signal.aborted) {
      if (!document.hidden) await act().catch(() => {});
      await sleep(everyMs, signal);
    }
  }

  async restart() {
    this.epoch = (this.epoch ?? 0) + 1;
    Object.assign(this, { jobs: [], next: null, isLoaded: false, isLoading: false, problem: '' });
    await this.refresh();
  }

  async refreshSoon() {
    this.isStale = true;
    if (this.isRefreshing) return;
    this.isRefreshing = true;
    while (this.isStale && !this.ending.signal.aborted) {
      this.isStale = false;
      await this.refresh();
      await sleep(REFRESH_MIN_MS, this.ending.signal);
    }
    this.isRefreshing = false;
  }

  async refresh() {
    const { epoch } = this;
    const { signal } = this.ending;
    try {
      const page = await get(this.path({ limit: HEAD_JOBS }), signal);
      if (epoch !== this.epoch) return;
      this.merge(page);
      this.problem = '';
      this.isLoaded = true;
      await this.refreshRunning(page, epoch, signal);
    } catch (error) {
      if (signal.aborted || epoch !== this.epoch) return;
      this.problem = error.message;
    }
    this.show();
  }

  // The newest page replaces what it covers; what is older stays, unless there may be jobs between.
  merge(page) {
    const last = page.next === null ? 0 : page.jobs.at(-1)?.number ?? Infinity;
    const older = this.jobs.filter((job) => job.number < last);
    const meets = older.length < this.jobs.length;
    const isAbove = scrollY > this.rowsBox.offsetTop;
    const grown = page.jobs.length + older.length - this.jobs.length;
    this.jobs = meets ? [...page.jobs, ...older] : page.jobs;
    if (!meets || !older.length) this.next = page.next;
    // Whoever reads further down is not moved by what comes in above.
    if (isAbove && meets) scrollBy(0, grown * this.rowPx);
  }

  // Jobs in view that are older than the newest page, and have not ended.
  async refreshRunning(page, epoch, signal) {
    const fresh = new Set(page.jobs.map((job) => job.id));
    const inView = [...this.rows.values()].map(({ job }) => job);
    const stale = inView.filter((job) => !isFinal(job) && !fresh.has(job.id)).slice(0, RUNNING_REFRESHED_MAX);
    const jobs = await Promise.all(stale.map((job) => get(`jobs/${job.id}`, signal).catch(() => job)));
    if (epoch !== this.epoch) return;
    const states = this.filters.state.split(',').filter(Boolean);
    const byId = new Map(jobs.map((job) => [job.id, job]));
    const fits = (job) => !byId.has(job.id) || !states.length || states.includes(job.state);
    this.jobs = this.jobs.map((job) => byId.get(job.id) ?? job).filter(fits);
  }

  async loadMore() {
    if (this.isLoading || this.next === null || this.jobs.length >= LOADED_MAX_JOBS) return;
    this.isLoading = true;
    const { epoch } = this;
    try {
      const page = await get(this.path({ limit: PAGE_JOBS, cursor: this.next }), this.ending.signal);
      if (epoch !== this.epoch) return;
      const last = this.jobs.at(-1)?.number ?? Infinity;
      this.jobs.push(...page.jobs.filter((job) => job.number < last));
      this.next = page.next;
    } catch {
      await sleep(POLL_MS, this.ending.signal);
    }
    this.isLoading = false;
    if (!this.ending.signal.aborted) this.show();
  }

  show() {
    const wanted = this.filters.text.toLowerCase();
    this.shown = wanted ? this.jobs.filter((job) => this.textOf(job).includes(wanted)) : this.jobs;
    this.showTail();
    this.draw();
  }

  textOf(job) {
    let text = this.texts.get(job);
    if (text === undefined) {
      const labels = Object.entries(job.labels).map((pair) => pair.join('='));
      const people = Object.values(job.submitter);
      const parts = [title(job), job.id, job.number, job.kind, job.tenant, job.client, remark(job), ...people,
        ...labels, job.error?.code, job.result?.digest, JSON.stringify(job.spec.targets ?? '')];
      text = parts.join('\n').toLowerCase();
      this.texts.set(job, text);
    }
    return text;
  }

  showTail() {
    const { text, ...others } = this.filters;
    const isFiltered = text || Object.values(others).some(Boolean);
    const clear = h('button', { click: () => this.clearFilters() }, 'Clear the filters');
    const newest = `the newest ${plural(this.jobs.length, 'job')}`;
    let content = [];
    if (this.problem) content = [h('p.empty.problem', this.problem), isFiltered ? clear : null];
    else if (!this.isLoaded) content = [];
    else if (text && this.next !== null && this.jobs.length >= this.searchMax) {
      const further = h('button', { click: () => this.lookFurther() }, 'Look further');
      content = [h('p.empty', `Looked at ${newest}.`), further];
    } else if (!this.shown.length && this.next !== null) {
      content = [h('p.empty', `None of ${newest}, looking further …`)];
    } else if (!this.shown.length && isFiltered) content = [h('p.empty', 'No job is like that.'), clear];
    else if (!this.shown.length) {
      content = [h('p.empty', 'No jobs yet. POST one to /api/v2/jobs, and it appears here.')];
    } else if (this.next === null) content = [h('p.end', plural(this.shown.length, 'job'))];
    else if (this.jobs.length >= LOADED_MAX_JOBS) content = [h('p.end', `Only ${newest}; filter for older ones.`)];
    replace(this.tail, content);
  }

  lookFurther() {
    this.searchMax += SEARCHED_JOBS;
    this.draw();
  }

  get rowPx() {
    this.px ??= parseFloat(getComputedStyle(this.rowsBox).getPropertyValue('--row-px'));
    return this.px;
  }

  forget() {
    this.px = undefined;
    this.rows.clear();
    this.rowsBox.replaceChildren();
    this.draw();
  }

  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.ending.signal.aborted) return;
      this.rowsBox.style.height = `${this.shown.length * this.rowPx}px`;
      this.drawRows();
    });
  }

  drawRows() {
    const top = -this.rowsBox.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / this.rowPx) - MARGIN_ROWS);
    const last = Math.min(this.shown.length, Math.ceil((top + innerHeight) / this.rowPx) + MARGIN_ROWS);
    const view = this.shown.slice(first, last);
    const ids = new Set(view.map((job) => job.id));
    for (const [id, row] of this.rows) {
      if (!ids.has(id)) {
        row.element.remove();
        this.rows.delete(id);
      }
    }
    for (const [index, job] of view.entries()) this.place(job, first + index, this.rowsBox.children[index]);
    const wanted = this.filters.text ? this.jobs.length < this.searchMax : true;
    if (last > this.shown.length - HEAD_JOBS / 2 && wanted && this.isLoaded) this.loadMore();
  }

  // The row of a job at its place, made anew only where the job has changed.
  place(job, index, before) {
    let row = this.rows.get(job.id);
    if (!row || row.job !== job) {
      row ??= { element: h('a.row', { role: 'listitem', href: `#/jobs/${job.id}` }) };
      this.rows.set(job.id, row);
      row.job = job;
      fill(row);
    }
    row.element.classList.toggle('current', job.id === this.current);
    row.element.style.transform = `translateY(${index * this.rowPx}px)`;
    if (row.element !== before) this.rowsBox.insertBefore(row.element, before ?? null);
  }

  tick() {
    for (const row of this.rows.values()) showTimes(row);
  }

  move(step) {
    if (!this.shown.length) return;
    const at = this.shown.findIndex((job) => job.id === this.current);
    const index = at < 0 ? 0 : Math.min(Math.max(at + step, 0), this.shown.length - 1);
    this.current = this.shown[index].id;
    const y = this.rowsBox.getBoundingClientRect().top + index * this.rowPx;
    const bar = this.text.parentElement.getBoundingClientRect().bottom;
    if (y < Math.max(bar, 0)) scrollBy(0, y - bar - this.rowPx);
    else if (y + this.rowPx > innerHeight) scrollBy(0, y + 2 * this.rowPx - innerHeight);
    this.draw();
  }

  key(event) {
    if (event.key === 'j') this.move(1);
    else if (event.key === 'k') this.move(-1);
    else if (event.key === 'Enter' && this.current) location.hash = `#/jobs/${this.current}`;
    else if (event.key === '/') this.text.focus();
    else if (event.key === 'Escape' && this.filters.text) {
      this.text.value = '';
      this.setFilter('text', '');
    } else return false;
    return true;
  }

  close() {
    this.ending.abort();
  }
}

function fill(row) {
  const { job, element } = row;
  const labels = Object.entries(job.labels).slice(0, LABELS_SHOWN);
  const tags = labels.map(([name, value]) => h('span.tag', `${name}=${value}`));
  const who = submitter(job) || (job.tenant === 'local' ? '' : `tenant ${job.tenant}`);
  row.age = h('span.age', { title: when(job.created_at) });
  row.took = h('span.took');
  replace(element, h(`span.state.${job.state}`, job.state), h('span.kind-name', job.kind),
    h('span.what', h('span.title', title(job)), h('span.remark', remark(job))),
    h('span.tags', tags), h('span.who', who), row.took, row.age);
  showTimes(row);
}

function showTimes({ job, age, took }) {
  setText(age, ago(job.created_at));
  const seconds = worked(job);
  const isShown = seconds !== null && job.state !== 'queued';
  setText(took, isShown ? duration(isFinal(job) ? seconds : Math.floor(seconds)) : '');
}
