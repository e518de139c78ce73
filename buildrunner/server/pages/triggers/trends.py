"""The page of trends: results and durations of the last builds of a project, trigger or branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner.errors import FilterError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.bodies import SEARCH_SLOT
from buildrunner.server.pages.builds.list import LOOKED_AT, wanted_of
from buildrunner.server.pages.builds.view import BAD
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import Session, Viewer, check_may
from buildrunner.server.pages.wording import seconds_between
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.built_revision import built_revision
from buildrunner.triggers.labels import trigger_name

_BUILDS = 100
_WIDTH, _HEIGHT = 900, 150


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Bars of builds, or a line, in a box of `_WIDTH` by `_HEIGHT`.

    Attributes:
        bars: left edge, height, and the build of each bar.
        line: points of a polyline; empty for none.
        bar_width: width of each bar.
        top: the value of the upper edge, in seconds.
    """

    bars: tuple[tuple[float, float, Point], ...] = ()
    line: str = ""
    bar_width: float = 0.0
    top: float = 0.0


def router(context: ServerContext) -> APIRouter:
    """Return the route of the page."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def show(request: Request) -> Response:
        """Show trends of the last builds."""
        viewer: Viewer = request.state.viewer
        query = request.query_params
        project = query.get("project") or session.first_project(viewer)
        check_may(viewer, "read", project)
        wanted = wanted_of({name: query.get(name, "") for name in ("trigger", "branch")})
        wrong: str = ""
        builds: Sequence[StoredBuild] = ()
        try:
            found = context.store.builds.page(
                project,
                filter=wanted.expression,
                page_size=_BUILDS,
                look_at=LOOKED_AT,
                accepts=wanted.accepts,
            )
            builds = found.builds
        except FilterError as error:
            wrong = str(error)
        summed = trends(builds)
        triggers, _ = context.store.triggers.page(project, page_size=100)
        points = summed.points
        return page(
            request,
            "trends",
            trends=summed,
            took=bar_plot(points, [point.seconds for point in points]),
            waited=bar_plot(points, [point.queued_s for point in points]),
            failures=line_plot(failure_line(points)),
            width=_WIDTH,
            height=_HEIGHT,
            triggers=[(one.get("id", ""), one.get("name", "")) for one in triggers],
            wanted=wanted,
            project=project,
            wrong=wrong,
        )

    needed = [Depends(session.viewer), SEARCH_SLOT]
    routes.add_api_route("/trends", show, methods=["GET"], dependencies=needed)
    return routes


def bar_plot(points: Sequence[Point], values: Sequence[float]) -> Plot:
    """Draw one bar for each build; the longest bar fills the box. Pure."""
    top = max(values, default=0.0)
    step = _WIDTH / max(len(points), 25)
    bars = tuple(
        (round(at * step, 1), round(max(2.0, value / top * _HEIGHT if top else 2.0), 1), point)
        for at, (point, value) in enumerate(zip(points, values, strict=True))
    )
    return Plot(bars=bars, bar_width=round(step - 2, 1), top=top)


def line_plot(rates: Sequence[float]) -> Plot:
    """Draw a line from left to right; 1 is the upper edge of the box. Pure."""
    step = _WIDTH / max(len(rates), 25)
    points = [
        f"{(at + 0.5) * step:.1f},{_HEIGHT - rate * (_HEIGHT - 2) - 1:.1f}"
        for at, rate in enumerate(rates)
    ]
    return Plot(line=" ".join(points))


_ENDED = frozenset({"SUCCESS", *BAD})
_MOST_STEPS, _MOST_PARTS = 10, 15


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One build in a plot.

    Attributes:
        id: the build.
        status: name of its status.
        at: time of its creation, in the API's form.
        seconds: its duration.
        queued_s: seconds that it waited.
    """

    id: str
    status: str
    at: str
    seconds: float
    queued_s: float


