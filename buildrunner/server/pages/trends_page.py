"""The page of trends: how the last builds of a project, or of one trigger and branch, went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner.errors import FilterError
from buildrunner.server.pages.builds_page import LOOKED_AT, wanted_of
from buildrunner.server.pages.look import page
from buildrunner.server.pages.page_route import PageRoute
from buildrunner.server.pages.session import Session, Viewer, check_may
from buildrunner.server.pages.trends import Point, failure_line, trends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.server.context import ServerContext

_BUILDS = 100
_WIDTH, _HEIGHT = 900, 150


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Bars of builds, or a line, in a box of `_WIDTH` by `_HEIGHT`.

    Attributes:
        bars: left edge, height, and the build of each bar.
        line: points of a polyline; empty for none.
        bar_width: of each bar.
        top: what the upper edge stands for, in seconds.
    """

    bars: tuple[tuple[float, float, Point], ...] = ()
    line: str = ""
    bar_width: float = 0.0
    top: float = 0.0


def router(context: ServerContext) -> APIRouter:
    """The route of the page."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def show(request: Request) -> Response:
        """Trends of the last builds."""
        viewer: Viewer = request.state.viewer
        query = request.query_params
        project = query.get("project") or session.first_project(viewer)
        check_may(viewer, "read", project)
        wanted = wanted_of({name: query.get(name, "") for name in ("trigger", "branch")})
        wrong, documents = "", []
        try:
            found = context.store.list_builds(
                project, filter=wanted.expression, page_size=_BUILDS, look_at=LOOKED_AT
            )
            documents = [stored.document for stored in found.builds]
        except FilterError as error:
            wrong = str(error)
        summed = trends(documents)
        triggers, _ = context.store.list_triggers(project, page_size=100)
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

    routes.add_api_route("/trends", show, methods=["GET"], dependencies=[Depends(session.viewer)])
    return routes


def bar_plot(points: Sequence[Point], values: Sequence[float]) -> Plot:
    """One bar a build, the highest as high as the box. Pure."""
    top = max(values, default=0.0)
    step = _WIDTH / max(len(points), 25)
    bars = tuple(
        (round(at * step, 1), round(max(2.0, value / top * _HEIGHT if top else 2.0), 1), point)
        for at, (point, value) in enumerate(zip(points, values, strict=True))
    )
    return Plot(bars=bars, bar_width=round(step - 2, 1), top=top)


def line_plot(rates: Sequence[float]) -> Plot:
    """A line from left to right; 1 is the upper edge of the box. Pure."""
    step = _WIDTH / max(len(rates), 25)
    points = [
        f"{(at + 0.5) * step:.1f},{_HEIGHT - rate * (_HEIGHT - 2) - 1:.1f}"
        for at, rate in enumerate(rates)
    ]
    return Plot(line=" ".join(points))
