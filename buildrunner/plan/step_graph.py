"""The step graph, a pure state machine: it decides which steps may start, and when a build stops.

The engine's loop is ``for step in graph.ready(): launch(step)``. The loop reports each start and
end of a step to the graph, and the graph decides what follows. Not thread-safe: one loop owns it.

Source: the scheduler of Cloud Build (`waitFor`, failure and cancellation). The local builder leaves
a step WORKING after a build timeout; this graph sets it to CANCELLED.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from buildrunner.plan.build_plan import StepPlan
from buildrunner.spec.model.build import Status


class StopReason(enum.Enum):
    """The reason why no further step starts; the value is the build's status."""

    FAILURE = Status.FAILURE
    CANCELLED = Status.CANCELLED
    TIMEOUT = Status.TIMEOUT
    INTERNAL_ERROR = Status.INTERNAL_ERROR


class StepGraph:
    """The state of all steps of one plan. Steps are identified by their index in it."""

    def __init__(self, steps: Sequence[StepPlan]) -> None:
        self._steps = tuple(steps)
        self._statuses = [Status.QUEUED] * len(self._steps)
        self._missing = [len(step.depends_on) for step in self._steps]
        self._dependents: list[list[int]] = [[] for _ in self._steps]
        for index, step in enumerate(self._steps):
            for earlier in step.depends_on:
                self._dependents[earlier].append(index)
        self._ready = {index for index, count in enumerate(self._missing) if not count}
        self._running: set[int] = set()
        self._stop: StopReason | None = None
        self._first_failure: int | None = None

    @property
    def statuses(self) -> tuple[Status, ...]:
        """Return each step's status: QUEUED, WORKING, SUCCESS, FAILURE, TIMEOUT or CANCELLED."""
        return tuple(self._statuses)

    @property
    def running(self) -> frozenset[int]:
        """Return the started steps that have not ended; after a stop, the steps to kill."""
        return frozenset(self._running)

    @property
    def stop_reason(self) -> StopReason | None:
        """Return why no further step starts; None while steps may start."""
        return self._stop

    @property
    def is_over(self) -> bool:
        """Return whether no step runs and none can start any more."""
        return not self._running and not self.ready()

    def ready(self) -> tuple[int, ...]:
        """Return the steps that may start now, in list order; none once the build must stop."""
        return () if self._stop else tuple(sorted(self._ready))

    def start(self, index: int) -> None:
        """Mark a step as WORKING; its image may still have to be pulled.

        Raises:
            ValueError: the step is not ready.
        """
        if index not in self._ready or self._stop:
            raise ValueError(f"step {index} can't start now")
        self._ready.discard(index)
        self._running.add(index)
        self._statuses[index] = Status.WORKING

    def finish(self, index: int, status: Status, *, exit_code: int | None = None) -> None:
        """Record the end of a running step.

        Args:
            index: the step.
            status: SUCCESS; FAILURE for an exit code other than 0, a failed pull or anything else
                that kept the step from running; TIMEOUT for its own limit; CANCELLED. Once the
                build must stop, any step that ends was killed, and becomes CANCELLED.
            exit_code: exit code of the container, if it ran to its end.

        Raises:
            ValueError: the step is not running.
        """
        if index not in self._running:
            raise ValueError(f"step {index} is not running")
        self._running.discard(index)
        if self._stop:
            self._statuses[index] = Status.CANCELLED
            return
        self._statuses[index] = status
        if status is Status.SUCCESS or self._forgiven(index, status, exit_code):
            self._release(index)
            return
        self._first_failure = index
        # Not by stop(), which does nothing if the step that failed was the last one.
        self._stop = StopReason.CANCELLED if status is Status.CANCELLED else StopReason.FAILURE

    def stop(self, reason: StopReason) -> None:
        """Start no more steps; the first reason counts. The caller kills the running steps."""
        if self._stop is None and not self.is_over:
            self._stop = reason

    def is_forgiven(self, index: int) -> bool:
        """Return whether the step failed and the build continued."""
        failed = self._statuses[index] in (Status.FAILURE, Status.TIMEOUT)
        return failed and index != self._first_failure

    def _forgiven(self, index: int, status: Status, exit_code: int | None) -> bool:
        step = self._steps[index]
        if status is Status.FAILURE and exit_code is not None:
            return step.forgives(exit_code)
        # Without an exit code (pull error, timeout), allowFailure applies, but not allowExitCodes.
        if status in (Status.FAILURE, Status.TIMEOUT):
            return step.allow_failure and not step.allow_exit_codes
        return False

    def _release(self, index: int) -> None:
        for dependent in self._dependents[index]:
            self._missing[dependent] -= 1
            if not self._missing[dependent]:
                self._ready.add(dependent)
