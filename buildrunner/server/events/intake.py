"""Stores deliveries as they arrive: genuine ones many at a time, refused ones sparingly.

Deliveries that arrive while others are written are stored together, with one write to the disk.

The first refusal of a hook for a source address is stored at once, so that an admin sees a wrong
secret while setting up a forge. Repeats are counted in memory, and the count is stored once a
minute. The store keeps the newest records only; see `Deliveries.refuse`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeAlias

from starlette.concurrency import run_in_threadpool

from buildrunner.errors import StoreError
from buildrunner.store.model.deliveries import NewDelivery, StoredDelivery
from buildrunner.store.sql.store import ServerStore

_MOST_AT_ONCE = 200


class DeliveryIntake:
    """Keeps deliveries. Used in one event loop.

    While some are written, all others that come line up, and are written together next.

    Args:
        store: where they are kept.
        clock: the time.
    """

    def __init__(self, store: ServerStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._line: list[tuple[NewDelivery, asyncio.Future[tuple[StoredDelivery, bool]]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, new: NewDelivery) -> tuple[StoredDelivery, bool]:
        """Keep one; when this returns it is durable. See `ServerStore.add_deliveries`.

        Raises:
            StoreError: it is not kept.
        """
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[tuple[StoredDelivery, bool]] = loop.create_future()
        self._line.append((new, kept))
        if self._writer is None:
            self._writer = loop.create_task(self._write_all())
        return await kept

    async def _write_all(self) -> None:
        try:
            while self._line:
                batch, self._line = self._line[:_MOST_AT_ONCE], self._line[_MOST_AT_ONCE:]
                try:
                    found = await run_in_threadpool(self._write, [new for new, _ in batch])
                except Exception as error:  # noqa: BLE001  (each sender is told of it)
                    for _, kept in batch:
                        if not kept.done():  # whoever sent it hung up
                            kept.set_exception(error)
                else:
                    for (_, kept), one in zip(batch, found, strict=True):
                        if not kept.done():
                            kept.set_result(one)
        finally:
            self._writer = None

    def _write(self, new: list[NewDelivery]) -> list[tuple[StoredDelivery, bool]]:
        return self._store.deliveries.add(new, now=self._clock())


_log = logging.getLogger("buildrunner.server")

PERIOD_S: Final = 60.0
MOST_OF_AN_ADDRESS: Final = 5
MOST: Final = 60

_Kind: TypeAlias = tuple[str, str, str]  # hook, address, reason


class Refusals:
    """Records refusals of one server. For use in one event loop.

    Args:
        store: keeps the records.
        clock: the time.
        period_s: seconds over which repeats are counted.
    """

    def __init__(
        self,
        store: ServerStore,
        clock: Callable[[], datetime],
        period_s: float = PERIOD_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._period_s = period_s
        self._period: _Period | None = None

    async def record(self, refused: NewDelivery, reason: str) -> None:
        """Record a post that was refused, within the bounds of the module.

        Raises:
            StoreError: the first refusal of its kind can't be stored.
        """
        if self._period is None:
            self._period = _Period()
            asyncio.get_running_loop().call_later(self._period_s, self._end, self._period)
        period = self._period
        kind = (refused.hook, refused.address, reason)
        if not period.begins(kind):
            return
        where = refused.address
        _log.warning("hook %s refuses a delivery from %s: %s", refused.hook, where, reason)
        period.numbers[kind] = await run_in_threadpool(
            self._store.deliveries.refuse, refused, reason, now=self._clock()
        )

    def _end(self, period: _Period) -> None:
        self._period = None
        if period.unrecorded:
            _log.warning("hooks refused %d more deliveries", period.unrecorded)
        repeats = period.repeats()
        if repeats:
            asyncio.get_running_loop().run_in_executor(None, self._count, repeats)

    def _count(self, repeats: dict[int, int]) -> None:
        try:
            self._store.deliveries.count_refusals(repeats)
        except StoreError as error:
            _log.warning("refused deliveries are not counted: %s", error)


class _Period:
    """The refusals of one period.

    Attributes:
        counts: how often each kind of refusal happened.
        numbers: the records in the store, by kind of refusal.
        unrecorded: refusals beyond the bounds.
    """

    def __init__(self) -> None:
        self.counts: Counter[_Kind] = Counter()
        self.numbers: dict[_Kind, int] = {}
        self.unrecorded = 0
        self._of_address: Counter[str] = Counter()

    def begins(self, kind: _Kind) -> bool:
        """Count a refusal; return whether it is the first of its kind and to be stored."""
        if kind in self.counts:
            self.counts[kind] += 1
            return False
        address = kind[1]
        if self._of_address.total() >= MOST or self._of_address[address] >= MOST_OF_AN_ADDRESS:
            self.unrecorded += 1
            return False
        self._of_address[address] += 1
        self.counts[kind] = 1
        return True

    def repeats(self) -> dict[int, int]:
        """How often each record was repeated."""
        found = {number: self.counts[kind] - 1 for kind, number in self.numbers.items()}
        return {number: count for number, count in found.items() if count}
