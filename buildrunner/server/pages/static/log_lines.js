// The lines of one log, fetched where they are looked at, and forgotten again.

const BLOCK = 200; // lines fetched together
const KEPT = 60; // blocks
const WIDTH = 4000; // bytes of a line
const PAUSE_MS = 30;
// Browsers break off what they load when a network of their machine comes or goes, as each build
// that runs on it makes one. The server being away takes longer: that the stream tells.
const AGAIN_MS = [100, 500, 2000];

export class LogLines {
  /**
   * @param api address of the build in the API
   * @param onChange (first, until): these lines are there now; also when their number changed
   */
  constructor(api, onChange) {
    Object.assign(this, { api, onChange, count: 0, size: 0 });
    this.blocks = new Map(); // number -> lines, the one used last at the end
    this.asked = new Map(); // number -> promise
  }

  /** One line, or undefined when it is not here; `want` fetches it. */
  get(number) {
    const block = this.blocks.get(Math.floor(number / BLOCK));
    return block?.[number % BLOCK];
  }

  /** Have these lines fetched, soon: while somebody scrolls fast, only what he stops at. */
  want(first, until) {
    this.wanted = [first, until];
    this.waiting ??= setTimeout(() => {
      this.waiting = undefined;
      this.fetch(...this.wanted).catch(() => {
        // The server is away; asked again when something moves, or when it is back.
      });
    }, PAUSE_MS);
  }

  async fetch(first, until) {
    const from = Math.floor(Math.max(0, first) / BLOCK);
    const to = Math.floor(Math.max(0, Math.min(until, this.count) - 1) / BLOCK);
    const loads = [];
    for (let block = from; block <= to; block++) {
      const there = this.blocks.get(block);
      if (there) {
        this.blocks.delete(block);
        this.blocks.set(block, there);
        const whole = Math.min(BLOCK, this.count - block * BLOCK);
        if (there.length >= whole) continue;
      }
      loads.push(this.load(block));
    }
    await Promise.all(loads);
  }

  load(block) {
    const asked = this.asked.get(block);
    if (asked) return asked;
    const promise = this.ask(block * BLOCK, BLOCK).finally(() => this.asked.delete(block));
    this.asked.set(block, promise);
    return promise;
  }

  /** The end of the log: how long it is, and its last lines. Resolves to whether it grew. */
  async fetchEnd() {
    const before = this.count;
    const block = Math.floor(Math.max(0, this.count - 1) / BLOCK);
    if (this.asked.has(block)) await this.asked.get(block);
    await this.load(block);
    // More came than one block holds.
    while (this.count > before && !this.get(this.count - 1)) {
      await this.load(Math.floor((this.count - 1) / BLOCK));
    }
    return this.count > before;
  }

  /** The first look at the log: its length. */
  async begin() {
    const answer = await this.json(`/log/lines?start=-1&count=0&width=${WIDTH}`);
    this.grow(answer);
    await this.fetch(this.count - BLOCK, this.count);
  }

  /** Lines in one go, past the store: to copy them. */
  async texts(first, count) {
    const texts = [];
    for (let start = first; start !== null && texts.length < count; ) {
      const answer = await this.json(`/log/lines?start=${start}&count=${count - texts.length}`);
      texts.push(...answer.lines.map((line) => line.text));
      start = answer.next;
    }
    return texts;
  }

  async json(path) {
    const answer = await persistent(this.api + path);
    if (!answer.ok) throw new Error(`${answer.status} ${path}`);
    return answer.json();
  }

  async ask(start, count) {
    const answer = await this.json(`/log/lines?start=${start}&count=${count}&width=${WIDTH}`);
    const block = Math.floor(start / BLOCK);
    this.blocks.delete(block);
    this.blocks.set(block, answer.lines);
    for (const oldest of this.blocks.keys()) {
      if (this.blocks.size <= KEPT) break;
      this.blocks.delete(oldest);
    }
    this.grow(answer);
    this.onChange(start, start + answer.lines.length);
  }

  grow(answer) {
    this.size = Math.max(this.size, answer.size);
    // A line that is still open counts, too.
    const count = answer.lineCount + (answer.open ? 1 : 0);
    if (count > this.count) {
      this.count = count;
      this.onChange(0, 0);
    }
  }
}

async function persistent(address) {
  for (const wait of AGAIN_MS) {
    try {
      return await fetch(address);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
  return fetch(address);
}
