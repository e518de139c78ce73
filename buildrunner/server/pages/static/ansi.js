// A line of a log as a terminal would show it: what steers the terminal goes, colours stay.
// What comes out is data; whoever draws it must set text by textContent and nothing else.

const PREFIX = /^Step #\d+(?: - "[^"\n]*")?: /;
// Colours (SGR); any other control sequence; OSC, DCS and the like; short escapes; control characters.
const TOKENS = new RegExp(
  "\\x1b\\[([0-9;:]*)m" +
    "|(?:\\x1b\\[|\\x9b)[0-?]*[ -/]*[@-~]?" +
    "|\\x1b[\\]PX^_][^\\x07\\x1b]*(?:\\x07|\\x1b\\\\)?" +
    "|\\x1b[ -/]*[0-~]?" +
    "|[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f]+" +
    "|([\\u200e\\u200f\\u061c\\u202a-\\u202e\\u2066-\\u2069])",
  "g",
);
// Back to the beginning of the line: carriage return, or a cursor move to column 1.
const RESTART = /\r|\x1b\[[01]?G/;

/** What is left of a line in which a progress bar was drawn over and over again. */
export function collapse(line) {
  const whole = line.replace(/\r+$/, "");
  if (!RESTART.test(whole)) return whole;
  const prefix = PREFIX.exec(whole)?.[0] ?? "";
  const drawn = whole.slice(prefix.length).split(RESTART);
  while (drawn.length > 1 && !drawn.at(-1).replace(TOKENS, "").trim()) drawn.pop();
  return prefix + drawn.at(-1);
}

/** The text of a line, without colours. */
export function plain(line) {
  return collapse(line).replace(TOKENS, "");
}

/**
 * The pieces of a line: [{text, names, fg, bg}]. `names` are classes (bold, underline, fg-1, ...);
 * `fg` and `bg` are CSS colours outside the 16 of the style sheet, or null.
 */
export function pieces(line, limit = Infinity) {
  const shown = collapse(line);
  const found = [];
  let look = plainLook();
  let at = 0;
  const add = (text, extra) => {
    if (!text) return;
    if (found.length >= limit) found.at(-1).text += text;
    else found.push({ text, ...named(look, extra) });
  };
  for (const token of shown.matchAll(TOKENS)) {
    add(shown.slice(at, token.index));
    at = token.index + token[0].length;
    if (token[1] !== undefined) look = changed(look, token[1]);
    // Characters that turn the direction of text could make a line say what it does not.
    else if (token[2]) add(`⟨U+${token[2].codePointAt(0).toString(16).toUpperCase()}⟩`, "control");
  }
  add(shown.slice(at));
  return found;
}

function plainLook() {
  return { bold: false, dim: false, italic: false, underline: false, strike: false, inverse: false, fg: null, bg: null };
}

function named(look, extra) {
  const names = ["bold", "dim", "italic", "underline", "strike"].filter((name) => look[name]);
  if (extra) names.push(extra);
  let { fg, bg } = look;
  if (look.inverse) [fg, bg] = [bg ?? "page", fg ?? "text"];
  const free = { fg: null, bg: null };
  for (const [kind, colour] of [["fg", fg], ["bg", bg]]) {
    if (colour === null) continue;
    if (typeof colour === "string" && colour.startsWith("rgb")) free[kind] = colour;
    else names.push(`${kind}-${colour}`);
  }
  return { names: names.join(" "), ...free };
}

function changed(before, parameters) {
  let look = { ...before };
  const codes = parameters.split(/[;:]/).map((text) => Number(text || 0));
  for (let at = 0; at < codes.length; at++) {
    const code = codes[at];
    if (code === 0) look = plainLook();
    else if (code === 1) look.bold = true;
    else if (code === 2) look.dim = true;
    else if (code === 3) look.italic = true;
    else if (code === 4) look.underline = true;
    else if (code === 7) look.inverse = true;
    else if (code === 9) look.strike = true;
    else if (code === 22) look.bold = look.dim = false;
    else if (code === 23) look.italic = false;
    else if (code === 24) look.underline = false;
    else if (code === 27) look.inverse = false;
    else if (code === 29) look.strike = false;
    else if (code === 39) look.fg = null;
    else if (code === 49) look.bg = null;
    else if (code === 38 || code === 48) {
      const [colour, used] = wideColour(codes.slice(at + 1));
      if (colour !== null) look[code === 38 ? "fg" : "bg"] = colour;
      at += used;
    } else if (code >= 30 && code <= 37) look.fg = code - 30;
    else if (code >= 40 && code <= 47) look.bg = code - 40;
    else if (code >= 90 && code <= 97) look.fg = code - 82;
    else if (code >= 100 && code <= 107) look.bg = code - 92;
  }
  return look;
}

/** The colour behind 38 or 48, and how many parameters tell it. */
function wideColour([kind, ...rest]) {
  const byte = (value) => Math.max(0, Math.min(255, value || 0));
  if (kind === 5) return [paletteColour(byte(rest[0])), 2];
  if (kind === 2) return [`rgb(${byte(rest[0])}, ${byte(rest[1])}, ${byte(rest[2])})`, 4];
  return [null, 1];
}

/** Of xterm's 256 colours: 16 by number, a cube of 6x6x6, 24 greys. */
function paletteColour(index) {
  if (index < 16) return index;
  if (index >= 232) {
    const grey = 8 + 10 * (index - 232);
    return `rgb(${grey}, ${grey}, ${grey})`;
  }
  const level = (value) => (value ? 55 + 40 * value : 0);
  const cube = index - 16;
  return `rgb(${level(Math.floor(cube / 36))}, ${level(Math.floor(cube / 6) % 6)}, ${level(cube % 6)})`;
}
