"""The time that each project's triggers, or each hook's deliveries, took lately.

No project and no hook may delay others for long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

MOST_S: Final = 2.0
"""The debt up to which a project or hook has its turn together with others."""
_LONGEST_S: Final = 5.0
_PAID_BACK: Final = 0.05
_MOST_DEBTORS: Final = 10_000


class Debts:
    """The time that projects or hooks took, less a twentieth of the time passed. Thread-safe.

    Only the passing of time lowers a debt: events that cost nothing do not.

    Args:
        seconds: returns monotonic seconds.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}  # when a debt is paid back

    def of(self, debtor: str) -> float:
        """Return the debt of a project or hook in seconds, five at most."""
        with self._lock:
            return self._of(debtor)

    def large(self) -> set[str]:
        """Return those with a debt of more than `MOST_S`."""
        with self._lock:
            return {debtor for debtor in self._ends if self._of(debtor) > MOST_S}

    def add(self, debtor: str, spent_s: float) -> None:
        """Add time that the triggers of a project, or deliveries of a hook, took until now."""
        with self._lock:
            debt = min(self._of(debtor) + max(spent_s, 0.0), _LONGEST_S)
            self._ends.pop(debtor, None)
            self._ends[debtor] = self._seconds() + debt / _PAID_BACK
            if len(self._ends) > _MOST_DEBTORS:
                del self._ends[next(iter(self._ends))]

    def _of(self, debtor: str) -> float:
        return max(self._ends.get(debtor, 0.0) - self._seconds(), 0.0) * _PAID_BACK
