"""Events about the progress of a build: phases and transferred bytes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from buildrunner.engine.cancellation import Clock
from buildrunner.engine.events import BuildEvent, PhaseFinished, PhaseStarted, TransferMoved
from buildrunner.engine.outcome import Span

SETUP = "SETUPBUILD"
FETCH = "FETCHSOURCE"
BUILD = "BUILD"
PUSH = "PUSH"


class Phases:
    """Records and reports the spans of phases. Setup and fetch overlap."""

    def __init__(self, clock: Clock, emit: Callable[[BuildEvent], None]) -> None:
        self._clock = clock
        self._emit = emit
        self.spans: dict[str, Span] = {}

    def begin(self, phase: str) -> None:
        """Begin a phase now."""
        now = self._clock.now()
        self.spans[phase] = Span(now)
        self._emit(PhaseStarted(at=now, phase=phase))

    def resume(self, phase: str, since: datetime) -> None:
        """Continue a phase that an earlier process began and reported."""
        self.spans[phase] = Span(since)

    def end(self, phase: str) -> None:
        """End a phase. Does nothing if it never began or has ended."""
        span = self.spans.get(phase)
        if span is None or span.end is not None:
            return
        now = self._clock.now()
        self.spans[phase] = Span(span.start, now)
        self._emit(PhaseFinished(at=now, phase=phase))

    def end_all(self) -> None:
        """End every running phase."""
        for phase in self.spans:
            self.end(phase)


_REPORT_EVERY_S = 0.1


class FileTransferReport:
    """Implements `FetchReport` and `UploadReport`.

    Args:
        direction: ``fetch`` or ``upload``.
        line: takes lines for the log.
        clock: the time; each file reports at most ten events per second.
        report: takes events, from any thread.
    """

    def __init__(
        self,
        direction: str,
        line: Callable[[str], None],
        clock: Clock,
        report: Callable[[BuildEvent], None],
    ) -> None:
        self._direction = direction
        self._line = line
        self._clock = clock
        self._report = report
        self._next: dict[str, float] = {}

    def line(self, text: str) -> None:
        """See `FetchReport.line`."""
        self._line(text)

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """See `FetchReport.moved`. The end of a transfer of known size is always reported."""
        now = self._clock.monotonic()
        if 0 < total_bytes <= current_bytes:
            self._next.pop(name, None)
        elif now < self._next.get(name, 0.0):
            return
        else:
            self._next[name] = now + _REPORT_EVERY_S
        self._report(
            TransferMoved(
                at=self._clock.now(),
                direction=self._direction,
                image=name,
                current_bytes=current_bytes,
                total_bytes=total_bytes,
            )
        )
