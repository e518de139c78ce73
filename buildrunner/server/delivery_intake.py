"""Many deliveries at once become durable with one write to the disk."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import StoreError
from buildrunner.store.delivery_store import NewDelivery, StoredDelivery

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from buildrunner.store.delivery_store import DeliveryStore

_MOST_AT_ONCE = 200


class _Waiting(msgspec.Struct):
    new: NewDelivery
    kept: tuple[StoredDelivery, bool] | None = None
    error: StoreError | None = None

    @property
    def is_done(self) -> bool:
        return self.kept is not None or self.error is not None


class DeliveryIntake:
    """Keeps deliveries. Thread-safe.

    While one thread writes, all others that come line up; the next one writes for all of them.

    Args:
        store: where they are kept.
        clock: the time.
    """

    def __init__(self, store: DeliveryStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._turn = threading.Condition()
        self._line: list[_Waiting] = []
        self._writing = False

    def add(self, new: NewDelivery) -> tuple[StoredDelivery, bool]:
        """Keep one; when this returns it is durable. See `DeliveryStore.add_deliveries`.

        Raises:
            StoreError: it is not kept.
        """
        mine = _Waiting(new)
        with self._turn:
            self._line.append(mine)
        while not self._is_done(mine):
            self._write()
        if mine.error is not None:
            raise mine.error
        assert mine.kept is not None  # noqa: S101  (it is done)
        return mine.kept

    def _is_done(self, mine: _Waiting) -> bool:
        """Whether somebody has written it; if not, it is our turn to write."""
        with self._turn:
            while not mine.is_done and self._writing:
                self._turn.wait()
            self._writing = self._writing or not mine.is_done
            return mine.is_done

    def _write(self) -> None:
        """Write for those in front of the line; whoever is first then goes on."""
        with self._turn:
            batch, self._line = self._line[:_MOST_AT_ONCE], self._line[_MOST_AT_ONCE:]
        try:
            kept = self._store.add_deliveries([one.new for one in batch], now=self._clock())
        except StoreError as error:
            for one in batch:
                one.error = error
        else:
            for one, found in zip(batch, kept, strict=True):
                one.kept = found
        finally:
            for one in batch:
                if not one.is_done:
                    one.error = StoreError("the delivery could not be kept")
            with self._turn:
                self._writing = False
                self._turn.notify_all()
