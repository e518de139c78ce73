"""The parts of cleaning up: each has its turn, whatever goes wrong with the others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import BuildrunnerError, EngineError


class CleanUpParts:
    """Does them, and knows which are under way. Thread-safe.

    Attributes:
        failures: what went wrong, a sentence each.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._under_way: dict[str, None] = {}

    def do(self, what: str, job: Callable[[], object]) -> None:
        """Do one.

        Args:
            what: "removing the volume v", say. No two of the same text at the same time.
            job: what it does.
        """
        self._under_way[what] = None
        try:
            job()
        except BuildrunnerError as error:
            self.failures.append(str(error))
        except Exception as error:  # noqa: BLE001  (a bug in one must not leave the rest behind)
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self._under_way.pop(what, None)

    def do_at_once(self, jobs: Iterable[tuple[str, Callable[[], object]]]) -> None:
        """Do at least one, each in a thread (the last one here), and wait for all."""
        *others, last = jobs
        threads = [threading.Thread(target=self.do, args=job, daemon=True) for job in others]
        for thread in threads:
            thread.start()
        self.do(*last)
        for thread in threads:
            thread.join()

    def under_way(self) -> tuple[str, ...]:
        """What is being done now, a part of a part behind it."""
        return tuple(self._under_way)


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
