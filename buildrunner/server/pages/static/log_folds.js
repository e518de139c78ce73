// Which lines are shown: all, but those of steps that are folded to one row per run.

export class LogFolds {
  constructor() {
    this.runs = []; // [step, first line, line behind the last], in order, without gaps
    this.folded = new Set();
    this.count = 0;
    this.build();
  }

  setRuns(runs) {
    this.runs = runs;
    this.build();
  }

  setCount(count) {
    this.count = count;
    this.build();
  }

  toggle(step) {
    if (!this.folded.delete(step)) this.folded.add(step);
    this.build();
  }

  build() {
    this.parts = []; // {row, line, lines, step}: step is set when they are folded
    let row = 0;
    const add = (line, until, step) => {
      if (until <= line) return;
      const before = this.parts.at(-1);
      if (step === undefined && before && before.step === undefined) before.lines += until - line;
      else this.parts.push({ row, line, lines: until - line, step });
      row += step === undefined ? until - line : 1;
    };
    let line = 0;
    if (this.folded.size) {
      for (const [step, first, until] of this.runs) {
        if (!this.folded.has(step)) continue;
        add(line, first);
        add(first, Math.min(until, this.count), step);
        line = until;
      }
    }
    add(line, this.count);
    this.rows = row;
  }

  /** What stands in a row: {line} or {line, lines, step} of what is folded there. */
  at(row) {
    const part = last(this.parts, (one) => one.row <= row);
    if (!part) return { line: row };
    if (part.step !== undefined) return part;
    return { line: part.line + row - part.row };
  }

  /** The row of a line, or of the fold that hides it. */
  rowOf(line) {
    const part = last(this.parts, (one) => one.line <= line);
    if (!part) return 0;
    return part.step === undefined ? part.row + line - part.line : part.row;
  }

  /** Lines of a step: [first, last]; undefined when it wrote none. */
  linesOf(step) {
    const own = this.runs.filter((run) => run[0] === step);
    return own.length ? [own[0][1], Math.max(own[0][1], own.at(-1)[2] - 1)] : undefined;
  }
}

/** The last of a sorted list for which `holds`. */
function last(list, holds) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(list[middle])) low = middle + 1;
    else high = middle;
  }
  return list[low - 1];
}
