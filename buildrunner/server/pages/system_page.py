"""The page of the server itself: its work, its disk, its settings, and who did what."""

from __future__ import annotations

import platform
import shutil
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner import __version__
from buildrunner.server.errors import permission_denied
from buildrunner.server.pages.build_view import build_view
from buildrunner.server.pages.look import page
from buildrunner.server.pages.page_route import PageRoute
from buildrunner.server.pages.session import Session, Viewer

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext

_ENTRIES = 50


def router(context: ServerContext) -> APIRouter:
    """The route of the page. What it shows is of all projects, so that it needs ``admin``."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def system(request: Request) -> Response:
        """The server's state."""
        viewer: Viewer = request.state.viewer
        if viewer.caller.projects or not viewer.may("admin"):
            raise permission_denied(f"token {viewer.name} may not see this: it needs scope admin")
        now = context.clock()
        store = context.store
        running = [build_view(stored, now=now) for stored in store.claimed()]
        disk = shutil.disk_usage(context.data_folder)
        settings = context.settings
        return page(
            request,
            "system",
            running=running,
            queued=store.queue_length(),
            worker_alive=context.worker_alive(),
            disk=disk,
            now=now,
            facts={
                "buildrunner": __version__,
                "Python": platform.python_version(),
                "Data": context.data_folder,
                "Address": settings.public_url,
                "Tokens": "needed" if settings.auth else "none: whoever connects may do everything",
                "Builds at the same time": str(settings.max_builds),
                "Builds of one trigger at the same time": str(
                    settings.max_builds_per_trigger or "any"
                ),
                "Project of requests that name none": settings.default_project,
            },
            audit=store.audit_log(limit=_ENTRIES),
            tokens=store.list_tokens(),
        )

    routes.add_api_route("/system", system, methods=["GET"], dependencies=[Depends(session.viewer)])
    return routes
