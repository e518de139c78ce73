// How one line of a log is drawn. Text of the log is set as text, never as anything else.

import { pieces } from "./ansi.js";
import { element } from "./virtual_list.js";

const GAP_S = 5; // a pause of so many seconds before a line is shown

/** The row that stands for the lines of a step that is folded. */
export function drawFold({ line, lines, step }) {
  const shown = element("div", "row fold");
  shown.append(element("span", "n", "▸"));
  const name = step < 0 ? "the build itself" : `step #${step}`;
  const button = element("button", "link", `${name}: ${lines.toLocaleString("en")} lines folded`);
  button.type = "button";
  button.dataset.unfold = step;
  shown.dataset.line = line;
  shown.append(button);
  return shown;
}

export function drawTime(line) {
  const shown = element("time", "t", new Date(line.at).toTimeString().slice(0, 8));
  shown.dateTime = shown.title = line.at;
  return shown;
}

/** The pause between two lines; null when it was none, or the line before is not known. */
export function drawGap(before, line) {
  if (!before) return null;
  const pause = Math.round((new Date(line.at) - new Date(before.at)) / 1000);
  if (pause < GAP_S) return null;
  const told = pause < 60 ? `${pause} s` : `${Math.floor(pause / 60)} min ${pause % 60} s`;
  const shown = element("span", "gap", `+${told}`);
  shown.title = `nothing for ${told} before this line`;
  return shown;
}

/** The text with its colours, of which `limit` pieces at most; of a line that is cut, a link to all. */
export function drawText(line, api, limit) {
  const text = element("span", "x");
  text.dir = "ltr";
  for (const piece of pieces(line.text, limit)) {
    if (!piece.names && !piece.fg && !piece.bg) {
      text.append(piece.text); // a text node
      continue;
    }
    const coloured = element("span", piece.names, piece.text);
    if (piece.fg) coloured.style.color = piece.fg;
    if (piece.bg) coloured.style.backgroundColor = piece.bg;
    text.append(coloured);
  }
  if (line.bytes) {
    const more = element("a", "more", `… ${line.bytes.toLocaleString("en")} bytes`);
    more.href = `${api}/log?offset=${line.offset}&limit=${line.bytes}`;
    text.append(" ", more);
  }
  return text;
}
