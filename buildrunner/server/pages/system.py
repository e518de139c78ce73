"""The page of the server itself: its work, its disk, its settings, its audit log."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner import __version__
from buildrunner.server.context import ServerContext
from buildrunner.server.http.requests import row_number
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import Session, check_everywhere
from buildrunner.store.model.builds import ClaimedBuild
from buildrunner.triggers.labels import TRIGGER_NAME

_ENTRIES = 50


def router(context: ServerContext) -> APIRouter:
    """Return the route of the page. The page shows all projects, so it needs ``admin``."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def system(request: Request) -> Response:
        """Show the server's state."""
        check_everywhere(request.state.viewer, "admin")
        store = context.store
        before = row_number(request.query_params.get("before", ""))
        claimed = store.queue.claimed()
        now = context.clock()
        audit = store.audit.page(limit=_ENTRIES, before_id=before)
        return page(
            request,
            "system",
            running=claimed,
            trigger_name=TRIGGER_NAME,
            workers=_workers(context, claimed),
            queued=store.queue.length(),
            held_back=context.worker_holds_back(),
            worker_alive=context.worker_alive(),
            disk=shutil.disk_usage(context.data_folder),
            now=now,
            facts={
                "buildrunner": __version__,
                "Python": platform.python_version(),
                "Machine": f"{platform.machine()}, {os.cpu_count()} processors",
                "Data": context.data_folder,
                **context.facts(),
            },
            settings=context.shown_settings,
            audit=audit,
            older=f"/system?before={audit[-1].id}#audit" if len(audit) == _ENTRIES else "",
            tokens=store.tokens.all(),
        )

    routes.add_api_route("/system", system, methods=["GET"], dependencies=[Depends(session.viewer)])
    return routes


def _workers(context: ServerContext, claimed: Sequence[ClaimedBuild]) -> list[tuple[str, int, str]]:
    """Return each worker with builds, and this server's own: name, builds, state."""
    own = context.settings.worker
    counts = Counter(stored.worker for stored in claimed if stored.worker)
    names = sorted({*counts, *([own] if own else [])})
    alive = "works" if context.worker_alive() else "does not answer"
    return [
        (name, counts[name], alive if name == own else "works for another server") for name in names
    ]
