// The log viewer: puts lines, folds, search, colours and the live stream together.
//
// A line has a number in the log, from 0 (people see 1); a row is where it stands in the list, which
// differs when steps are folded. Nothing that a log says becomes anything but text.

import { plain } from "./ansi.js";
import { toClipboard } from "./clipboard.js";
import { openStream } from "./connection.js";
import { refreshers } from "./live.js";
import { LogFolds } from "./log_folds.js";
import { LogLines } from "./log_lines.js";
import { markMatches } from "./log_marks.js";
import { drawFold, drawGap, drawText, drawTime } from "./log_row.js";
import { LogSearch } from "./log_search.js";
import { VirtualList, element } from "./virtual_list.js";

const NODES = 1400; // elements that the rows in sight may have together
const MOST_COPIED = 10_000;
const SOON_MS = 100;
const RETRY_MS = 2000;
const ERROR_LIKE = "(?i)\\b(error|fatal|failed|failure|exception|panic|traceback)\\b";

const { api, sequence } = document.body.dataset;
const box = document.getElementById("log");
const at = (id) => document.getElementById(id);

class LogViewer {
  constructor() {
    this.isOver = document.body.dataset.over === "true";
    this.follows = false;
    this.showsTimes = false;
    this.chosen = null; // [first, last] line
    this.folds = new LogFolds();
    this.lines = new LogLines(api, (first, until) => this.changed(first, until));
    this.search = new LogSearch(api, (moved) => this.searched(moved));
  }

  async begin() {
    await this.lines.begin();
    at("tail").remove();
    box.querySelector("noscript")?.remove();
    const height = parseFloat(getComputedStyle(box).getPropertyValue("--row"));
    this.list = new VirtualList(box, height, (row) => this.draw(row), (by) => this.moved(by));
    this.grown();
    for (const hidden of document.querySelectorAll(".needs-script")) hidden.hidden = false;
    this.listen();
    const step = new URLSearchParams(location.search).get("step");
    if (location.hash === "#search") at("query").focus();
    else if (location.hash) this.goToHash();
    else if (step === null) this.follow(!this.isOver, true);
    box.dataset.ready = "";
    await this.loadRuns();
    if (!location.hash && (step !== null || this.isOver)) this.showBeginning(step);
    if (!this.isOver) this.connect();
  }

  /** Where one looks first: the step that was asked for, or that which failed. */
  showBeginning(asked) {
    const step = asked === null ? this.failedSteps()[0] : Number(asked);
    if (step === undefined) return;
    const own = this.folds.linesOf(step);
    if (!own) return this.say(`step #${step} has written nothing`);
    const isBad = this.failedSteps().includes(step);
    this.showLine(own[isBad ? 1 : 0], isBad ? 0.8 : 0);
  }

  async loadRuns() {
    const { runs } = await this.lines.json("/log/steps");
    this.folds.setRuns(runs ?? []);
    this.canFold = runs !== null;
    for (const button of document.querySelectorAll("[data-fold]")) button.hidden = !this.canFold;
  }

  // -- what is drawn ---------------------------------------------------------------------------

  draw(row) {
    const place = this.folds.at(row);
    if (place.step !== undefined) return drawFold(place);
    const number = place.line;
    const line = this.lines.get(number);
    const shown = element("div", "row");
    shown.dataset.line = number;
    const link = shown.appendChild(element("a", "n", String(number + 1)));
    link.href = `#L${number + 1}`;
    link.tabIndex = -1;
    if (this.isChosen(number)) shown.classList.add("chosen");
    if (this.search.lines.has(number)) shown.classList.add("hit");
    if (this.search.current?.line === number) shown.classList.add("current");
    if (!line) {
      shown.classList.add("absent");
      this.missing();
      return shown;
    }
    if (this.showsTimes) shown.append(drawTime(line));
    const gap = drawGap(this.lineAbove(row), line);
    if (gap) shown.append(gap);
    shown.append(drawText(line, api, Math.max(3, Math.floor(NODES / this.list.most) - 4)));
    return shown;
  }

  lineAbove(row) {
    const above = row > 0 ? this.folds.at(row - 1) : undefined;
    return above && above.step === undefined ? this.lines.get(above.line) : undefined;
  }

  /** Have fetched what is missing in sight; rows that were drawn and are gone again don't count. */
  missing() {
    if (this.looking) return;
    this.looking = true;
    queueMicrotask(() => {
      this.looking = false;
      const absent = [...this.list.drawn.keys()]
        .map((row) => this.folds.at(row))
        .filter(({ line, step }) => step === undefined && !this.lines.get(line))
        .map(({ line }) => line);
      if (absent.length) this.lines.want(Math.min(...absent), Math.max(...absent) + 1);
    });
  }

  // -- what changes ----------------------------------------------------------------------------

  changed(first, until) {
    if (!this.list) return;
    if (first === until) return this.grown();
    // The line behind these, too: it shows the pause before it.
    this.list.refresh((row) => {
      const { line } = this.folds.at(row);
      return line >= first && line <= until;
    });
    markMatches(box, this.search.pattern);
  }

