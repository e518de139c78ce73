// A stream of server-sent events that comes back by itself, and says so when it is away.
//
// Browsers give all tabs that look at one server six connections (HTTP/1.1), and a page that gets
// none stays blank: only a page in sight keeps one, the others look now and then.

const FIRST_MS = 1000;
const LONGEST_MS = 15_000;
const OUT_OF_SIGHT_MS = 10_000;

/**
 * @param address (last event id, or "") -> URL
 * @param handlers by name of the event: (data, id) => void; "again" when something may have been
 *   missed: after a break, and now and then while the page is out of sight
 * @returns function that ends it
 */
export function openStream(address, handlers) {
  let lastId = "";
  let source;
  let timer;
  let wait = FIRST_MS;
  let wasAway = false;
  let ended = false;

  function close() {
    ended = true;
    clearTimeout(timer);
    source?.close();
    tell("");
  }

  function connect() {
    source = new EventSource(address(lastId));
    source.onopen = () => {
      wait = FIRST_MS;
      tell("");
      if (wasAway) handlers.again?.();
      wasAway = false;
    };
    source.onerror = () => {
      if (ended) return;
      wasAway = true;
      tell("connection lost, trying again");
      // Browsers come back by themselves only while the server answers 200.
      if (source.readyState === EventSource.CLOSED) {
        timer = setTimeout(connect, wait);
        wait = Math.min(LONGEST_MS, wait * 1.5);
      }
    };
    for (const [name, handle] of Object.entries(handlers)) {
      if (name === "again") continue;
      source.addEventListener(name, (event) => {
        lastId = event.lastEventId || lastId;
        handle(JSON.parse(event.data), event.lastEventId);
        if (name === "end") close();
      });
    }
  }

  function lookLater() {
    timer = setTimeout(() => {
      handlers.again?.();
      if (document.body.dataset.over !== "true") lookLater();
    }, OUT_OF_SIGHT_MS);
  }

  function begin() {
    if (ended) return;
    clearTimeout(timer);
    source?.close();
    if (document.visibilityState === "visible") {
      connect();
    } else {
      wasAway = true;
      lookLater();
    }
  }

  begin();
  document.addEventListener("visibilitychange", begin);
  // Who leaves the page does not lose the connection.
  window.addEventListener("pagehide", () => {
    ended = true;
    clearTimeout(timer);
    source?.close();
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });
  return close;
}

/** Say something about the connection, to readers of screens too; "" takes it back. */
export function tell(text) {
  let place = document.getElementById("connection");
  if (!place) {
    place = document.createElement("p");
    place.id = "connection";
    place.setAttribute("role", "status");
    document.body.append(place);
  }
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
}
