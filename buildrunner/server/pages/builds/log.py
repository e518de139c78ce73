"""The page of a build's log: its end as text, which the viewer in the browser replaces."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner.errors import NotFound
from buildrunner.logs.files.events import EventLogReader
from buildrunner.logs.files.log_file import log_folder
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.logs.files.retention import check_not_removed
from buildrunner.server.context import ServerContext
from buildrunner.server.http.bodies import READ_SLOT
from buildrunner.server.http.requests import project_of
from buildrunner.server.logs.view import tail
from buildrunner.server.pages.builds.view import build_view
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import Session, check_may
from buildrunner.server.pages.wording import shown_text

_LINES = 500
_WIDTH = 1000
_MOST_BYTES = 48 << 10
_MANY_EVENTS = 20_000


class TailLine(msgspec.Struct, frozen=True):
    """One line of the page: its number, from 0, and its text without colours."""

    number: int
    text: str


def router(context: ServerContext) -> APIRouter:
    """Return the route of the page."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def log(request: Request) -> Response:
        """Show the log of one build."""
        project = project_of(request, context.settings.default_project)
        check_may(request.state.viewer, "read", project)
        stored = context.store.builds.get(project, request.path_params["build"])
        folder = log_folder(context.data_folder, stored.id)
        now = context.clock()
        numbered = EventLogReader(folder).read(limit=_MANY_EVENTS)
        build = build_view(stored, (one.event() for one in numbered), now=now)
        waiting = None
        if build.status in ("QUEUED", "PENDING"):
            waiting = context.why_waiting(build.id)
        removed = ""
        try:
            check_not_removed(folder, stored.id)
        except NotFound as error:
            removed = f"{error}."
        if stored.document.get("options", {}).get("logging") == "NONE" and build.is_over:
            removed = "This build has no log: its options say logging: NONE."
        reader = LogFileReader(folder)
        # The viewer loads the page again after a change, and has the lines already.
        wants_lines = not removed and request.query_params.get("tail") != "no"
        lines = tail(reader, _LINES, _WIDTH, _MOST_BYTES) if wants_lines else []
        return page(
            request,
            "log",
            build=build,
            waiting=waiting,
            removed=removed,
            lines=[TailLine(line.number, shown_text(line.text)) for line in lines],
            line_count=reader.line_count(),
            sequence=numbered[-1].sequence if numbered else 0,
        )

    routes.add_api_route(
        "/builds/{project}/{build}/log",
        log,
        methods=["GET"],
        dependencies=[Depends(session.viewer), READ_SLOT],
    )
    return routes
