"""The page of notifications: the notifiers, and the messages with the reasons for failures."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError, ConfigError, NotFound
from buildrunner.server.api.notifications import find_message
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import note_action
from buildrunner.server.http.requests import project_of, row_number
from buildrunner.server.notifications.messages import target_of
from buildrunner.server.notifications.notifier import notifier_of
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import (
    LoginNeeded,
    Session,
    Viewer,
    check_may,
    refusal,
    refused_address,
)
from buildrunner.server.services.documents import shown_message
from buildrunner.store.model.outbox import STATES

_PAGE_SIZE = 50


def router(context: ServerContext) -> APIRouter:
    """Return the routes of the page."""
    pages = _OutboxPages(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    act = "/outbox/{project}/{message}/{action}"
    routes.add_api_route("/outbox", pages.all, methods=["GET"], dependencies=viewer)
    routes.add_api_route(act, pages.act, methods=["POST"], dependencies=viewer)
    return routes


class _OutboxPages:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context

    def all(self, request: Request) -> Response:
        """Show notifiers, and messages, newest first."""
        viewer: Viewer = request.state.viewer
        query = request.query_params
        project = query.get("project") or self.session.first_project(viewer)
        if viewer.is_public:  # receivers are not public
            raise LoginNeeded
        check_may(viewer, "read", project)
        state = query.get("state", "") if query.get("state") in STATES else ""
        build = query.get("build", "")
        store = self._context.store
        found = store.outbox.page(
            project_id=project,
            build_id=build,
            state=state,
            limit=_PAGE_SIZE,
            before=row_number(query.get("before", "")),
        )
        more = {"project": project, "state": state, "build": build}
        return page(
            request,
            "outbox",
            messages=[shown_message(one) for one in found],
            notifiers=[_shown(one) for one in store.notifiers.of_project(project).values()],
            project=project,
            state=state,
            states=("", *STATES),
            build=build,
            may_send=viewer.may("admin", project),
            now=self._context.clock(),
            wrong=refusal(request),
            more=f"/outbox?{urlencode({**more, 'before': found[-1].id})}"
            if len(found) == _PAGE_SIZE
            else "",
        )

    async def act(self, request: Request, message: int, action: str) -> Response:
        """Send a message now, or delete it."""
        viewer: Viewer = request.state.viewer
        await self.session.form(request, viewer)
        project = project_of(request, self._context.settings.default_project)
        if action not in ("retry", "drop"):
            raise NotFound(f"there is no {action} for messages")
        note_action(request, f"outbox.{action}", f"{project}/{message}")
        check_may(viewer, "admin", project)
        path = f"/outbox?{urlencode({'project': project})}"
        try:
            await run_in_threadpool(self._act, project, message, action)
        except BuildrunnerError as error:
            path = refused_address(request, "/outbox", str(error), project=project)
        return RedirectResponse(path, 303)

    def _act(self, project: str, message: int, action: str) -> None:
        find_message(self._context, project, message)
        if action == "retry":
            self._context.store.outbox.retry(message, now=self._context.clock())
        else:
            self._context.store.outbox.drop(message)


def _shown(document: dict[str, Any]) -> dict[str, str]:
    """Return the facts of a notifier for the list."""
    try:
        notifier = notifier_of(document)
    except ConfigError as error:
        return {"target": str(document.get("metadata", {}).get("name", "")), "wrong": str(error)}
    notification = notifier.spec.notification
    return {"target": target_of(notifier), "on": notification.on, "filter": notification.filter}
