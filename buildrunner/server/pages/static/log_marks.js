// Marks what a search finds, without touching the rows: ranges that the style sheet colours.

const MOST = 50; // marks in one line

/** Mark a pattern (null: nothing) in the lines that have a match; older browsers mark rows only. */
export function markMatches(box, pattern) {
  if (!window.Highlight) return;
  const ranges = [];
  if (pattern) {
    for (const text of box.querySelectorAll(".hit .x")) ranges.push(...rangesOf(text, pattern));
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

/** Where a pattern is found in the text nodes below an element. */
function rangesOf(root, pattern) {
  const ranges = [];
  const nodes = [];
  let text = "";
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    nodes.push([text.length, node]);
    text += node.data;
  }
  const place = (offset) => {
    const [begin, node] = nodes.findLast(([start]) => start <= offset);
    return [node, Math.min(offset - begin, node.length)];
  };
  for (const match of text.matchAll(pattern)) {
    if (!match[0] || ranges.length >= MOST) continue;
    const range = new Range();
    range.setStart(...place(match.index));
    range.setEnd(...place(match.index + match[0].length));
    ranges.push(range);
  }
  return ranges;
}
