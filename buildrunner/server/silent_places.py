"""Who may be asked what a delivery does not tell, and who did not answer lately."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from buildrunner.errors import BuildrunnerError, ServerUnavailable, StoreError
from buildrunner.sources.git_errors import TRANSIENT, GitFailed
from buildrunner.triggers.event_filter import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable

_Answer = TypeVar("_Answer")

_SILENT_S: Final = 60.0
_QUICK_S: Final = 1.0


class NotNow(Exception):
    """Handling a delivery ends here, and begins anew elsewhere or later: no failure."""


class MustAsk(NotNow):
    """Somebody must be asked, or a filter thinks long, and who handles this has not the time.

    Attributes:
        place: who.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class Places(Protocol):
    """Asks somebody.

    Attributes:
        filter_s: how long a trigger's filter may think about an event.
    """

    filter_s: float

    def ask(self, place: str, question: Callable[[], _Answer]) -> _Answer:
        """The answer.

        Args:
            place: who is asked: an address, or a host.
            question: asks.

        Raises:
            BuildrunnerError: there is none; see `may_pass`.
            NotNow: nobody is asked now.
        """
        ...

    def give_up(self, trigger: str) -> None:
        """A trigger's filter is not done in time. Raises `MustAsk` if there may be more of it."""
        ...


class SilentPlaces:
    """Asks, and leaves those alone for a minute who were slow to give no answer. Thread-safe.

    Args:
        now: a clock that never goes back, in seconds.
    """

    filter_s = LONGEST_S

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[str, float] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Whoever is told nothing from now on comes back another time: see `NotNow`."""
        self._stopped.set()

    def check(self, place: str) -> None:
        """Raise `ServerUnavailable` if the place is left alone."""
        if self._now() < self._until.get(place, 0.0):
            raise ServerUnavailable(f"{place} did not answer a moment ago")

    def ask(self, place: str, question: Callable[[], _Answer]) -> _Answer:
        """See `Places.ask`."""
        if self._stopped.is_set():
            raise NotNow
        self.check(place)
        begun = self._now()
        try:
            answer = question()
        except StoreError:
            raise
        except BuildrunnerError as error:
            if self._stopped.is_set():
                raise NotNow from error
            if self._now() - begun > _QUICK_S:  # a quick "no" costs nobody time
                self._until[place] = self._now() + _SILENT_S
            raise
        self._until.pop(place, None)
        return answer

    def give_up(self, trigger: str) -> None:
        """See `Places.give_up`: that was all the time there is."""


class NobodyNow:
    """Asks nobody: for whoever has no time. Thread-safe.

    Args:
        places: who is left alone anyway.
    """

    filter_s = 0.1

    def __init__(self, places: SilentPlaces) -> None:
        self._places = places

    def ask(self, place: str, question: Callable[[], _Answer]) -> _Answer:  # noqa: ARG002
        """See `Places.ask`."""
        self._places.check(place)
        raise MustAsk(place)

    def give_up(self, trigger: str) -> None:
        """See `Places.give_up`."""
        raise MustAsk(f"the filter of {trigger}")


def may_pass(error: BuildrunnerError) -> bool:
    """Whether the same question may be answered later: nobody said no."""
    if isinstance(error, GitFailed):
        return error.kind in TRANSIENT
    return isinstance(error, ServerUnavailable)
