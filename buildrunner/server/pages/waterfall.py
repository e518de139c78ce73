"""Where a build's time went, as bars over one time axis. Pure.

The critical path is the chain of steps that decided when the build ended: from the last one back,
each time to the step it waited for longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.server.pages.wording import instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

_PHASES = {"FETCHSOURCE": "source", "SETUPBUILD": "setup", "PUSH": "push"}


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work.

    Attributes:
        label: for a person.
        kind: ``queue``, ``source``, ``setup``, ``step`` or ``push``.
        status: of a step; empty otherwise.
        step: its index; None for what is no step.
        start_s: seconds since the build was created.
        end_s: the same; of what still runs, now.
        pull_s: how much of it, from its start, was getting the image.
        is_critical: it decided when the build ended.
    """

    label: str
    kind: str
    start_s: float
    end_s: float
    status: str = ""
    step: int | None = None
    pull_s: float = 0.0
    is_critical: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


def waterfall(
    document: Mapping[str, Any], depends_on: Sequence[Sequence[int]], now: datetime
) -> list[Bar]:
    """The bars of a build, in the order in which they began.

    Args:
        document: the Build as JSON.
        depends_on: for each step the indexes of the steps it waits for; empty when not known.
        now: the present, for what still runs.
    """
    zero = instant(document.get("createTime"))
    if zero is None:
        return []

    def offset(text: str | None) -> float | None:
        moment = instant(text)
        return None if moment is None else max(0.0, (moment - zero).total_seconds())

    until = offset(document.get("finishTime")) or max(0.0, (now - zero).total_seconds())
    bars = []
    begun = offset(document.get("startTime"))
    queued_until = until if begun is None else begun
    bars.append(Bar(label="queue", kind="queue", start_s=0.0, end_s=queued_until))
    for phase, kind in _PHASES.items():
        span = document.get("timing", {}).get(phase, {})
        start = offset(span.get("startTime"))
        if start is not None:
            end = offset(span.get("endTime"))
            bars.append(
                Bar(label=kind, kind=kind, start_s=start, end_s=until if end is None else end)
            )
    steps = {}
    for index, step in enumerate(document.get("steps", ())):
        start = offset(step.get("timing", {}).get("startTime"))
        if start is None:
            continue
        end = offset(step["timing"].get("endTime"))
        pull = step.get("pullTiming", {})
        pulled = offset(pull.get("endTime"))
        steps[index] = Bar(
            label=f"#{index} {step.get('id') or step.get('name', '')}",
            kind="step",
            status=step.get("status", ""),
            step=index,
            start_s=start,
            end_s=until if end is None else end,
            pull_s=max(0.0, pulled - start) if pulled is not None else 0.0,
        )
    critical = critical_path({index: bar.end_s for index, bar in steps.items()}, depends_on)
    bars += [
        msgspec.structs.replace(bar, is_critical=index in critical) for index, bar in steps.items()
    ]
    return sorted(bars, key=lambda bar: (bar.start_s, bar.end_s))


def critical_path(ends: Mapping[int, float], depends_on: Sequence[Sequence[int]]) -> set[int]:
    """The steps that decided when the last one ended.

    Args:
        ends: when each step that ran ended.
        depends_on: for each step, those it waits for.
    """
    path: set[int] = set()
    current = max(ends, key=lambda index: ends[index], default=None)
    while current is not None and current not in path:
        path.add(current)
        before = depends_on[current] if current < len(depends_on) else ()
        ran = [index for index in before if index in ends]
        current = max(ran, key=lambda index: ends[index], default=None)
    return path
