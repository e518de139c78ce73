"""The phases of a build: when each began and ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from buildrunner.engine.cancellation import Clock
from buildrunner.engine.events import BuildEvent, PhaseFinished, PhaseStarted
from buildrunner.engine.outcome import Span

SETUP = "SETUPBUILD"
FETCH = "FETCHSOURCE"
BUILD = "BUILD"
PUSH = "PUSH"


class Phases:
    """Records spans and tells about them. Setup and fetch overlap: they run at the same time."""

    def __init__(self, clock: Clock, emit: Callable[[BuildEvent], None]) -> None:
        self._clock = clock
        self._emit = emit
        self.spans: dict[str, Span] = {}

    def begin(self, phase: str) -> None:
        """The phase starts now."""
        now = self._clock.now()
        self.spans[phase] = Span(now)
        self._emit(PhaseStarted(at=now, phase=phase))

    def go_on(self, phase: str, since: datetime) -> None:
        """The phase began before, and was told of then."""
        self.spans[phase] = Span(since)

    def end(self, phase: str) -> None:
        """The phase is over; nothing happens when it never began or was over before."""
        span = self.spans.get(phase)
        if span is None or span.end is not None:
            return
        now = self._clock.now()
        self.spans[phase] = Span(span.start, now)
        self._emit(PhaseFinished(at=now, phase=phase))

    def end_all(self) -> None:
        """Whatever still lasts is over."""
        for phase in self.spans:
            self.end(phase)
