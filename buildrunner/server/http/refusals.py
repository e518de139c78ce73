"""Records of refused webhook posts: few, however many posts strangers send.

The first refusal of a hook for a source address is stored at once, so that an admin sees a wrong
secret while setting up a forge. Repeats are counted in memory, and the count is stored once a
minute. The store keeps the newest records only; see `ServerStore.refuse_delivery`.
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
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.store.sql.store import ServerStore

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