class StepTrend(msgspec.Struct, frozen=True, kw_only=True):
    """One step over many builds.

    Attributes:
        name: id of the step, or ``#N image``.
        runs: number of runs that succeeded or failed.
        median_s: median duration.
        failures: number of failures.
        flips: number of changes of its result between consecutive runs on the same commit.
    """

    name: str
    runs: int
    median_s: float
    failures: int
    flips: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The builds of one trigger or one branch.

    Attributes:
        name: name of the trigger or the branch.
        key: value of the page's filter for these builds: the trigger's id, or the branch.
        builds: number of builds that succeeded or failed.
        failed: number of failed builds.
        median_s, median_queued_s: median duration and waiting time.
    """

    name: str
    key: str
    builds: int
    failed: int
    median_s: float
    median_queued_s: float


class Trends(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the page.

    Attributes:
        points: builds that succeeded or failed, oldest first.
        median_s, median_queued_s: median duration and waiting time; None without builds.
        failure_rate: 0 to 1; None without builds.
        slowest: steps by median duration, slowest first.
        flakiest: steps with flips, most flips first.
        p95_s: 95th percentile of durations; None without builds.
        triggers, branches: the same builds by trigger and by branch, most builds first.
    """

    points: tuple[Point, ...]
    median_s: float | None
    median_queued_s: float | None
    failure_rate: float | None
    slowest: tuple[StepTrend, ...]
    flakiest: tuple[StepTrend, ...]
    p95_s: float | None = None
    triggers: tuple[Part, ...] = ()
    branches: tuple[Part, ...] = ()


def trends(builds: Sequence[StoredBuild]) -> Trends:
    """Compute the trends of builds.

    Args:
        builds: the builds, newest first.
    """
    stored = [one for one in reversed(builds) if one.document.get("status") in _ENDED]
    ended = [one.document for one in stored]
    revisions = [built_revision(one.document, one.labels) for one in stored]
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
    steps = _steps(ended, [one.commit for one in revisions])
    failed = sum(point.status in BAD for point in points)
    flaky = sorted((one for one in steps if one.flips), key=lambda one: (-one.flips, one.name))
    return Trends(
        points=tuple(points),
        median_s=median(point.seconds for point in points) if points else None,
        median_queued_s=median(point.queued_s for point in points) if points else None,
        failure_rate=failed / len(points) if points else None,
        slowest=tuple(sorted(steps, key=lambda one: -one.median_s)[:_MOST_STEPS]),
        flakiest=tuple(flaky[:_MOST_STEPS]),
        p95_s=sorted(point.seconds for point in points)[int(len(points) * 0.95)]
        if points
        else None,
        triggers=_parts(
            points,
            [
                (trigger, trigger_name(one.labels, trigger))
                for one in stored
                for trigger in (one.document.get("buildTriggerId", ""),)
            ],
        ),
        branches=_parts(points, [(one.ref, one.ref) for one in revisions]),
    )


def _parts(points: Sequence[Point], keys_and_names: Sequence[tuple[str, str]]) -> tuple[Part, ...]:
    """Group builds by their keys; skip builds with an empty key."""
    grouped: dict[str, list[Point]] = {}
    names: dict[str, str] = {}
    for point, (key, name) in zip(points, keys_and_names, strict=True):
        if key:
            grouped.setdefault(key, []).append(point)
            names[key] = name
    parts = [
        Part(
            key=key,
            name=names[key],
            builds=len(own),
            failed=sum(point.status in BAD for point in own),
            median_s=median(point.seconds for point in own),
            median_queued_s=median(point.queued_s for point in own),
        )
        for key, own in grouped.items()
    ]
    parts.sort(key=lambda part: (-part.builds, part.name))
    return tuple(parts[:_MOST_PARTS])


def failure_line(points: Sequence[Point], window: int = 20) -> list[float]:
    """Return, for each build, the failure rate of the last ``window`` builds, 0 to 1."""
    rates = []
    for at in range(len(points)):
        last = points[max(0, at - window + 1) : at + 1]
        rates.append(sum(point.status in BAD for point in last) / len(last))
    return rates


def _steps(ended: Sequence[Mapping[str, Any]], commits: Sequence[str]) -> list[StepTrend]:
    seconds: dict[str, list[float]] = {}
    results: dict[str, list[tuple[str, bool]]] = {}
    for build, commit in zip(ended, commits, strict=True):
        for index, step in enumerate(build.get("steps", ())):
            if step.get("status") not in _ENDED:
                continue
            if step["status"] == "SUCCESS" and "timing" not in step:
                continue  # an earlier build ran it
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
    """Count the changes of result between consecutive runs of the same known commit."""
    last: dict[str, bool] = {}
    flips = 0
    for commit, good in results:
        if commit:
            flips += last.get(commit, good) is not good
            last[commit] = good
    return flips
