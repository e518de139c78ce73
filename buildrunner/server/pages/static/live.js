// Keeps a page true: what the server would draw now replaces what has `data-live`, by its id.
//
// A page of one build (`data-api` on the body) waits for its events; a list (`data-poll`, seconds)
// asks again while it is in sight. Nothing here draws anything: the server does.

import { openStream, tell } from "./connection.js";

const SOON_MS = 300;
const RETRY_MS = 2000;

let timer;
let wasLost = false;
let asking = false;
let askAgain = false;

/** Draw the live parts of the page again, soon; many calls make one request. */
export function refreshSoon() {
  timer ??= setTimeout(() => {
    timer = undefined;
    refresh();
  }, SOON_MS);
}

/** What to do with the events of a build's stream, so that the page stays true. */
export function refreshers() {
  let told = document.body.dataset.status; // what the page says by now
  return {
    event: ({ event }) => event !== "transferMoved" && refreshSoon(),
    // The first one says what the page was drawn with, as a rule.
    state: ({ status, waiting }) => {
      if (status !== told || waiting) refreshSoon();
      told = status;
    },
    end: refreshSoon,
    again: refreshSoon,
  };
}

async function refresh() {
  if (asking) {
    askAgain = true;
    return;
  }
  asking = true;
  try {
    const answer = await fetch(document.body.dataset.refresh ?? location.href.split("#")[0], { headers: { Accept: "text/html" } });
    if (answer.redirected && new URL(answer.url).pathname === "/login") {
      tell("signed out: reload the page to sign in again");
    } else if (answer.ok) {
      replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      if (wasLost) tell("");
      wasLost = false;
    }
  } catch {
    tell("connection lost, trying again");
    wasLost = true;
    setTimeout(refreshSoon, RETRY_MS);
  } finally {
    asking = false;
    if (askAgain) {
      askAgain = false;
      refreshSoon();
    }
  }
}

function replace(page) {
  for (const fresh of page.querySelectorAll("[data-live][id]")) {
    const shown = document.getElementById(fresh.id);
    if (!shown || shown.isEqualNode(fresh) || isUsed(shown)) continue;
    const open = openDetails(shown);
    const focused = shown.contains(document.activeElement) ? pathTo(shown, document.activeElement) : null;
    const kept = document.importNode(fresh, true);
    shown.replaceWith(kept);
    for (const [index, isOpen] of open) {
      const details = kept.querySelectorAll("details")[index];
      if (details) details.open = isOpen;
    }
    focused?.reduce((parent, index) => parent?.children[index], kept)?.focus({ preventScroll: true });
  }
  document.body.dataset.over = page.body.dataset.over ?? document.body.dataset.over;
  document.title = page.title;
  document.dispatchEvent(new Event("live"));
}

/** Somebody is writing into it, or has text of it selected to copy it. */
function isUsed(shown) {
  const focused = document.activeElement;
  if (shown.contains(focused) && focused.matches("input, textarea, select")) return true;
  const selection = getSelection();
  return !selection.isCollapsed && shown.contains(selection.anchorNode);
}

function openDetails(shown) {
  return [...shown.querySelectorAll("details")].map((details, index) => [index, details.open]);
}

function pathTo(root, node) {
  const path = [];
  for (let at = node; at !== root; at = at.parentElement) {
    path.unshift([...at.parentElement.children].indexOf(at));
  }
  return path;
}

const { api, over, sequence, poll, log } = document.body.dataset;
if (poll) {
  setInterval(() => document.visibilityState === "visible" && refresh(), Number(poll) * 1000);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") refresh();
  });
} else if (api && over === "false" && log === undefined) {
  const after = (id) => id.split(":").at(-1) || sequence || 0;
  openStream((id) => `${api}/events?after=${after(id)}`, refreshers());
}
