"""How builds went over time: durations, failures, waiting, the slowest and flakiest steps. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.server.pages.wording import seconds_between

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BAD = frozenset({"FAILURE", "TIMEOUT", "INTERNAL_ERROR"})
_ENDED = frozenset({"SUCCESS", *_BAD})
_MOST_STEPS = 10


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One build in a plot.

    Attributes:
        id: the build.
        status: name of its status.
        at: when it was created, as the API writes it.
        seconds: how long it took.
        queued_s: how long it waited.
    """

    id: str
    status: str
    at: str
    seconds: float
    queued_s: float


class StepTrend(msgspec.Struct, frozen=True, kw_only=True):
    """One step over many builds.

    Attributes:
        name: its id, or ``#N image``.
        runs: how often it ran to an end.
        median_s: half of its runs were faster.
        failures: how often it failed.
        flips: how often it failed once and succeeded the next time on the same commit, or the
            other way round.
    """

    name: str
    runs: int
    median_s: float
    failures: int
    flips: int


class Trends(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows.

    Attributes:
        points: builds that ran to an end, oldest first.
        median_s, median_queued_s: None without builds.
        failure_rate: 0 to 1; None without builds.
        slowest: steps by their median, slowest first.
        flakiest: steps that flipped, most often first.
    """

    points: tuple[Point, ...]
    median_s: float | None
    median_queued_s: float | None
    failure_rate: float | None
    slowest: tuple[StepTrend, ...]
    flakiest: tuple[StepTrend, ...]


def trends(documents: Sequence[Mapping[str, Any]]) -> Trends:
    """Sum up builds.

    Args:
        documents: Builds as JSON, newest first, as lists have them.
    """
    ended = [one for one in reversed(documents) if one.get("status") in _ENDED]
    points = [
        Point(
            id=one["id"],
            status=one["status"],
            at=one.get("createTime", ""),
            seconds=seconds_between(one.get("startTime"), one.get("finishTime")) or 0.0,
            queued_s=seconds_between(one.get("createTime"), one.get("startTime")) or 0.0,
        )
        for one in ended
    ]
    steps = _steps(ended)
    failed = sum(point.status in _BAD for point in points)
    flaky = sorted((one for one in steps if one.flips), key=lambda one: (-one.flips, one.name))
    return Trends(
        points=tuple(points),
        median_s=median(point.seconds for point in points) if points else None,
        median_queued_s=median(point.queued_s for point in points) if points else None,
        failure_rate=failed / len(points) if points else None,
        slowest=tuple(sorted(steps, key=lambda one: -one.median_s)[:_MOST_STEPS]),
        flakiest=tuple(flaky[:_MOST_STEPS]),
    )


def _steps(ended: Sequence[Mapping[str, Any]]) -> list[StepTrend]:
    seconds: dict[str, list[float]] = {}
    results: dict[str, list[tuple[str, bool]]] = {}
    for build in ended:
        commit = build.get("substitutions", {}).get("COMMIT_SHA", "")
        for index, step in enumerate(build.get("steps", ())):
            if step.get("status") not in _ENDED:
                continue
            name = step.get("id") or f"#{index} {step.get('name', '')}"
            timing = step.get("timing", {})
            took = seconds_between(timing.get("startTime"), timing.get("endTime"))
            seconds.setdefault(name, []).append(took or 0.0)
            results.setdefault(name, []).append((commit, step["status"] == "SUCCESS"))
    return [
        StepTrend(
            name=name,
            runs=len(times),
            median_s=median(times),
            failures=sum(not good for _, good in results[name]),
            flips=_flips(results[name]),
        )
        for name, times in seconds.items()
    ]


def _flips(results: Sequence[tuple[str, bool]]) -> int:
    """How often the result changed from one run to the next of the same known commit."""
    last: dict[str, bool] = {}
    flips = 0
    for commit, good in results:
        if commit:
            flips += last.get(commit, good) is not good
            last[commit] = good
    return flips
