// Keys of all pages: a help that names them, moving among builds or steps, going to pages and views.
//
// The log viewer has keys of its own (log.js); there only the help is ours.

const SEQUENCE_MS = 1000;
const dialog = document.getElementById("keys");
const isLog = document.body.dataset.log !== undefined;
let begun = 0; // when `g` was pressed

function items(selector = "[data-item]") {
  return [...document.querySelectorAll(selector)];
}

/** Go to the item after (1) or before (-1) the one that has the focus; from the last to the first. */
function move(by, selector) {
  const all = items(selector);
  if (!all.length) return;
  const here = document.activeElement?.closest("[data-item]");
  const every = items();
  const from = here ? every.indexOf(here) : by > 0 ? -1 : every.length;
  const ahead = by > 0 ? all.find((one) => every.indexOf(one) > from) : all.findLast((one) => every.indexOf(one) < from);
  const next = ahead ?? all.at(by > 0 ? 0 : -1);
  const target = next.querySelector("a[href]") ?? next;
  if (target === next) next.tabIndex = -1;
  target.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function follow(selector) {
  const link = document.querySelector(selector);
  if (!link) return false;
  link.click();
  return true;
}

function search() {
  const field = document.querySelector("[data-search]");
  if (field) field.select();
  else if (document.body.dataset.api) location.href = `${location.pathname}/log#search`;
}

/** On a page of a build that shows no steps the failing one is above. */
function nextFailure() {
  if (items("[data-failed]").length) move(1, "[data-failed]");
  else document.getElementById("failure")?.scrollIntoView();
}

const KEYS = {
  "/": search,
  j: () => move(1),
  k: () => move(-1),
  e: nextFailure,
  l: () => document.body.dataset.api && (location.href = `${location.pathname}/log`),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (dialog.open && event.key !== "?") return;
  if (event.key === "?") {
    event.preventDefault();
    if (dialog.open) dialog.close();
    else dialog.showModal();
    return;
  }
  if (isLog) return;
  if (event.key === "g") {
    begun = event.timeStamp;
    return;
  }
  const place = event.timeStamp - begun < SEQUENCE_MS && { b: "/builds", t: "/triggers" }[event.key];
  begun = 0;
  if (place) {
    location.href = place;
    return;
  }
  if (/^[1-9]$/.test(event.key) && follow(`[data-key="${event.key}"]`)) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

const button = document.getElementById("show-keys");
button.hidden = false;
button.addEventListener("click", () => dialog.showModal());
