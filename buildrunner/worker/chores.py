"""What a server does from time to time, beside builds: sweeps, retention."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import BuildrunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable  # noqa: TC004  (never decoded)

_log = logging.getLogger(__name__)


class Chore(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do again and again, in a thread: retention, a sweep of the engine.

    Attributes:
        name: for messages.
        every_s: pause between two runs; the first is at the start.
        run: does it.
    """

    name: str
    every_s: float
    run: Callable[[], object]


class Chores:
    """Begins each when it is due, in a thread of its own, never twice at a time.

    `begin_due` is called by one thread.
    """

    def __init__(self, chores: Iterable[Chore]) -> None:
        self._chores = tuple(chores)
        self._due = dict.fromkeys((chore.name for chore in self._chores), 0.0)

    def begin_due(self) -> None:
        """Begin those whose time has come. Returns at once."""
        for chore in self._chores:
            if time.monotonic() < self._due[chore.name]:
                continue
            self._due[chore.name] = float("inf")
            threading.Thread(target=self._do, args=(chore,), name=chore.name, daemon=True).start()

    def _do(self, chore: Chore) -> None:
        try:
            chore.run()
        except BuildrunnerError as error:
            _log.warning("%s: %s", chore.name, error)
        except Exception:  # noqa: BLE001  (nobody is above us who could report it)
            _log.exception("a bug in %s", chore.name)
        finally:
            self._due[chore.name] = time.monotonic() + chore.every_s
