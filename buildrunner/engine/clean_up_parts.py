"""The parts of cleaning up: each has its turn, whatever goes wrong with the others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from buildrunner.errors import BuildrunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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
