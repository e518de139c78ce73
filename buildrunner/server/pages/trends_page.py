"""The page of trends: how the last builds of a project, or of one trigger or branch, went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner.errors import FilterError
from buildrunner.server.errors import permission_denied
from buildrunner.server.pages.look import page
from buildrunner.server.pages.page_route import PageRoute
from buildrunner.server.pages.session import Session, Viewer
from buildrunner.server.pages.trends import trends

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext

_BUILDS = 100
_HEIGHT, _STEP = 160, 9


def router(context: ServerContext) -> APIRouter:
    """The route of the page."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def show(request: Request) -> Response:
        """Trends of the last builds."""
        viewer: Viewer = request.state.viewer
        query = request.query_params
        project = query.get("project") or session.first_project(viewer)
        if not viewer.may("read", project):
            raise permission_denied(f"token {viewer.name} may not read project {project}")
        trigger, branch = query.get("trigger", ""), query.get("branch", "")
        wanted = " AND ".join(
            f"{field}={_quoted(value)}"
            for field, value in (("trigger_id", trigger), ("substitutions.BRANCH_NAME", branch))
            if value
        )
        wrong, documents = "", []
        try:
            found = context.store.list_builds(project, filter=wanted, page_size=_BUILDS)
            documents = [stored.document for stored in found.builds]
        except FilterError as error:
            wrong = str(error)
        summed = trends(documents)
        longest = max((point.seconds for point in summed.points), default=0.0)
        triggers, _ = context.store.list_triggers(project, page_size=100)
        return page(
            request,
            "trends",
            trends=summed,
            bars=[
                (at * _STEP, max(2.0, point.seconds / longest * _HEIGHT if longest else 2.0), point)
                for at, point in enumerate(summed.points)
            ],
            width=max(len(summed.points) * _STEP, 300),
            height=_HEIGHT,
            longest=longest,
            triggers=[(one.get("id", ""), one.get("name", "")) for one in triggers],
            trigger=trigger,
            branch=branch,
            project=project,
            wrong=wrong,
        )

    routes.add_api_route("/trends", show, methods=["GET"], dependencies=[Depends(session.viewer)])
    return routes


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
