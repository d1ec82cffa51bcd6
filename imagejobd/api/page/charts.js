// Small charts, as SVG made to the width that there is.

import { h, replace, svg } from './dom.js';

const PAD = 4;

// A figure that is drawn anew when its width changes: `draw(width, height)` returns SVG nodes.
export function figure(label, height, draw) {
  const canvas = h('div.canvas');
  const note = h('span.note');
  const element = h('figure.chart', h('figcaption', h('span', label), note), canvas);
  canvas.style.height = `${height}px`;
  const redraw = () => {
    const width = canvas.clientWidth;
    const attributes = { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label };
    if (width) replace(canvas, svg('svg', attributes, draw(width, height)));
  };
  new ResizeObserver(redraw).observe(canvas);
  return { element, redraw, say: (text) => replace(note, text) };
}

// Counts over equal parts of a time, stacked. `series` are {name, values}, from below.
export function columns(series, width, height) {
  const sums = series[0]?.values.map((_, index) => series.reduce((sum, { values }) => sum + values[index], 0)) ?? [];
  const unit = (height - 1) / Math.max(...sums, 1);
  const step = width / sums.length;
  const floors = sums.map(() => height);
  return series.map(({ name, values }) => {
    const path = values.map((value, index) => {
      if (!value) return '';
      floors[index] -= value * unit;
      const [wide, high] = [round(step - 1), round(value * unit)];
      return `M${round(index * step)} ${round(floors[index])}h${wide}v${high}h${-wide}z`;
    });
    return svg(`path.area.${name}`, { d: path.join('') });
  });
}

// One bar per value, from old to new. `bars` are {value, state, label}.
export function bars(list, width, height) {
  const most = Math.max(...list.map(({ value }) => value), 0.001);
  const step = width / Math.max(list.length, 24);
  const start = width - step * list.length;
  return list.map(({ value, state, label }, index) => {
    const size = Math.max(2, (height - 1) * Math.sqrt(value / most));
    const box = { x: start + index * step, y: height - size, width: Math.max(1, step - 1), height: size };
    return svg(`rect.bar.${state}`, { ...box, rx: Math.min(1.5, step / 4) }, svg('title', label));
  });
}

// Values over time as a line with a dot each. `dots` are {t, value, label, isHere, go}.
export function line(dots, width, height, describe) {
  const values = dots.map(({ value }) => value);
  const left = 8 + 7 * Math.max(...values.map((value) => describe(value).length));
  const [x, y] = scales(dots.map(({ t }) => t), values, width - left, height, PAD + 2);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const rules = (low === high ? [low] : [low, high]).map((value) => [
    svg('line.rule', { x1: left, x2: width, y1: y(value), y2: y(value) }),
    svg('text', { x: left - 8, y: y(value) + 4, 'text-anchor': 'end' }, describe(value))]);
  const path = dots.map(({ t, value }, index) => `${index ? 'L' : 'M'}${left + x(t)} ${y(value)}`).join('');
  const circles = dots.map(({ t, value, label, isHere, go }) => {
    const place = { cx: left + x(t), cy: y(value), r: isHere ? 5 : 3 };
    return svg(isHere ? 'circle.dot.here' : 'circle.dot', { ...place, click: go }, svg('title', label));
  });
  return [rules, svg('path.line', { d: path }), circles];
}

function scales(ts, values, width, height, pad = PAD) {
  const [t0, t1, v0, v1] = [Math.min(...ts), Math.max(...ts), Math.min(...values), Math.max(...values)];
  const x = (t) => round(t1 > t0 ? pad + ((t - t0) / (t1 - t0)) * (width - 2 * pad) : width / 2);
  const y = (value) => round(v1 > v0 ? height - pad - ((value - v0) / (v1 - v0)) * (height - 2 * pad) : height / 2);
  return [x, y];
}

const round = (value) => Math.round(value * 10) / 10;