  grown() {
    this.folds.setCount(this.lines.count);
    this.list.setCount(this.folds.rows);
    box.setAttribute("aria-label", `Log, ${this.lines.count} lines`);
    box.toggleAttribute("data-empty", !this.lines.count);
    if (this.follows) this.list.show(this.folds.rows - 1, 1);
  }

  moved(by) {
    if (by === "user") {
      this.step = undefined;
      if (this.follows && !this.list.isAtEnd) this.follow(false);
      else if (!this.isOver && this.list.isAtEnd && !this.follows) this.follow(true);
    }
    markMatches(box, this.search.pattern);
  }

  follow(yes, toEnd = yes) {
    this.follows = yes;
    at("follow").setAttribute("aria-pressed", String(yes));
    if (toEnd) this.list.show(this.folds.rows - 1, 1);
  }

  // -- live ------------------------------------------------------------------------------------

  connect() {
    const query = (id) => {
      const [offset, events] = id ? id.split(":") : [this.lines.size, sequence || 0];
      return `${api}/log/stream?offset=${offset}&events=${events}&text=false`;
    };
    const page = refreshers();
    openStream(query, {
      ...page,
      log: () => this.fetchSoon(),
      end: () => {
        page.end();
        this.isOver = true;
        this.fetchSoon();
        this.loadRuns();
        this.say("the build has ended");
      },
      again: () => {
        page.again();
        this.fetchSoon();
        this.missing();
      },
    });
  }

