// Where the page begins: which view the address names, the keyboard, and whether the daemon answers.

import { connect, useToken } from './api.js';
import { askToken, isAsking, showHelp } from './dialogs.js';
import { replace, setText } from './dom.js';
import { JobPage } from './job.js';
import { JobList } from './list.js';

const main = document.getElementById('main');
const live = document.getElementById('live');
let view = null;
let place = null;
let list = null;
let listY = 0;

connect({
  ask: askToken,
  reached: (yes) => {
    live.className = yes ? 'live' : 'live away';
    setText(live, yes ? '' : 'The daemon does not answer; trying again');
  },
});

// `#/jobs/ID` is a job, all else the list with its filters. Who comes back to the list finds it as it was.
function route(event) {
  if (place === location.hash) return;
  if (view instanceof JobList) list = { view, hash: new URL(event.oldURL).hash || '#/', y: listY };
  show();
}

function show() {
  place = location.hash || '#/';
  const [path, query = ''] = place.slice(1).split('?');
  const id = /^\/jobs\/([^/]+)$/.exec(path)?.[1];
  view?.close();
  document.title = 'imagejobd';
  const isBack = !id && list?.hash === place;
  if (isBack) view = list.view;
  else view = id ? new JobPage(id) : new JobList(new URLSearchParams(query));
  replace(main, view.element);
  view.start();
  scrollTo(0, isBack ? list.y : 0);
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || isAsking()) return;
  const isTyping = event.target.matches('input, select, textarea');
  if (isTyping) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  // A button or link with the focus does as it is told.
  if (event.key === 'Enter' && event.target.matches('a, button, summary')) return;
  if (event.key === '?') showHelp();
  else if (event.key === 'Escape' && view instanceof JobPage) location.hash = list?.hash ?? '#/';
  else if (!view.key(event)) return;
  event.preventDefault();
}

// For who sees more with a token than without one.
async function offerToken() {
  const text = await askToken('');
  if (!text) return;
  useToken(text);
  list = null;
  show();
}

document.getElementById('token').addEventListener('click', offerToken);
document.getElementById('help').addEventListener('click', showHelp);
setText(document.getElementById('host'), location.host);
addEventListener('hashchange', route);
addEventListener('keydown', key);
// By the time that the address has changed, the browser may have scrolled elsewhere.
addEventListener('scroll', () => {
  if (place === (location.hash || '#/') && view instanceof JobList) listY = scrollY;
}, { passive: true });
route();
