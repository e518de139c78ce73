"""The loop that handles stored deliveries, oldest first.

Deliveries of a hook that took much time lately come after those of other hooks.

Several servers on one database each run one: a delivery is claimed by one of them. A delivery that
needs an answer of a Git server or a forge is handled in a separate thread (`SlowDeliveries`). So a
slow repository delays only its own deliveries. Each host gets a limited share of these threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from buildrunner.errors import StoreError
from buildrunner.server.context import ServerContext
from buildrunner.server.events.debts import Debts
from buildrunner.server.events.facts import MustAsk, NotNow
from buildrunner.server.events.handling import DeliveryHandler, tried_again_at
from buildrunner.server.loop import Loop
from buildrunner.store.model.deliveries import HANDLED, StoredDelivery

# Short, since the next server waits for it. A slower server loses its claim, which is harmless.
_LEASE_S = 15.0
_HELD_EVERY_S = 5.0
_LAST_S = 5.0
_POLL_S = 1.0
_MOST_ATTEMPTS = 5
_AT_ONCE = 20
_SAVED_AFTER_S = 0.2
_DEBTOR_S = 0.5
_TICK_S = 60.0
_PAUSE_RATIO = 2.0
_MOST_PAUSE_S = 0.1

_log = logging.getLogger("buildrunner.server")


class DeliveryLoop:
    """Handles deliveries in a separate thread, until it is stopped.

    Args:
        context: the server's context.
        handler: handles a delivery.
        pause: waits for the given seconds. None: a wait that `stop` ends early.
        seconds: returns monotonic seconds.
    """

    def __init__(
        self,
        context: ServerContext,
        handler: DeliveryHandler,
        pause: Callable[[float], object] | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._handler = handler
        self._loop = Loop("deliveries", self._turn, _POLL_S)
        self._pause = pause or self._loop.pause
        self._slow = SlowDeliveries(self._handle_slowly)
        self._held = time.monotonic()
        self._seconds = seconds
        self._debts = Debts(seconds)

    def start(self) -> None:
        """Start with the deliveries that an earlier server left."""
        self._loop.start()

    def wake(self) -> None:
        """Check for new deliveries now. Cheap, from any thread."""
        self._loop.wake()

    def stop(self) -> None:
        """Finish the current delivery, and end. Idempotent.

        Deliveries that wait for an answer of a forge are left to the next server.
        """
        self._loop.end()
        self._handler.stop()
        self._loop.stop(_TICK_S)
        for number in self._slow.stop():
            self._release(number)
        self._slow.wait_until_idle(_LAST_S)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait for deliveries in other threads. Returns False if not all are handled in time."""
        return self._slow.wait_until_idle(timeout_s)

    def _turn(self) -> float | None:
        return 0.0 if self.turn() else None

    def turn(self) -> bool:
        """Handle some deliveries. Returns whether there were any.

        Raises:
            StoreError: the database does not answer. The deliveries are handled again.
        """
        store, now = self._context.store, self._context.clock()
        self._hold(now)
        claimed = self._claimed(now)
        begun = time.monotonic()
        spent_s: dict[str, float] = {}  # by debtor
        handled: list[tuple[StoredDelivery, dict[str, object]]] = []
        slow_lanes: set[str] = set()
        left: list[StoredDelivery] = []
        for delivery in claimed:
            debtor = _debtor(delivery)
            if delivery.lane in slow_lanes or spent_s.get(debtor, 0.0) > _DEBTOR_S:
                left.append(delivery)
                continue
            began_s = self._seconds()
            try:
                handled.append((delivery, self._outcome(delivery, may_ask=False)))
            except MustAsk as requested:
                self._slow.add(delivery.number, requested.place, requested.project)
                slow_lanes |= {delivery.lane} - {""}
            except StoreError as error:
                if not error.is_refusal:
                    self._keep(handled)
                    # None of them has had its turn.
                    store.deliveries.release([*left, *claimed[claimed.index(delivery) :]])
                    raise
                # The delivery's own fault: it is handled again, a few times, and delays no other.
                _log.warning("delivery %s can't be handled now: %s", delivery.number, error)
                slow_lanes |= {delivery.lane} - {""}
            finally:
                took_s = self._seconds() - began_s
                spent_s[debtor] = spent_s.get(debtor, 0.0) + took_s
                self._debts.add(debtor, took_s)
            if self._loop.was_woken():  # a forge waits for the answer to others
                self._pause(min(took_s * _PAUSE_RATIO, _MOST_PAUSE_S))
            # A delivery was slow: store the outcomes so far without further delay.
            if time.monotonic() - begun > _SAVED_AFTER_S:
                self._keep(handled)
                handled, begun = [], time.monotonic()
        self._keep(handled)
        if left:
            store.deliveries.release(left)
        return bool(claimed)

    def _claimed(self, now: datetime) -> list[StoredDelivery]:
        """Claim deliveries of debtors with little debt, or, if there are none, of all."""
        claim = partial(
            self._context.store.deliveries.claim, now=now, lease_s=_LEASE_S, limit=_AT_ONCE
        )
        indebted = self._debts.large()
        return (indebted and claim(but=indebted)) or claim()

    def _hold(self, now: datetime) -> None:
        """Extend the claims of deliveries that other threads handle."""
        if time.monotonic() - self._held < _HELD_EVERY_S:
            return
        self._held = time.monotonic()
        numbers = self._slow.numbers()
        if numbers:
            self._context.store.deliveries.hold(numbers, now=now, lease_s=_LEASE_S)

    def _keep(self, handled: list[tuple[StoredDelivery, dict[str, object]]]) -> None:
        """Store the outcomes of deliveries."""
        finished = [one for one in handled if tried_again_at(one[1]) is None]
        try:
            if finished:
                self._context.store.deliveries.finish(finished)
        except Exception as error:
            if isinstance(error, StoreError) and not error.is_refusal:
                raise
            for one in finished:
                self._keep_one(*one)
        for delivery, outcome in handled:
            at = tried_again_at(outcome)
            if at is not None:
                self._context.store.deliveries.postpone(delivery, outcome, until=at)

    def _keep_one(self, delivery: StoredDelivery, outcome: dict[str, object]) -> None:
        """Store the outcome of a delivery, or the error if that fails."""
        store = self._context.store
        try:
            store.deliveries.finish([(delivery, outcome)])
        except Exception as error:
            if isinstance(error, StoreError) and not error.is_refusal:
                raise
            _log.exception("what came of delivery %s can't be kept", delivery.number)
            store.deliveries.finish([(delivery, _internal(error))])

    def _handle_slowly(self, number: int) -> None:
        """Handle a delivery that needs a request to another host; called in a separate thread."""
        try:
            delivery = self._context.store.deliveries.get(number)
            if delivery.status != HANDLED:
                self._keep([(delivery, self._outcome(delivery, may_ask=True))])
        except NotNow:
            self._release(number)
        except StoreError as error:
            _log.warning("delivery %s waits for the database: %s", number, error)
        except Exception:  # noqa: BLE001  (it is handled again, a few times)
            _log.exception("delivery %s can't be handled", number)
        self._loop.wake()  # the next delivery in its lane is free

    def _release(self, number: int) -> None:
        """Release the claim of a delivery, so that the next server handles it at once."""
        store = self._context.store
        try:
            store.deliveries.release([store.deliveries.get(number)])
        except StoreError as error:  # then the delivery is free when its claim expires
            _log.warning("delivery %s can't be given back: %s", number, error)

    def _outcome(self, delivery: StoredDelivery, *, may_ask: bool) -> dict[str, object]:
        if delivery.attempts > _MOST_ATTEMPTS:
            return {"error": f"given up after {_MOST_ATTEMPTS} attempts: see the server's log"}
        try:
            return self._handler.handle(delivery, may_ask=may_ask)
        except (StoreError, NotNow):
            raise
        except Exception as error:  # noqa: BLE001  (one bad delivery must not stop the others)
            _log.exception("delivery %s can't be handled", delivery.number)
            return _internal(error)


