// Terminal colours in lines of a log. Whatever else a program sends to a terminal is left out, however broken it is,
// and nothing can make text invisible: colours are those of the page's own sixteen.

// CSI, OSC (also without its end), other escapes; an ESC that begins none of these goes alone.
const [CSI, OSC, OTHER] = [/\[([0-?]*)[ -/]*([@-~])?/, /\][^\x07\x1b]*(?:\x07|\x1b\\)?/, /[ -/]*[0-~]?/];
const ESCAPE = new RegExp(`\x1b(?:${CSI.source}|${OSC.source}|${OTHER.source})`, 'g');
const SIMPLE = { 1: ['bold', true], 2: ['dim', true], 3: ['italic', true], 4: ['underline', true], 9: ['strike', true],
  7: ['inverse', true], 22: ['bold', false], 23: ['italic', false], 24: ['underline', false], 27: ['inverse', false],
  29: ['strike', false], 39: ['color', null], 49: ['back', null] };
const PALETTE = [[0, 0, 0], [205, 49, 49], [13, 188, 121], [190, 170, 16], [36, 114, 200], [188, 63, 188],
  [17, 168, 205], [190, 190, 190], [102, 102, 102], [241, 76, 76], [35, 209, 139],
  [245, 245, 67], [59, 142, 234], [214, 112, 214], [41, 184, 219], [255, 255, 255]];

// What a terminal would show last of a line that a program has overwritten.
export function settled(line) {
  if (!line.includes('\r')) return line;
  const shown = line.replace(/\r+$/, '');
  return shown.slice(shown.lastIndexOf('\r') + 1);
}

// The text alone, as it is searched.
export const plain = (line) => (line.includes('\x1b') ? settled(line).replace(ESCAPE, '') : settled(line));

// Pieces of a line, each with its CSS classes, and the style that the next line begins with (null: none).
export function pieces(line, style) {
  const text = settled(line);
  if (!text.includes('\x1b')) return { parts: text ? [{ text, classes: classes(style) }] : [], style };
  const parts = [];
  let from = 0;
  let now = style;
  const add = (to) => to > from && parts.push({ text: text.slice(from, to), classes: classes(now) });
  for (const match of text.matchAll(ESCAPE)) {
    add(match.index);
    from = match.index + match[0].length;
    if (match[2] === 'm') now = styled(now, match[1]);
  }
  add(text.length);
  return { parts, style: now };
}

function styled(before, parameters) {
  const style = { ...before };
  const codes = parameters.split(/[;:]/, 64).map(Number);
  while (codes.length) {
    const code = codes.shift();
    if (code === 0) for (const name in style) delete style[name];
    else if (code === 38 || code === 48) style[code === 38 ? 'color' : 'back'] = extended(codes);
    else if (SIMPLE[code]) style[SIMPLE[code][0]] = SIMPLE[code][1];
    else if (code >= 30 && code <= 37) style.color = code - 30;
    else if (code >= 90 && code <= 97) style.color = code - 82;
    else if (code >= 40 && code <= 47) style.back = code - 40;
    else if (code >= 100 && code <= 107) style.back = code - 92;
    if (code === 22) style.dim = false;
  }
  return Object.values(style).some((value) => value !== null && value !== false) ? style : null;
}

// 256 colours and true colours, as the nearest of the sixteen.
function extended(codes) {
  const sort = codes.shift();
  if (sort === 2) return nearest(codes.splice(0, 3));
  const n = sort === 5 ? codes.shift() : NaN;
  if (!(n >= 0 && n < 256)) return null;
  if (n < 16) return n;
  if (n >= 232) return nearest(Array(3).fill(8 + 10 * (n - 232)));
  const cube = n - 16;
  return nearest([Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6].map((level) => level * 51));
}

function nearest([red, green, blue]) {
  const distances = PALETTE.map(([r, g, b]) => (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2);
  const least = distances.indexOf(Math.min(...distances));
  return least < 0 ? null : least;
}

function classes(style) {
  if (!style) return '';
  const names = ['bold', 'dim', 'italic', 'underline', 'strike', 'inverse'].filter((name) => style[name]);
  if (typeof style.color === 'number') names.push(`c${style.color}`);
  if (typeof style.back === 'number') names.push(`b${style.back}`);
  return names.join(' ');
}
