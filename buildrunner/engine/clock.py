"""Time and chance as an argument, so that tests own both."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The real time. Tests pass their own."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        return time.monotonic()

    def chance(self) -> float:
        """A random number from 0 to 1, for jitter."""
        import random  # it loads hashlib: only a retry pays for that

        return random.random()  # noqa: S311  (no secret depends on it)
