"""The time that the triggers of each project took lately. No project may delay others for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

MOST_S: Final = 2.0
"""The debt up to which the triggers of a project are asked together with those of others."""
_LONGEST_S: Final = 5.0
_PAID_BACK: Final = 0.05
_MOST_PROJECTS: Final = 10_000


class Debts:
    """The time that projects took, less a twentieth of the time that has passed. Thread-safe.

    Only the passing of time lowers a debt: events that cost nothing do not.

    Args:
        seconds: returns monotonic seconds.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}  # when the debt of a project is paid back

    def of(self, project: str) -> float:
        """Return the debt of a project in seconds, five at most."""
        with self._lock:
            return self._of(project)

    def add(self, project: str, spent_s: float) -> None:
        """Add time that the triggers of a project took until now."""
        with self._lock:
            debt = min(self._of(project) + max(spent_s, 0.0), _LONGEST_S)
            self._ends.pop(project, None)
            self._ends[project] = self._seconds() + debt / _PAID_BACK
            if len(self._ends) > _MOST_PROJECTS:
                del self._ends[next(iter(self._ends))]

    def _of(self, project: str) -> float:
        return max(self._ends.get(project, 0.0) - self._seconds(), 0.0) * _PAID_BACK
