// Search of the whole log. The server searches, and sends what it finds as it finds it.

const PART = 1000;
const MOST = 20_000; // matches kept; behind them the search goes on when somebody gets there

export class LogSearch {
  /**
   * @param api address of the build in the API
   * @param onChange called when more was found, or it moved
   */
  constructor(api, onChange) {
    Object.assign(this, { api, onChange });
    this.clear();
  }

  clear() {
    this.stop?.abort();
    this.matches = []; // {offset, line}
    this.lines = new Set();
    this.at = -1;
    this.next = null; // offset to go on from
    this.busy = false;
    this.query = "";
    this.problem = "";
  }

  get current() {
    return this.matches[this.at];
  }

  /** Look for something; the first match from line `from` on becomes the current one. */
  async start(query, { regex, ignoreCase }, from) {
    this.clear();
    if (!query) return this.onChange();
    Object.assign(this, { query, regex, ignoreCase, from });
    await this.goOn(0, MOST);
    if (this.at < 0 && this.matches.length) this.move(0);
    return undefined;
  }

  /** To the next (1) or the previous (-1) match. */
  async step(direction) {
    if (!this.matches.length || this.busy && this.at + direction >= this.matches.length) return;
    let to = this.at + direction;
    if (to >= this.matches.length) {
      if (this.next !== null) await this.goOn(this.next, this.matches.length + PART);
      if (to >= this.matches.length) to = 0;
    }
    if (to < 0) to = this.matches.length - 1;
    this.move(to);
  }

  move(to) {
    this.at = to;
    this.onChange(true);
  }

  async goOn(offset, most) {
    const stop = (this.stop = new AbortController());
    this.busy = true;
    this.onChange();
    try {
      const query = new URLSearchParams({
        q: this.query,
        regex: this.regex,
        ignoreCase: this.ignoreCase,
        from: offset,
        limit: PART,
      });
      const answer = await fetch(`${this.api}/log/search?${query}`, {
        headers: { Accept: "application/x-ndjson" },
        signal: stop.signal,
      });
      if (!answer.ok) {
        const body = await answer.json().catch(() => ({}));
        this.problem = body.error?.message ?? `the search failed (${answer.status})`;
        return;
      }
      await this.take(answer.body, most);
    } catch (error) {
      if (error.name !== "AbortError") this.problem = "the search failed: no connection";
    } finally {
      if (this.stop === stop) {
        this.busy = false;
        this.onChange();
      }
    }
  }

  async take(stream, most) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) this.add(JSON.parse(part));
      if (this.matches.length >= most && this.next !== null) {
        await reader.cancel();
        return;
      }
    }
  }

  add({ matches, next }) {
    for (const { offset, line } of matches) {
      this.matches.push({ offset, line });
      this.lines.add(line);
      if (this.at < 0 && line >= this.from) this.move(this.matches.length - 1);
    }
    this.next = next;
    this.onChange();
  }

  /** For a person: "3 of 120". */
  get told() {
    if (this.problem) return this.problem;
    if (!this.query) return "";
    if (!this.matches.length) return this.busy ? "searching…" : "no match";
    const count = this.matches.length.toLocaleString("en");
    const more = this.busy || this.next !== null ? "+" : "";
    return `${(this.at + 1).toLocaleString("en")} of ${count}${more}`;
  }

  /** The query as an expression of ours, to mark what it finds in the lines shown. */
  get pattern() {
    if (!this.query) return null;
    const source = this.regex ? this.query : this.query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    try {
      return new RegExp(source, this.ignoreCase ? "gi" : "g");
    } catch {
      return null; // the server's syntax is not quite ours
    }
  }
}
