"""Restores the state of a build whose process died.

Three records say what happened:

* the build's events, each stored before any action on it;
* the engine: a step's container is removed only after its end was stored (`RunOptions.keep_logs`),
  so that a step without a stored end that ever ran still has its container;
* the log's index: the number of stored bytes of each step's output.

So no step runs twice and no byte of its output is lost or repeated: a step whose end is stored has
ended; one whose container was started is followed from its first byte, less the stored part; the
others have not run.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from buildrunner.engine.events import (
    BuildEvent,
    BuildStarted,
    PhaseFinished,
    PhaseStarted,
    StepFinished,
    StepRunning,
    StepStarted,
    Warned,
)
from buildrunner.engine.log.pipeline import StoredLog
from buildrunner.engine.outcome import Span, StepOutcome, outcome_of


class ResumeState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a build that an earlier process began.

    Attributes:
        started_at: time of its start.
        phases: spans of its phases; an open span has not ended.
        outcomes: outcomes of ended steps by index, in the order of their ends.
        begun: start times of steps that have not ended, by index.
        ran: indexes of those steps whose container is known to have run.
        warnings: the warnings so far.
        log: the stored part of the log.
    """

    started_at: datetime
    phases: dict[str, Span] = {}
    outcomes: dict[int, StepOutcome] = {}
    begun: dict[int, datetime] = {}
    ran: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()
    log: StoredLog = StoredLog()


def resume_state(events: Iterable[BuildEvent], log: StoredLog) -> ResumeState | None:
    """Return the state of a build from its stored events, in their order.

    Returns:
        The state; None if no step had begun: such a build can simply start again.
    """
    started_at: datetime | None = None
    phases: dict[str, Span] = {}
    outcomes: dict[int, StepOutcome] = {}
    begun: dict[int, datetime] = {}
    ran: set[int] = set()
    warnings: list[str] = []
    for event in events:
        match event:
            case BuildStarted():  # what came before is of a worker that was lost in a pull
                started_at = event.at
                phases.clear()
                outcomes.clear()
                begun.clear()
                ran.clear()
                warnings.clear()
            case PhaseStarted():
                phases[event.phase] = Span(event.at)
            case PhaseFinished():
                phases[event.phase] = Span(phases[event.phase].start, event.at)
            case StepStarted():
                begun[event.step] = event.at
            case StepRunning():
                ran.add(event.step)
            case StepFinished():
                outcomes[event.step] = outcome_of(event, begun.pop(event.step, event.at))
            case Warned():
                warnings.append(event.text)
            case _:
                pass
    if started_at is None or not (begun or outcomes):
        return None
    return ResumeState(
        started_at=started_at,
        phases=phases,
        outcomes=outcomes,
        begun=begun,
        ran=frozenset(ran - outcomes.keys()),
        warnings=tuple(warnings),
        log=log,
    )
