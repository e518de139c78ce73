"""The page of deployments: the latest of each target, or the history of one target."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from buildrunner.errors import PageTokenError
from buildrunner.server.context import ServerContext
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import Session, Viewer, check_may
from buildrunner.store.model.deployments import DeploymentPage

_PAGE_SIZE = 50


def router(context: ServerContext) -> APIRouter:
    """Return the route of the page."""
    pages = _DeploymentsPage(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    routes.add_api_route("/deployments", pages.deployments, methods=["GET"], dependencies=viewer)
    return routes


class _DeploymentsPage:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context

    def deployments(self, request: Request) -> Response:
        """Show the latest deployment of each target, or all of the one in ``target``."""
        query = request.query_params
        viewer: Viewer = request.state.viewer
        project = query.get("project") or self.session.first_project(viewer)
        check_may(viewer, "read", project)
        target = query.get("target", "")
        token, wrong = query.get("page", ""), ""
        try:
            found = self._context.store.deployments.page(
                project,
                target=target,
                latest=not target,
                page_size=_PAGE_SIZE,
                page_token=token,
            )
        except PageTokenError as error:
            found, wrong = DeploymentPage((), ""), str(error)
        given = {"project": project, **({"target": target} if target else {})}
        return page(
            request,
            "deployments",
            deployments=found.deployments,
            project=project,
            target=target,
            runs_now=found.deployments[0].id if target and found.deployments and not token else "",
            may_roll_back=viewer.may("submit", project),
            now=self._context.clock(),
            wrong=wrong,
            more=f"/deployments?{urlencode({**given, 'page': found.next_page_token})}"
            if found.next_page_token
            else "",
        )
