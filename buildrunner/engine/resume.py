"""Going on with a build whose process died: what is known of it, and from where.

Three places know what happened, and none of them more than the truth:

* the build's events, each stored before what it announces was acted on;
* the engine: a step's container is removed only after its end was stored (`RunOptions.keep_logs`),
  so that a step without a stored end that ever ran still has its container;
* the log's index: how much of each step's output is stored.

So no step runs twice and no byte of its output is lost or doubled: a step whose end is stored has
ended; one whose container was started is followed from its first byte on, less what is stored; the
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
        started_at: when it began.
        phases: spans of its phases; an open one still lasts.
        outcomes: steps that ended, by their index, in the order in which they ended.
        begun: when the turn of a step came that has not ended, by its index.
        ran: those of them whose container was seen running.
        warnings: what was warned of already.
        log: what the log holds.
    """

    started_at: datetime
    phases: dict[str, Span] = {}
    outcomes: dict[int, StepOutcome] = {}
    begun: dict[int, datetime] = {}
    ran: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()
    log: StoredLog = StoredLog()


def resume_state(events: Iterable[BuildEvent], log: StoredLog) -> ResumeState | None:
    """Fold a build's stored events, in their order.

    Returns:
        None when no step's turn had come: then nothing is lost by beginning anew.
    """
    started_at: datetime | None = None
    phases: dict[str, Span] = {}
    outcomes: dict[int, StepOutcome] = {}
    begun: dict[int, datetime] = {}
    ran: set[int] = set()
    warnings: list[str] = []
    for event in events:
        match event:
            case BuildStarted():
                started_at = event.at
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
