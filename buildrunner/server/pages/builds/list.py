"""The list of builds, with reasons for waiting builds and estimates for running builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner.errors import FilterError, PageTokenError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.bodies import SEARCH_SLOT
from buildrunner.server.pages.builds.changes import BuildHistory
from buildrunner.server.pages.builds.view import BuildView, build_view
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import Session, Viewer, check_may
from buildrunner.server.pages.wording import Estimate
from buildrunner.store.list_filter import quoted
from buildrunner.store.model.builds import BuildCondition, WaitReason
from buildrunner.triggers.built_revision import built_revision

_PAGE_SIZE = 50
# The most builds that a page reads for conditions without an index: some hundredths of a second.
LOOKED_AT, SEARCHED = 2000, 3000
_STATES = (
    "SUCCESS",
    "FAILURE",
    "WORKING",
    "QUEUED",
    "PENDING",
    "TIMEOUT",
    "CANCELLED",
    "INTERNAL_ERROR",
    "EXPIRED",
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The filter of a list; empty fields filter nothing.

    Attributes:
        status: name of a status.
        trigger: id of a trigger.
        branch: name of a branch.
        text: text that must be somewhere in the build.
        filter: filter in the language of the API.
    """

    status: str = ""
    trigger: str = ""
    branch: str = ""
    text: str = ""
    filter: str = ""

    @property
    def expression(self) -> str:
        """Return all conditions but the branch as one filter expression."""
        named = (
            ("status", self.status if self.status in _STATES else ""),
            ("trigger_id", self.trigger),
        )
        parts = [f"{field}={quoted(value)}" for field, value in named if value]
        parts += [quoted(self.text)] if self.text else []
        parts += [f"({self.filter})"] if self.filter else []
        return " AND ".join(parts)

    @property
    def is_any(self) -> bool:
        """Return whether the list has no conditions."""
        return not (self.expression or self.branch)

    @property
    def accepts(self) -> BuildCondition | None:
        """Return the condition of the branch; a caller chooses only ``$BRANCH_NAME``."""
        branch = self.branch
        if not branch:
            return None
        return lambda document, labels: built_revision(document, labels).ref == branch


def wanted_of(query: Mapping[str, str]) -> Wanted:
    """Return the filter in the address of a list."""
    names = {"q": "text", "status": "status", "trigger": "trigger", "branch": "branch"}
    given = {field: query.get(name, "").strip() for name, field in names.items()}
    return Wanted(**given, filter=query.get("filter", "").strip())


def router(context: ServerContext) -> APIRouter:
    """Return the route of the list."""
    pages = _BuildsPage(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer), SEARCH_SLOT]
    routes.add_api_route("/builds", pages.builds, methods=["GET"], dependencies=viewer)
    return routes


class _BuildsPage:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context
        self._history = BuildHistory(context)

    def builds(self, request: Request) -> Response:
        """Show the builds, newest first."""
        query = request.query_params
        viewer: Viewer = request.state.viewer
        project = query.get("project") or self.session.first_project(viewer)
        check_may(viewer, "read", project)
        wanted = wanted_of(query)
        look_at = SEARCHED if wanted.text else LOOKED_AT
        wrong, builds, more = "", [], ""
        now = self._context.clock()
        try:
            found = self._context.store.builds.page(
                project,
                filter=wanted.expression,
                page_size=_PAGE_SIZE,
                page_token=query.get("page", ""),
                look_at=look_at,
                accepts=wanted.accepts,
            )
        except (FilterError, PageTokenError) as error:
            wrong = str(error)
        else:
            builds = [build_view(one, now=now) for one in found.builds]
            more = found.next_page_token
        given = {name: value for name, value in query.items() if name != "page" and value}
        given["project"] = project
        triggers, _ = self._context.store.triggers.page(project, page_size=100)
        return page(
            request,
            "builds",
            builds=builds,
            waiting=self._waiting(builds),
            estimates=self._estimates(project, builds),
            live=any(not build.is_over for build in builds),
            states=_STATES,
            wanted=wanted,
            triggers=[(one.get("id", ""), one.get("name", "")) for one in triggers],
            project=project,
            wrong=wrong,
            now=now,
            more=f"/builds?{urlencode({**given, 'project': project, 'page': more})}"
            if more
            else "",
            # A search with few results has searched only some builds.
            looked_at=look_at if more and len(builds) < _PAGE_SIZE else 0,
            is_first="page" not in query,
        )

    def _waiting(self, builds: Sequence[BuildView]) -> dict[str, WaitReason | None]:
        return {
            build.id: self._context.why_waiting(build.id)
            for build in builds
            if build.status in ("QUEUED", "PENDING")
        }

    def _estimates(self, project: str, builds: Sequence[BuildView]) -> dict[str, Estimate]:
        """Return the estimates of the running builds; each trigger's history is read once."""
        running = [one for one in builds if one.status == "WORKING" and one.trigger_id]
        usual = {
            trigger: self._history.usual_s(project, trigger)
            for trigger in {build.trigger_id for build in running}
        }
        return {
            build.id: Estimate(known, build.seconds)
            for build in running
            if (known := usual[build.trigger_id]) is not None and build.seconds is not None
        }
