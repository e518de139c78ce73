"""Deliveries that somebody must be asked about are handled beside all others.

A repository whose Git server is slow holds up nobody but itself: the store gives out no more
deliveries of it meanwhile. One server has a share of those who wait, and can't take all.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

MOST: Final = 16
MOST_OF_A_HOST: Final = 4


class SlowDeliveries:
    """Handles each in a thread of its own, as many at a time as there may be. Thread-safe.

    Args:
        handle: handles the one of a number, and keeps what came of it. Raises nothing.
    """

    def __init__(self, handle: Callable[[int], None]) -> None:
        self._handle = handle
        self._changed = threading.Condition()
        self._lined_up: dict[int, str] = {}  # number: host
        self._under_way: dict[int, str] = {}
        self._stopping = False

    def add(self, number: int, place: str) -> None:
        """Handle one soon.

        Args:
            number: of a delivery that was claimed.
            place: who must be asked first: an address, or a host.
        """
        with self._changed:
            if number not in self._under_way:
                self._lined_up[number] = urlsplit(place).hostname or place
            self._begin()

    def numbers(self) -> list[int]:
        """All that are not handled yet."""
        with self._changed:
            return [*self._under_way, *self._lined_up]

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until all are handled; whether they are."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._under_way or self._lined_up:
                if not self._changed.wait(end - time.monotonic()):
                    return False
        return True

    def stop(self) -> list[int]:
        """Begin no more; those that were not begun. Idempotent."""
        with self._changed:
            self._stopping = True
            left = sorted(self._lined_up)
            self._lined_up.clear()
            self._changed.notify_all()
        return left

    def _begin(self) -> None:
        """Begin as many as there may be, oldest first; with the lock held."""
        hosts = Counter(self._under_way.values())
        for number, host in sorted(self._lined_up.items()):
            if self._stopping or len(self._under_way) >= MOST:
                return
            if hosts[host] >= MOST_OF_A_HOST:
                continue
            hosts[host] += 1
            del self._lined_up[number]
            self._under_way[number] = host
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
