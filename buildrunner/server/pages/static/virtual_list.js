// A list of any number of rows of one height, of which only those in sight are in the page.
//
// Browsers can't scroll over more than some ten million pixels. Above HIGHEST the scroll bar is
// scaled: a small move scrolls by itself, a large one (the bar is dragged) to the same part of the
// list. `top` is where the view stands in the list; the bar follows it when scrolling rests.

const HIGHEST = 6_000_000;
const AROUND = 12; // rows drawn above and below the view
const REST_MS = 150;

export class VirtualList {
  /**
   * @param box the element that scrolls
   * @param height of a row in pixels
   * @param draw (row number) -> element
   * @param onMove (by whom: "user" or "program") after each move
   */
  constructor(box, height, draw, onMove) {
    Object.assign(this, { box, height, draw, onMove, count: 0, top: 0 });
    this.space = box.appendChild(element("div", "space"));
    this.rows = box.appendChild(element("div", "rows"));
    this.drawn = new Map();
    this.expected = 0; // the scroll position that we set ourselves
    this.seen = 0;
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    // While the bar itself is held, also a small move of it is a way through the whole list.
    box.addEventListener("pointerdown", (event) => {
      this.held = event.target === box && event.clientX - box.getBoundingClientRect().left >= box.clientWidth;
    });
    const letGo = (event) => {
      if (!event.buttons) this.held = false;
    };
    for (const kind of ["pointermove", "pointerup", "wheel", "keydown", "touchstart"]) {
      document.addEventListener(kind, letGo, { passive: true });
    }
    new ResizeObserver(() => this.paint()).observe(box);
  }

  get whole() {
    return this.count * this.height;
  }

  get view() {
    return this.box.clientHeight;
  }

  get first() {
    return Math.floor(this.top / this.height);
  }

  /** Number of the last row in sight. */
  get last() {
    return Math.min(this.count - 1, Math.ceil((this.top + this.view) / this.height) - 1);
  }

  /** How many rows may be drawn at a time. */
  get most() {
    return Math.ceil(this.view / this.height) + 2 * AROUND + 1;
  }

  get isAtEnd() {
    return this.top >= this.end - this.height;
  }

  get end() {
    return Math.max(0, this.whole - this.view);
  }

  setCount(count) {
    if (count === this.count) return;
    this.count = count;
    this.space.style.height = `${Math.min(this.whole, HIGHEST)}px`;
    this.top = Math.min(this.top, this.end);
    this.align();
    this.paint();
  }

  /** Bring a row into sight: its place in the view is 0 (top) to 1 (bottom). */
  show(row, place = 0.5) {
    this.top = clamp(row * this.height - place * (this.view - this.height), 0, this.end);
    this.align();
    this.paint();
    this.onMove("program");
  }

  moveBy(pixels) {
    this.top = clamp(this.top + pixels, 0, this.end);
    this.align();
    this.paint();
    this.onMove("user");
  }

  /** Draw rows anew: all, or those for which `isStale(row)`. */
  refresh(isStale = () => true) {
    for (const [row, shown] of this.drawn) {
      if (isStale(row)) {
        shown.remove();
        this.drawn.delete(row);
      }
    }
    this.paint();
  }

  scrolled() {
    const at = this.box.scrollTop;
    if (Math.abs(at - this.expected) < 1) {
      this.seen = at;
      return;
    }
    const moved = at - this.seen;
    this.seen = at;
    this.expected = NaN;
    const scale = this.scale;
    if (scale === 1 || this.held || Math.abs(moved) > 2 * this.view) this.top = at * scale;
    else this.top += moved;
    this.top = clamp(this.top, 0, this.end);
    this.paint();
    this.onMove("user");
    clearTimeout(this.resting);
    if (scale !== 1 && !this.held) this.resting = setTimeout(() => (this.align(), this.paint()), REST_MS);
  }

  get scale() {
    if (this.whole <= HIGHEST) return 1;
    return this.end / (HIGHEST - this.view);
  }

  /** Let the scroll bar stand where `top` is. */
  align() {
    this.box.scrollTop = Math.round(this.top / this.scale);
    this.expected = this.seen = this.box.scrollTop;
  }

  paint() {
    const from = Math.max(0, this.first - AROUND);
    const until = Math.min(this.count, Math.ceil((this.top + this.view) / this.height) + AROUND);
    for (const [row, shown] of this.drawn) {
      if (row < from || row >= until) {
        shown.remove();
        this.drawn.delete(row);
      }
    }
    // Rows that stay are left alone: what is selected in them stays selected.
    let next = this.rows.firstChild;
    for (let row = from; row < until; row++) {
      const shown = this.drawn.get(row);
      if (shown) {
        next = shown.nextSibling;
        continue;
      }
      const made = this.draw(row);
      this.drawn.set(row, made);
      this.rows.insertBefore(made, next);
    }
    const offset = from * this.height - this.top + this.box.scrollTop;
    this.rows.style.transform = `translateY(${offset}px)`;
  }
}

export function element(name, classes = "", text = "") {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  return made;
}

function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}
