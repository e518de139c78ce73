"""Many deliveries at once become durable with one write to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from starlette.concurrency import run_in_threadpool

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