def _debtor(delivery: StoredDelivery) -> str:
    """Return the beginning of the lane: the hook, with the project of what `reconcile` found."""
    return delivery.lane.partition(" ")[0] or delivery.hook


def _internal(error: Exception) -> dict[str, object]:
    return {"error": f"internal error, see the server's log: {type(error).__name__}"}


MOST: Final = 16
MOST_OF_A_HOST: Final = 4
MOST_OF_A_PROJECT: Final = 8


class SlowDeliveries:
    """Handles each slow delivery in a separate thread, up to a limit. Thread-safe.

    Args:
        handle: handles the delivery of a number, and stores the outcome. Raises nothing.
    """

    def __init__(self, handle: Callable[[int], None]) -> None:
        self._handle = handle
        self._changed = threading.Condition()
        self._lined_up: dict[int, tuple[str, str]] = {}  # number: host, project
        self._under_way: dict[int, tuple[str, str]] = {}
        self._stopping = False

    def add(self, number: int, place: str, project: str) -> None:
        """Queue a delivery.

        No host and no project gets all threads: a project can make triggers for many slow hosts.

        Args:
            number: number of a claimed delivery.
            place: the address or host of the first request.
            project: the project whose trigger needs the answer.
        """
        with self._changed:
            if number not in self._under_way:
                self._lined_up[number] = (urlsplit(place).hostname or place, project)
            self._begin()

    def numbers(self) -> list[int]:
        """Return the numbers of all pending deliveries."""
        with self._changed:
            return [*self._under_way, *self._lined_up]

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until all are handled. Returns False if they are not handled in time."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._under_way or self._lined_up:
                if not self._changed.wait(end - time.monotonic()):
                    return False
        return True

    def stop(self) -> list[int]:
        """Start no more deliveries. Returns the numbers of those not started. Idempotent."""
        with self._changed:
            self._stopping = True
            left = sorted(self._lined_up)
            self._lined_up.clear()
            self._changed.notify_all()
        return left

    def _begin(self) -> None:
        """Start as many as permitted, oldest first. The caller holds the lock."""
        hosts = Counter(host for host, _ in self._under_way.values())
        projects = Counter(project for _, project in self._under_way.values())
        for number, (host, project) in sorted(self._lined_up.items()):
            if self._stopping or len(self._under_way) >= MOST:
                return
            if hosts[host] >= MOST_OF_A_HOST or projects[project] >= MOST_OF_A_PROJECT:
                continue
            hosts[host] += 1
            projects[project] += 1
            del self._lined_up[number]
            self._under_way[number] = (host, project)
            name = f"delivery-{number}"
            threading.Thread(target=self._run, args=(number,), name=name, daemon=True).start()

    def _run(self, number: int) -> None:
        try:
            self._handle(number)
        finally:
            with self._changed:
                del self._under_way[number]
                self._begin()
                self._changed.notify_all()