  /** The stream says that there is more; the lines themselves come with time and step from here. */
  fetchSoon() {
    this.fetchAgain = true;
    if (this.fetching) return;
    this.fetching = true;
    setTimeout(async () => {
      this.fetchAgain = false;
      try {
        await this.lines.fetchEnd();
      } catch {
        this.fetchAgain = true; // the server is away
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
      this.fetching = false;
      if (this.fetchAgain) this.fetchSoon();
    }, SOON_MS);
  }

  // -- going to places -------------------------------------------------------------------------

  showLine(line, place = 0.4) {
    if (this.follows) this.follow(false, false);
    this.list.show(this.folds.rowOf(line), place);
  }

  goToHash() {
    const found = /^#L(\d+)(?:-L?(\d+))?$/.exec(location.hash);
    if (!found) return;
    const first = Number(found[1]) - 1;
    const last = found[2] ? Number(found[2]) - 1 : first;
    this.choose(Math.min(first, last), Math.max(first, last));
    this.showLine(Math.min(first, this.lines.count - 1));
  }

  choose(first, last) {
    this.chosen = [first, last];
    this.list.refresh();
  }

  isChosen(line) {
    return this.chosen !== null && line >= this.chosen[0] && line <= this.chosen[1];
  }

  /** Where the output of the step behind (1) or before (-1) what is on top begins. */
  nextStep(by) {
    const top = this.folds.at(this.list.first).line ?? 0;
    const begins = [...document.querySelectorAll("[data-step]")]
      .map((item) => [this.folds.linesOf(Number(item.dataset.step))?.[0], item.dataset.step])
      .filter(([line]) => line !== undefined)
      .sort(([a], [b]) => a - b);
    const here = this.step === undefined ? -1 : begins.findIndex(([, step]) => step === this.step);
    const at = here >= 0 ? here + by : by > 0 ? begins.findIndex(([line]) => line > top) : begins.findLastIndex(([line]) => line < top);
    const found = begins[at];
    if (!found) return this.say(by > 0 ? "no step begins below" : "no step begins above");
    this.step = found[1];
    this.choose(found[0], found[0]);
    this.showLine(found[0], 0.1);
    this.say(`line ${found[0] + 1}: step #${found[1]} begins`);
  }

  failedSteps() {
    return [...document.querySelectorAll("[data-step][data-failed]")].map((item) => Number(item.dataset.step));
  }

  /** The last line of the next step that failed; without one, the next line that looks like an error. */
  async nextFailure() {
    const ends = this.failedSteps()
      .map((step) => this.folds.linesOf(step)?.[1])
      .filter((line) => line !== undefined)
      .sort((a, b) => a - b);
    const here = this.failure ?? -1;
    if (ends.length) {
      this.failure = ends.find((line) => line > here) ?? ends[0];
      this.choose(this.failure, this.failure);
      this.showLine(this.failure, 0.8);
      this.say(`line ${this.failure + 1}: end of a step that failed`);
      return;
    }
    const { lines } = await this.lines.json(`/log/lines?start=${here + 1}&count=1&width=100`);
    const from = lines[0]?.offset ?? this.lines.size;
    const query = new URLSearchParams({ q: ERROR_LIKE, regex: true, from, limit: 1 });
    const { matches } = await this.lines.json(`/log/search?${query}`);
    if (!matches.length) {
      this.say(here < 0 ? "nothing looks like an error" : "no more lines that look like an error");
      this.failure = undefined;
      return;
    }
    this.failure = matches[0].line;
    this.choose(this.failure, this.failure);
    this.showLine(this.failure);
    this.say(`line ${this.failure + 1} looks like an error`);
  }

  searched(moved) {
    at("found").textContent = this.search.told;
    if (moved && this.search.current) {
      const { line } = this.search.current;
      this.unfoldFor(line);
      this.showLine(line);
    }
    this.list.refresh((row) => this.search.lines.has(this.folds.at(row).line));
    markMatches(box, this.search.pattern);
  }

  unfoldFor(line) {
    const place = this.folds.at(this.folds.rowOf(line));
    if (place.step !== undefined) this.fold(place.step);
  }

  async fold(step) {
    const line = this.folds.at(this.list.first).line;
    const shown = this.folds.folded.has(step);
    if (!shown && !this.isOver) await this.loadRuns(); // it has grown since
    this.folds.toggle(step);
    this.list.setCount(this.folds.rows);
    this.list.refresh();
    this.list.show(this.folds.rowOf(line), 0);
    this.showFolds();
  }

  showFolds() {
    for (const button of document.querySelectorAll("[data-fold]")) {
      const folded = this.folds.folded.has(Number(button.dataset.fold));
      button.setAttribute("aria-pressed", String(folded));
      button.hidden = !this.canFold;
    }
  }

  async copy() {
    const [first, last] = this.chosen ?? [
      this.folds.at(this.list.first).line,
      this.folds.at(Math.max(0, this.list.last)).line,
    ];
    const count = Math.min(last - first + 1, MOST_COPIED);
    const texts = (await this.lines.texts(first, count)).map(plain);
    const copied = await toClipboard(`${texts.join("\n")}\n`);
    const cut = count < last - first + 1 ? ` (the first ${MOST_COPIED.toLocaleString("en")})` : "";
    this.say(copied ? `${texts.length} lines copied${cut}` : "the browser does not let pages copy");
  }

  say(text) {
    at("told").textContent = text;
  }

  // -- what people do --------------------------------------------------------------------------

  listen() {
    at("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.find();
    });
    for (const id of ["match-case", "regex"]) at(id).addEventListener("change", () => this.find());
    at("next").addEventListener("click", () => this.search.step(1));
    at("previous").addEventListener("click", () => this.search.step(-1));
    at("follow").addEventListener("click", () => this.follow(!this.follows));
    at("failure").addEventListener("click", () => this.nextFailure());
    at("times").addEventListener("click", () => this.toggleTimes());
    at("copy").addEventListener("click", () => this.copy());
    window.addEventListener("hashchange", () => this.goToHash());
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("live", () => this.showFolds());
    at("steps-of-log").addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button?.dataset.jump !== undefined) this.showBeginning(button.dataset.jump);
      if (button?.dataset.fold !== undefined) this.fold(Number(button.dataset.fold));
    });
    box.addEventListener("click", (event) => {
      const unfold = event.target.closest("[data-unfold]");
      if (unfold) this.fold(Number(unfold.dataset.unfold));
      const link = event.target.closest("a.n");
      if (!link || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const line = Number(link.parentElement.dataset.line);
      const [first, last] = event.shiftKey && this.chosen ? [this.chosen[0], line].sort((a, b) => a - b) : [line, line];
      history.replaceState(null, "", first === last ? `#L${first + 1}` : `#L${first + 1}-L${last + 1}`);
      this.choose(first, last);
    });
  }

  find() {
    const query = at("query").value;
    const options = { regex: at("regex").checked, ignoreCase: !at("match-case").checked };
    if (this.search.query === query && this.search.regex === options.regex
      && this.search.ignoreCase === options.ignoreCase && query) {
      this.search.step(1);
      return;
    }
    const before = this.search.lines;
    this.search.start(query, options, this.folds.at(this.list.first).line);
    this.list.refresh((row) => before.has(this.folds.at(row).line));
    markMatches(box, this.search.pattern);
  }

  toggleTimes() {
    this.showsTimes = !this.showsTimes;
    at("times").setAttribute("aria-pressed", String(this.showsTimes));
    this.list.refresh();
    markMatches(box, this.search.pattern);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("input, textarea, select")) {
      if (event.key !== "Escape") return;
      event.preventDefault(); // browsers would empty the field
      box.focus();
      return;
    }
    const keys = {
      "/": () => at("query").select(),
      n: () => this.search.step(1),
      N: () => this.search.step(-1),
      e: () => this.nextFailure(),
      g: () => this.showLine(0, 0),
      G: () => this.follow(!this.isOver, true),
      Home: () => this.showLine(0, 0),
      End: () => this.follow(!this.isOver, true),
      f: () => this.follow(!this.follows),
      t: () => this.toggleTimes(),
      c: () => this.copy(),
      j: () => this.list.moveBy(this.list.height),
      k: () => this.list.moveBy(-this.list.height),
      "]": () => this.nextStep(1),
      "[": () => this.nextStep(-1),
      s: () => (at("steps-of-log").open = !at("steps-of-log").open),
    };
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

if (box) {
  const viewer = new LogViewer();
  viewer.begin().catch((error) => {
    viewer.say(`the log can't be shown: ${error.message}`);
    console.warn(error);
  });
}
