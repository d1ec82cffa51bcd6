// Elements made from values. Everything that comes from jobs is a stranger's text: it becomes text nodes and attributes
// only, without characters that could hide or reorder what stands beside it.

const SVG = 'http://www.w3.org/2000/svg';
// Controls but for tab and newline, and the marks of bidirectional text that reach beyond their own line.
const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

export const clean = (text) => String(text).replace(UNSAFE, '\ufffd');

// An element with attributes and children. A function is a listener; null and false leave an attribute out; links lead
// to places of this page and nowhere else.
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

export function replace(parent, ...children) {
  parent.replaceChildren(...nodes(children));
  return parent;
}

// Sets the text where it is another one, so that a selection in it outlives a refresh.
export function setText(element, text) {
  const wanted = clean(text ?? '');
  if (element.textContent !== wanted) element.textContent = wanted;
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (name === 'href' && !value.startsWith('#')) throw new Error('a link leads out of the page');
    else element.setAttribute(name, value === true ? '' : clean(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  const wanted = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return wanted.map((child) => (child instanceof Node ? child : clean(child)));
}
