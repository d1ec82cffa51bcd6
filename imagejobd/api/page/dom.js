// Elements made from values. Everything that comes from jobs is a stranger's text: it becomes text nodes and attributes
// only, without characters that could hide or reorder what stands beside it.

const SVG = 'http://www.w3.org/2000/svg';
// Controls but for tab and newline, and the marks of bidirectional text that reach beyond their own line.
const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

export const clean = (text) => String(text).replace(UNSAFE, '\ufffd');

// `h('p.note', { title: '…' }, children)`: an element with classes, attributes (may be left out) and children. Functions
// are listeners; null and false leave an attribute out; links lead to places of this page and nowhere else.
export const h = (name, ...content) => build((tag) => document.createElement(tag), name, content);
export const svg = (name, ...content) => build((tag) => document.createElementNS(SVG, tag), name, content);

export function replace(parent, ...children) {
  parent.replaceChildren(...nodes(children));
  return parent;
}

// As `replace`, where that makes a difference: what is selected, has the focus or is hovered over stays so.
export function refresh(parent, ...children) {
  const fresh = nodes(children).map((node) => (node instanceof Node ? node : new Text(node)));
  const before = [...parent.childNodes];
  const isSame = fresh.length === before.length && fresh.every((node, index) => node.isEqualNode(before[index]));
  if (!isSame) parent.replaceChildren(...fresh);
}

// Sets the text where it is another one, so that a selection in it outlives a refresh.
export function setText(element, text) {
  const wanted = clean(text ?? '');
  if (element.textContent !== wanted) element.textContent = wanted;
}

function build(create, name, content) {
  const [tag, ...classes] = name.split('.');
  const element = create(tag);
  const attributes = content[0]?.constructor === Object ? content.shift() : {};
  if (tag === 'button') element.type = 'button';
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) set(element, key, value);
  element.append(...nodes(content));
  return element;
}

function set(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (typeof value === 'function') element.addEventListener(key, value);
  else if (key === 'href' && !value.startsWith('#')) throw new Error('a link leads out of the page');
  else element.setAttribute(key, value === true ? '' : clean(value));
}

function nodes(children) {
  const wanted = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return wanted.map((child) => (child instanceof Node ? child : clean(child)));
}
