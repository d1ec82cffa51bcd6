// Questions to the user, one at a time, and short notices.

import { h } from './dom.js';

const NOTICE_MS = 8_000;
const KEYS = [['j  k', 'next, previous job'], ['Enter', 'open the job'], ['/', 'filter jobs, find in the log'],
  ['Enter  Shift+Enter', 'next, previous match'], ['r  c', 'retry, cancel the job shown'],
  ['Esc', 'leave a field, go back'], ['?', 'this help']];

// Shows a dialog; resolves with its fields when it is agreed to, else with null. `isFirm` offers no other way out.
function ask({ title, body = [], agree, decline = 'Not now', isDanger = false, isFirm = false }) {
  const agreed = h(isDanger ? 'button.danger' : 'button.primary', { type: 'submit' }, agree);
  const form = h('form', { method: 'dialog' }, h('h2', title), body,
    h('div.buttons', decline && !isFirm ? h('button', { click: () => dialog.close() }, decline) : null, agreed));
  const dialog = h('dialog', form);
  return new Promise((resolve) => {
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      const fields = Object.fromEntries([...form.elements].filter((e) => e.name).map((e) => [e.name, e.value]));
      resolve(fields);
      dialog.close();
    });
    dialog.addEventListener('cancel', (event) => isFirm && event.preventDefault());
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(isFirm ? {} : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector('input') ?? agreed).focus();
  });
}

const input = (name, label, attributes) =>
  h('label.field', label, h('input', { name, autocomplete: 'off', spellcheck: 'false', ...attributes }));

export const confirm = async (title, text, agree, isDanger) =>
  (await ask({ title, body: [h('p', text)], agree, isDanger })) !== null;

// The reason for a pause, or null.
export async function askReason(what) {
  const fields = await ask({
    title: `Pause ${what}?`,
    body: [h('p', 'Jobs are still accepted, and those that run go on. None is started until you resume.'),
      input('reason', 'Reason', { maxlength: 200, placeholder: 'shown to everybody who waits', required: true })],
    agree: 'Pause',
  });
  return fields?.reason ?? null;
}

// Secrets by name, or null.
export function askSecrets(names) {
  return ask({
    title: 'Retry with secrets',
    body: [h('p', 'What this job logged in with was deleted when it ended.'),
      names.map((name) => input(name, name, { type: 'password', required: true }))],
    agree: 'Retry',
  });
}

// A token, or an empty text.
export async function askToken(why) {
  const fields = await ask({
    title: why ? 'A token is required' : 'Use a token',
    body: [h('p', why || 'You see the jobs of your token’s tenant then, or of all tenants where it is an admin’s.'),
      input('token', 'Token', { type: 'password', required: true }),
      h('p.hint', 'It stays in the memory of this page and is gone when you close or reload it.')],
    agree: 'Continue',
    isFirm: Boolean(why),
  });
  return (fields?.token ?? '').trim().replace(/^Bearer\s+/i, '');
}

export const showHelp = () => ask({
  title: 'Keyboard',
  body: [h('dl.keys', KEYS.map(([keys, what]) =>
    [h('dt', keys.split('  ').map((key) => h('kbd', key))), h('dd', what)]))],
  agree: 'Close',
  decline: null,
});

export function notice(text, isError = false) {
  const line = h(isError ? 'p.notice.error' : 'p.notice', text);
  document.getElementById('notices').append(line);
  setTimeout(() => line.remove(), NOTICE_MS);
}

export const isAsking = () => document.querySelector('dialog[open]') !== null;
