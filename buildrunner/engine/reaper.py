"""Removes what ended steps leave on the engine, when that slows down nobody."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from buildrunner.containers.engine_protocol import ContainerEngine

_QUIET_S = 0.25  # behind a start or an end; a step that takes longer leaves room for removals
_BACKLOG = 32  # ended containers take disk space: more are never kept


class Reaper:
    """Removes ended containers and their volumes in one thread, in quiet moments.

    A removal takes the engine as much work as an eighth of a start, and slows down a start or an
    end that it meets. So it waits until there was neither for a while, unless many are due.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._due: deque[tuple[str, str]] = deque()
        self._news = threading.Condition()
        self._quiet_at = 0.0
        self._finishing = False
        self._thread: threading.Thread | None = None
        self.failures: list[str] = []
        """What could not be removed, and why."""

    def hold_off(self) -> None:
        """A step starts or ends: leave the engine to that, and to what comes next."""
        self._quiet_at = time.monotonic() + _QUIET_S

    def remove(self, container: str, volume: str) -> None:
        """Remove an ended container, then the volume that only it used (either may be empty)."""
        self.hold_off()
        with self._news:
            self._due.append((container, volume))
            self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Remove all that is due now, and wait for it."""
        with self._news:
            self._finishing = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (due := self._next()) is not None:
            container, volume = due
            try:
                if container:
                    self._engine.remove_container(container)
                if volume:
                    self._engine.remove_volume(volume)
            except EngineError as error:
                self.failures.append(str(error))

    def _next(self) -> tuple[str, str] | None:
        """What to remove now; waits for it. None when all is done."""
        with self._news:
            while True:
                left_s = self._quiet_at - time.monotonic()
                if self._due and (self._finishing or left_s <= 0 or len(self._due) > _BACKLOG):
                    return self._due.popleft()
                if self._finishing:
                    return None
                self._news.wait(left_s if self._due else None)
