// A log of any length: only the lines in view are in the document. Text comes in batches and is drawn once a frame;
// finding goes through the lines in slices, so that a hand on the keyboard is never waited for.

import { pieces, plain } from './ansi.js';
import { h, setText } from './dom.js';
import { count, plural } from './format.js';

const LINE_PX = 20;
const MARGIN_LINES = 12;
// Browsers draw nothing beyond some 16 million pixels.
const LINES_MAX = 500_000;
const LINES_DROPPED = 100_000;
const LINE_SHOWN_MAX_CHARS = 4_000;
const LINE_MAX_CHARS = 1_000_000;
const SLICE_MS = 8;
const ENDS_PLAIN = /\x1b\[0?m[^\x1b]*$/;

export const breathe = () => new Promise((resolve) => setTimeout(resolve));

export class LogView {
  constructor({ isFollowing = true, download }) {
    this.lines = [];
    this.rest = '';
    this.dropped = 0;
    this.styles = new Map(); // the style that a line begins with, where it has one
    this.open = new Map(); // by build step, whose lines are mixed: the style that its next line begins with
    this.rows = new Map();
    this.widest = 0;
    this.isFollowing = isFollowing;
    this.query = '';
    this.matches = [];
    this.match = -1;
    this.searched = 0;
    this.lastTop = 0;
    this.build(download);
  }

  build(download) {
    this.canvas = h('div.lines');
    const region = { tabindex: 0, role: 'log', 'aria-live': 'off' };
    this.body = h('div.log', { ...region, scroll: () => this.scrolled() }, this.canvas);
    const search = { type: 'search', placeholder: 'Find', 'aria-label': 'Find in the log', spellcheck: 'false' };
    const [input, keydown] = [() => this.find(this.field.value), (event) => this.fieldKey(event)];
    this.field = h('input', { ...search, input, keydown });
    this.found = h('span.note.found');
    this.size = h('span.note');
    this.follow = h('button', { click: () => this.setFollowing(!this.isFollowing) }, 'Follow');
    this.element = h('section.log-part', h('div.part-head', h('h2', 'Log'), this.size,
      h('span.gap'), this.found, this.field, this.follow,
      h('button', { click: download }, 'Download')), this.body);
    new ResizeObserver(() => this.draw()).observe(this.body);
    this.setFollowing(this.isFollowing);
  }

  get count() {
    return this.lines.length + (this.rest ? 1 : 0);
  }

  // What is said beside the heading: how long the log is, and `text` where there is none.
  state(text) {
    const size = this.count ? plural(this.dropped + this.count, 'line') : text;
    setText(this.size, this.dropped ? `${size}, of which the last ${count(this.count)} are here` : size);
    this.body.hidden = this.count === 0;
  }

  append(text) {
    const lines = (this.rest + text).split('\n');
    this.rest = lines.pop();
    if (this.rest.length > LINE_MAX_CHARS) {
      lines.push(this.rest);
      this.rest = '';
    }
    this.rows.get(this.lines.length)?.remove();
    this.rows.delete(this.lines.length); // it was drawn before it was whole
    for (const line of lines) this.push(line);
    if (this.lines.length > LINES_MAX) this.drop();
    this.draw();
  }

  // Nothing more will come; `why` where that is a failure.
  end(why = '') {
    this.ending = why || 'No output';
    this.follow.hidden = true;
    this.draw();
  }

  clear() {
    Object.assign(this, { lines: [], rest: '', dropped: 0, styles: new Map(), open: new Map(), widest: 0 });
    this.forget();
    this.find(this.query);
  }

  push(line) {
    const step = this.open.size || line.includes('\x1b') ? stepOf(line) : '';
    const style = this.open.get(step) ?? null;
    if (style) this.styles.set(this.lines.length, style);
    if (line.includes('\x1b')) {
      const next = ENDS_PLAIN.test(line) ? null : pieces(line, style).style;
      if (next) this.open.set(step, next);
      else this.open.delete(step);
    }
    this.widest = Math.max(this.widest, Math.min(line.length, LINE_SHOWN_MAX_CHARS));
    this.lines.push(line);
  }

  drop() {
    this.lines.splice(0, LINES_DROPPED);
    this.dropped += LINES_DROPPED;
    const styles = [...this.styles].filter(([index]) => index >= LINES_DROPPED);
    this.styles = new Map(styles.map(([index, style]) => [index - LINES_DROPPED, style]));
    this.forget();
    this.find(this.query);
  }

  forget() {
    this.rows.clear();
    this.canvas.replaceChildren();
  }

  // Asks for a drawing with the next frame.
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.state(this.ending ?? 'No output yet');
      const size = this.count * LINE_PX;
      this.canvas.style.height = `${size}px`;
      this.canvas.style.minWidth = `calc(${this.widest}ch + 6em)`;
      this.canvas.style.setProperty('--digits', `${String(this.dropped + this.count).length}ch`);
      if (this.isFollowing) this.body.scrollTop = size;
      this.drawLines();
      if (this.query && this.searched < this.lines.length) this.search(this.query);
    });
  }

  drawLines() {
    const { scrollTop, clientHeight } = this.body;
    const first = Math.max(0, Math.floor(scrollTop / LINE_PX) - MARGIN_LINES);
    const last = Math.min(this.count, Math.ceil((scrollTop + clientHeight) / LINE_PX) + MARGIN_LINES);
    for (const [index, row] of this.rows) {
      if (index < first || index >= last) {
        row.remove();
        this.rows.delete(index);
      }
    }
    const fresh = [];
    for (let index = first; index < last; index++) {
      if (this.rows.has(index)) continue;
      const row = this.row(index);
      this.rows.set(index, row);
      fresh.push(row);
    }
    this.canvas.append(...fresh);
  }

  row(index) {
    const line = this.lines[index] ?? this.rest;
    const cut = line.length > LINE_SHOWN_MAX_CHARS;
    const { parts } = pieces(cut ? line.slice(0, LINE_SHOWN_MAX_CHARS) : line, this.styles.get(index) ?? null);
    const row = h(index === this.matches[this.match] ? 'div.l.here' : 'div.l',
      h('span.n', this.dropped + index + 1), h('span.t', marked(parts, this.query)),
      cut ? h('span.cut', ` … ${count(line.length - LINE_SHOWN_MAX_CHARS)} more characters`) : null);
    row.style.transform = `translateY(${index * LINE_PX}px)`;
    return row;
  }

  scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.body;
    if (scrollTop < this.lastTop - 2) this.setFollowing(false);
    else if (scrollTop + clientHeight > scrollHeight - LINE_PX) this.setFollowing(true);
    this.lastTop = scrollTop;
    this.draw();
  }

  setFollowing(yes) {
    this.isFollowing = yes;
    this.follow.setAttribute('aria-pressed', yes);
    if (yes) this.draw();
  }

  fieldKey(event) {
    if (event.key !== 'Enter') return;
    event.preventDefault();
    this.go(event.shiftKey ? -1 : 1);
  }

  find(text) {
    this.query = text.toLowerCase();
    Object.assign(this, { matches: [], match: -1, searched: 0 });
    this.forget();
    this.showFound();
    this.draw();
    if (this.query) this.search(this.query);
  }

  // Looks at the lines that it has not looked at yet, a slice at a time.
  async search(query) {
    if (this.isSearching) return;
    this.isSearching = true;
    while (this.query && this.searched < this.lines.length) {
      query = this.query;
      const until = performance.now() + SLICE_MS;
      while (this.searched < this.lines.length && performance.now() < until) {
        for (const end = Math.min(this.searched + 500, this.lines.length); this.searched < end; this.searched++) {
          if (plain(this.lines[this.searched]).toLowerCase().includes(query)) this.matches.push(this.searched);
        }
      }
      if (this.match < 0 && this.matches.length) this.goFirst();
      this.showFound();
      await breathe();
    }
    this.isSearching = false;
  }

  goFirst() {
    const top = Math.floor(this.body.scrollTop / LINE_PX);
    const after = this.isFollowing ? 0 : this.matches.findIndex((index) => index >= top);
    this.show(Math.max(after, 0));
  }

  go(step) {
    if (this.matches.length) this.show((this.match + step + this.matches.length) % this.matches.length);
  }

  show(match) {
    this.match = match;
    this.setFollowing(false);
    this.body.scrollIntoView({ block: 'nearest' });
    const y = this.matches[match] * LINE_PX;
    const { scrollTop, clientHeight } = this.body;
    if (y < scrollTop || y > scrollTop + clientHeight - 2 * LINE_PX) this.body.scrollTop = y - clientHeight / 2;
    this.lastTop = this.body.scrollTop;
    this.forget();
    this.showFound();
    this.draw();
  }

  showFound() {
    const total = this.matches.length;
    setText(this.found, !this.query ? '' : total ? `${count(this.match + 1)} of ${count(total)}` : 'nothing found');
  }
}

const stepOf = (line) => /^#(\d{1,6}) /.exec(line)?.[1] ?? '';

// The pieces as spans, with what is looked for marked, also where it goes over several of them.
function marked(parts, query) {
  const ranges = query ? occurrences(parts.map(({ text }) => text).join(''), query) : [];
  const spans = [];
  let at = 0;
  for (const { text, classes } of parts) {
    const cuts = ranges.flat().map((place) => place - at).filter((place) => place > 0 && place < text.length);
    let from = 0;
    for (const to of [...cuts, text.length]) {
      const isMark = ranges.some(([start, end]) => start <= at + from && at + from < end);
      const piece = text.slice(from, to);
      if (isMark) spans.push(h('mark', { class: classes }, piece));
      else spans.push(classes ? h('span', { class: classes }, piece) : piece);
      from = to;
    }
    at += text.length;
  }
  return spans;
}

function occurrences(text, query) {
  const lower = text.toLowerCase();
  const ranges = [];
  if (lower.length !== text.length) return ranges; // of some letters the small one is longer
  for (let at = lower.indexOf(query); at >= 0 && ranges.length < 100; at = lower.indexOf(query, at + query.length)) {
    ranges.push([at, at + query.length]);
  }
  return ranges;
}
