"""Read-only routes of deployments: a rollback is a retry of a build."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import READ_SLOT
from buildrunner.server.http.requests import address_of, flag, page_size, parameter, project_of
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PAGING, PARENT, Parameter, documented
from buildrunner.server.services.builds import Builds
from buildrunner.store.model.deployments import DeploymentPage

_TARGET = Parameter("target", "string", "Only deployments to this target.")
_LATEST = Parameter("latest", "boolean", "true: only the latest deployment of each target.")


def router(context: ServerContext) -> APIRouter:
    """Return the routes of deployments."""
    access = Access(context)
    builds = Builds(context)
    routes = APIRouter(prefix="/buildrunner/v1/projects/{project}", tags=["deployments"])

    def listing(request: Request, _: Caller = Depends(access.may("read"))) -> Response:
        """List deployments of the project's builds, newest first."""
        page = context.store.deployments.page(
            project_of(request, context.settings.default_project),
            target=parameter(request, "target"),
            latest=flag(request, "latest", default=False),
            page_size=page_size(request),
            page_token=parameter(request, "pageToken"),
        )
        return _answer(page)

    def get(request: Request, deployment: str, _: Caller = Depends(access.may("read"))) -> Response:
        """Return a deployment."""
        project = project_of(request, context.settings.default_project)
        return json_response(context.store.deployments.get(project, deployment).document())

    def of_build(
        request: Request,
        build: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """List the deployments of a build, oldest first."""
        stored = builds.find(address_of(context, request), build)
        page = context.store.deployments.of_build(
            stored.id, page_size=page_size(request), page_token=parameter(request, "pageToken")
        )
        return _answer(page)

    routes.add_api_route(
        "/deployments",
        listing,
        methods=["GET"],
        openapi_extra=documented(query=(_TARGET, _LATEST, *PAGING)),
    )
    routes.add_api_route("/deployments/{deployment}", get, methods=["GET"])
    routes.add_api_route(
        "/builds/{build}/deployments",
        of_build,
        methods=["GET"],
        openapi_extra=documented(query=(PARENT, *PAGING)),
    )
    return routes


def _answer(page: DeploymentPage) -> Response:
    answer: dict[str, Any] = {"deployments": [one.document() for one in page.deployments]}
    if page.next_page_token:
        answer["nextPageToken"] = page.next_page_token
    return json_response(answer)
