"""Keeps places for builds ready before the builds come.

As with `spare_process`: what a build would wait for at its start is done before it comes. A thread
of the server looks at the spare places (`Sandbox.keep_spares`) when it begins, soon after a build
has begun (which had the processor to itself until then), when one has ended, and now and then: the
engine may have been restarted, or have other images.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from buildrunner.errors import BuildrunnerError, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.worker.sandbox import Sandbox

LOOK_S = 10.0
_PAUSE_S = 2.0
_MOST_S = 80.0
_CLOSE_S = 10.0

_log = logging.getLogger(__name__)


class SpareKeeper:
    """See the module. `start` once; every method from any thread.

    Args:
        sandbox: where places are. Not closed.
        count: how many are kept ready; with 0 only what they share is looked after.
        look_s: how often to look when nobody says anything; twice as long after each failure.
        pause_s: how long a build has the processor to itself.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        count: int,
        *,
        look_s: float = LOOK_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._sandbox = sandbox
        self._count = count
        self._look_s = look_s
        self._pause_s = pause_s
        self._trouble = ""
        self._next_s = look_s
        self._begun = False
        self._closed = False
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spare sandboxes", daemon=True)

    def start(self) -> None:
        """Begin: what an earlier server kept goes."""
        self._thread.start()

    def build_began(self) -> None:
        """One may be taken soon."""
        self._begun = True
        self._news.set()

    def build_ended(self) -> None:
        """The machine has time."""
        self._news.set()

    def close(self) -> None:
        """Remove those that no build has. What can't be removed soon, the next server removes."""
        self._closed = True
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        self._try(self._sandbox.drop_spares)
        while not self._closed:
            self._try(lambda: self._sandbox.keep_spares(self._count))
            self._wait(self._next_s)
            if self._begun and not self._closed:
                self._begun = False
                self._wait(self._pause_s)
        self._try(self._sandbox.drop_spares)

    def _wait(self, timeout_s: float) -> None:
        self._news.wait(timeout_s)
        self._news.clear()

    def _try(self, work: Callable[[], None]) -> None:
        """Say what goes wrong once, not at each look."""
        try:
            work()
        except EngineUnavailable:  # no build begins then, and the supervisor says why
            self._next_s = min(self._next_s * 2, _MOST_S)
        except (BuildrunnerError, OSError) as error:  # no engine, or no space
            if str(error) != self._trouble:
                _log.warning("no sandbox is ready ahead of builds: %s", error)
            self._trouble = str(error)
            self._next_s = min(self._next_s * 2, _MOST_S)
        except Exception:  # noqa: BLE001  (builds do without)
            _log.exception("a bug in keeping sandboxes ready")
            self._next_s = _MOST_S
        else:
            self._trouble = ""
            self._next_s = self._look_s
