"""The loop that handles stored deliveries, one after the other, oldest first.

Several servers on one database each run one: a delivery is claimed by one of them.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from buildrunner.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.server.context import ServerContext
    from buildrunner.server.delivery_handling import DeliveryHandler
    from buildrunner.store.delivery_store import StoredDelivery

# Short: the next server waits for it. Who is slower is overtaken, which harms nothing.
_LEASE_S = 15.0
_POLL_S = 1.0
_PAUSE_S = 2.0
_MOST_ATTEMPTS = 5
_AT_ONCE = 20
_TOLD_AFTER_S = 0.2
_TICK_S = 60.0
_PAUSE_RATIO = 2.0
_MOST_PAUSE_S = 0.1

_log = logging.getLogger("buildrunner.server")


class DeliveryLoop:
    """Handles deliveries in a thread of its own, until it is stopped.

    Args:
        context: the server's.
        handler: handles one.
        pause: waits so many seconds; None: until then, or until `stop`.
    """

    def __init__(
        self,
        context: ServerContext,
        handler: DeliveryHandler,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._context = context
        self._handler = handler
        self._news = threading.Event()
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait
        self._thread = threading.Thread(target=self._run, name="deliveries", daemon=True)

    def start(self) -> None:
        """Begin with what an earlier server left."""
        self._thread.start()

    def wake(self) -> None:
        """There may be a new delivery. Cheap, from any thread."""
        self._news.set()

    def stop(self) -> None:
        """Finish the delivery at hand, and end. Idempotent."""
        self._stop.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_TICK_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            try:
                while not self._stop.is_set() and self.turn():
                    pass
            except StoreError as error:
                _log.warning("deliveries wait for the database: %s", error)
                self._stop.wait(_PAUSE_S)
            self._news.wait(_POLL_S)

    def turn(self) -> bool:
        """Handle some deliveries; whether there were any.

        Raises:
            StoreError: the database fails. They are handled again when the claim is over.
        """
        store, now = self._context.store, self._context.clock()
        claimed = store.claim_deliveries(now=now, lease_s=_LEASE_S, limit=_AT_ONCE)
        begun = time.monotonic()
        handled = []
        for delivery in claimed:
            handled.append((delivery, self._handled(delivery)))
            if time.monotonic() - begun > _TOLD_AFTER_S:  # one was slow: don't hold up what is told
                store.finish_deliveries(handled)
                handled, begun = [], time.monotonic()
        if handled:
            store.finish_deliveries(handled)
        return bool(claimed)

    def _handled(self, delivery: StoredDelivery) -> dict[str, object]:
        """Handle one. While others arrive they come first: a forge waits for its answer."""
        begun = time.monotonic()
        outcome = self._outcome(delivery)
        if self._news.is_set():
            self._news.clear()  # whoever arrived is claimed by the next turn
            self._pause(min((time.monotonic() - begun) * _PAUSE_RATIO, _MOST_PAUSE_S))
        return outcome

    def _outcome(self, delivery: StoredDelivery) -> dict[str, object]:
        if delivery.attempts > _MOST_ATTEMPTS:
            return {"error": f"given up after {_MOST_ATTEMPTS} attempts: see the server's log"}
        try:
            return self._handler.handle(delivery)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  (one bad delivery must not stop the others)
            _log.exception("delivery %s can't be handled", delivery.number)
            return {"error": f"internal error, see the server's log: {type(error).__name__}"}
