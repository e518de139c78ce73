"""Operations: what the clients poll while a build runs.

Source: https://cloud.google.com/build/docs/api/reference/rest/v1/operations
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import (
    build_of_operation,
    id_of_operation,
    json_response,
    operation_response,
)
from buildrunner.server.http.errors import permission_denied
from buildrunner.server.http.requests import json_body
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import documented
from buildrunner.store.model.builds import StoredBuild

_REGIONAL = "/v1/projects/{project}/locations/{location}/operations/{operation}"


def router(context: ServerContext) -> APIRouter:
    """The routes of operations."""
    access = Access(context)
    body_of = json_body(context)
    routes = APIRouter(tags=["operations"])

    def found(request: Request, caller: Caller, scope: str) -> StoredBuild:
        stored = _find(context, request)
        project = stored.document["projectId"]
        if not caller.may(scope, project):
            if project not in caller.projects:  # as for an operation that does not exist
                raise NotFound(f"there is no build {stored.id} here")
            raise permission_denied(f"token {caller.name} needs scope {scope} for this project")
        return stored

    def get(request: Request, caller: Caller = Depends(access.may("read"))) -> Response:
        """Return the operation of a build, which is done when the build has ended."""
        return operation_response(request, found(request, caller, "read").document)

    def cancel(
        request: Request,
        caller: Caller = Depends(access.may("submit", "operations.cancel")),
        body: Any = Depends(body_of),  # noqa: ARG001  (read, so that the connection goes on)
    ) -> Response:
        """Cancel the build of an operation. No effect if the build has ended."""
        stored = found(request, caller, "submit")
        project = stored.document["projectId"]
        note_target(request, project, stored.id)
        try:
            context.store.builds.request_cancel(
                project, stored.id, now=context.clock(), reason=f"cancelled by {caller.name}"
            )
        except Conflict:
            return json_response({})  # as for any operation: too late is no error
        context.wake()
        return json_response({})

    for form in ("/v1/operations/{operation:path}", _REGIONAL):
        routes.add_api_route(
            form + ":cancel",
            cancel,
            methods=["POST"],
            openapi_extra=documented(body="Empty", answer="Empty"),
        )
        routes.add_api_route(
            form, get, methods=["GET"], openapi_extra=documented(answer="Operation")
        )
    return routes


def _find(context: ServerContext, request: Request) -> StoredBuild:
    name: str = request.path_params["operation"]
    project = request.path_params.get("project")
    if project is not None:
        return context.store.builds.get(project, id_of_operation(name))
    place = build_of_operation(name)
    if place is None:
        raise NotFound(f"there is no operation {name}")
    return context.store.builds.get(*place)
