"""The beginning of a build whose plan depends on its source.

A commit decides ``$COMMIT_SHA``, and a config may be in the repository: such a build has no plan
before its source is fetched. Until then, this module runs the build: its first events and log
lines, its deadline, its end if the source can't be fetched. `run_build` continues from there
(``begun``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Generic, TypeVar

import msgspec

from buildrunner.engine import outcome as decisions
from buildrunner.engine import progress as phases
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent, BuildStarted, TransferMoved
from buildrunner.engine.inbox import Inbox
from buildrunner.engine.log.pipeline import LogPipeline, LogSink
from buildrunner.engine.outcome import BuildOutcome, Decision, build_finished
from buildrunner.engine.progress import Phases
from buildrunner.plan.compile import DEFAULT_TIMEOUT_S
from buildrunner.spec.model.build import Build

Fetched = TypeVar("Fetched")

_GIVE_UP_S = 1.5  # a cancelled fetch ends within 1 s; after 1.5 s, its thread is abandoned


class BegunBuild(msgspec.Struct, frozen=True):
    """The start of a build that has no plan yet.

    Attributes:
        at: wall clock.
        monotonic_s: the same moment on the clock that the deadline is measured with.
    """

    at: datetime
    monotonic_s: float


class SourceReport:
    """Receives the progress of a fetch. Any thread may call it.

    Args:
        line: takes a line for the log.
        emit: takes events.
        clock: time.
    """

    def __init__(
        self, line: Callable[[str], None], emit: Callable[[BuildEvent], None], clock: Clock
    ) -> None:
        self.line = line
        self._emit = emit
        self._clock = clock

    def doing(self, name: str, status: str) -> None:
        """Report the current work on a resource, for a status line."""
        self._emit(
            TransferMoved(
                at=self._clock.now(),
                direction="fetch",
                image=name,
                current_bytes=0,
                total_bytes=0,
                status=status,
            )
        )


class SourcePhase(Generic[Fetched]):
    """Fetches a source as the first part of a build. Used by one thread.

    Args:
        build: the build. It has no steps if its config comes with the source.
        sink: takes the log. Not closed.
        on_event: takes events, in the thread that calls `fetch` and `fail`.
        cancel: ends the build as CANCELLED.
        clock: time.
    """

    def __init__(
        self,
        build: Build,
        *,
        sink: LogSink,
        on_event: Callable[[BuildEvent], None],
        cancel: CancelToken,
        clock: Clock,
    ) -> None:
        self._build = build
        self._emit = on_event
        self._cancel = cancel
        self._clock = clock
        self._inbox = Inbox()
        self._log = LogPipeline(sink, clock, partial(self._inbox.tell, self._log_broke))
        self._phases = Phases(clock, on_event)
        self._halt = threading.Event()
        self._fetched: list[Fetched] = []
        self._decision: Decision | None = None
        self._is_over = False
        self.begun = BegunBuild(clock.now(), clock.monotonic())
        timeout = build.timeout
        self._timeout_s = timeout.total_seconds() if timeout else DEFAULT_TIMEOUT_S
        self._deadline = self.begun.monotonic_s + self._timeout_s

    def fetch(
        self,
        work: Callable[[threading.Event, SourceReport], Fetched],
        discard: Callable[[Fetched], None],
    ) -> Fetched | BuildOutcome:
        """Begin the build and fetch its source.

        Args:
            work: fetches, in a separate thread; ends soon once the event is set.
            discard: releases an unused result of ``work``; may be called from any thread.

        Returns:
            The result of ``work``, or the outcome of the ended build.

        Raises:
            Exception: an error of ``on_event``, or one of ``work`` that is no failure of the
                source.
        """
        tell = self._inbox.tell
        self._cancel.listen(partial(tell, self._decide, decisions.CANCELLED))
        self._emit(
            BuildStarted(at=self.begun.at, build_id=self._build.id, steps=len(self._build.steps))
        )
        self._phases.begin(phases.FETCH)
        self._log.line(f'starting build "{self._build.id}"\n\nFETCHSOURCE')
        report = SourceReport(partial(tell, self._log.line), partial(tell, self._emit), self._clock)
        self._inbox.spawn(
            "source",
            partial(work, self._halt, report),
            done=partial(self._arrived, discard),
            failed=self._failed,
        )
        try:
            while not self._is_over:
                next_ = self._inbox.wait(self._deadline - self._clock.monotonic())
                (next_ or self._on_deadline)()
        except BaseException:
            self._halt.set()
            raise
        if self._decision is not None:
            return self.fail(self._decision)
        return self._fetched[0]

    def fail(self, decision: Decision) -> BuildOutcome:
        """End the build before it is planned. Log, events and outcome state the reason."""
        self._phases.end_all()
        self._log.line(decision.word)
        if decision.error:
            self._log.line("\n".join(f"ERROR: {line}" for line in decision.error.splitlines()))
        self._log.close()
        outcome = BuildOutcome(
            status=decision.status,
            started_at=self.begun.at,
            finished_at=self._clock.now(),
            error=decision.error,
            stopped_by=decisions.stopped_by(decision, self._cancel.reason, self._timeout_s),
            failure_type=decision.failure_type,
            failure_detail=decision.detail,
            phases=dict(self._phases.spans),
        )
        self._emit(build_finished(outcome, outcome.finished_at))
        return outcome

    def _on_deadline(self) -> None:
        if self._decision is None:
            self._decide(decisions.TIMED_OUT)
        else:
            self._is_over = True  # the fetch does not end: abandon its thread

    def _decide(self, decision: Decision) -> None:
        """Decide how the build ends once the fetch has stopped. The first decision counts."""
        if self._decision is None and not self._is_over:
            self._decision = decision
            self._halt.set()
            self._deadline = self._clock.monotonic() + _GIVE_UP_S

    def _arrived(self, discard: Callable[[Fetched], None], fetched: Fetched) -> None:
        if self._decision is None:
            self._fetched.append(fetched)
        else:
            discard(fetched)
        self._is_over = True

    def _failed(self, error: Exception) -> None:
        if self._decision is None:
            self._decision = decisions.failed_setup(error)
        self._is_over = True

    def _log_broke(self, error: Exception) -> None:
        self._decide(decisions.log_broken(error))
