"""Tells of a source that is fetched, or of files that are uploaded: lines and progress."""

from __future__ import annotations

from collections.abc import Callable

from buildrunner.engine.cancellation import Clock
from buildrunner.engine.events import BuildEvent, TransferMoved

_REPORT_EVERY_S = 0.1


class FileTransferReport:
    """Implements `FetchReport` and `UploadReport`.

    Args:
        direction: ``fetch`` or ``upload``.
        line: takes lines for the log.
        clock: for at most ten events a second and file.
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
        """See `FetchReport.moved`. The end of a transfer of known size is always told."""
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
