"""The pages of deliveries: what forges sent, and why each trigger fired or did not fire.

Deliveries belong to all projects, so they need a token for all projects. Bodies are for admins.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import note_action
from buildrunner.server.http.requests import row_number
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import (
    Session,
    Viewer,
    check_everywhere,
    refusal,
    refused_address,
)
from buildrunner.server.services.documents import shown_delivery

_PAGE_SIZE = 50
_MOST_SHOWN = 100_000


def router(context: ServerContext) -> APIRouter:
    """Return the routes of the pages of deliveries."""
    pages = _DeliveryPages(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    path = "/deliveries/{delivery}"
    routes.add_api_route("/deliveries", pages.all, methods=["GET"], dependencies=viewer)
    routes.add_api_route(path, pages.one, methods=["GET"], dependencies=viewer)
    routes.add_api_route(path + "/replay", pages.replay, methods=["POST"], dependencies=viewer)
    return routes


class _DeliveryPages:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context

    def all(self, request: Request) -> Response:
        """Show deliveries, newest first."""
        check_everywhere(request.state.viewer, "read")
        hook = request.query_params.get("hook", "")
        before = row_number(request.query_params.get("before", ""))
        found = self._context.store.deliveries.page(hook=hook, limit=_PAGE_SIZE, before=before)
        more = {"hook": hook, "before": found[-1].number} if len(found) == _PAGE_SIZE else {}
        return page(
            request,
            "deliveries",
            deliveries=[shown_delivery(one) for one in found],
            hook=hook,
            now=self._context.clock(),
            more=f"/deliveries?{urlencode(more)}" if more else "",
        )

    def one(self, request: Request, delivery: int) -> Response:
        """Show one delivery."""
        viewer: Viewer = request.state.viewer
        check_everywhere(viewer, "read")
        found = self._context.store.deliveries.get(delivery)
        return page(
            request,
            "delivery",
            delivery=shown_delivery(found),
            outcome=found.outcome,
            body=_shown(found.body) if _is_admin(viewer) else "",
            headers=found.headers if _is_admin(viewer) else {},
            may_replay=_is_admin(viewer) and found.status != "refused",
            now=self._context.clock(),
            wrong=refusal(request),
        )

    async def replay(self, request: Request, delivery: int) -> Response:
        """Handle a delivery again."""
        viewer: Viewer = request.state.viewer
        await self.session.form(request, viewer)
        note_action(request, "deliveries.replay", str(delivery))
        check_everywhere(viewer, "admin")
        path = f"/deliveries/{delivery}"
        try:
            await run_in_threadpool(self._context.store.deliveries.replay, delivery)
        except BuildrunnerError as error:
            path = refused_address(request, path, str(error))
        else:
            self._context.hook_arrived()
        return RedirectResponse(path, 303)


def _is_admin(viewer: Viewer) -> bool:
    return viewer.may("admin") and not viewer.caller.projects


def _shown(body: bytes) -> str:
    try:
        text: Any = msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        text = body.decode("utf-8", "replace")
    return str(text[:_MOST_SHOWN])
