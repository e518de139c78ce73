"""Worker pools in the form of Cloud Build: a build's ``options.pool.name`` selects one of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.requests import address_of
from buildrunner.server.openapi import PARENT, documented

_FORMS = (
    "/v1/projects/{project}/workerPools",
    "/v1/projects/{project}/locations/{location}/workerPools",
)


def router(context: ServerContext) -> APIRouter:
    """Return the routes of pools. Pools are the same for all locations."""
    access = Access(context)
    routes = APIRouter(tags=["worker pools"])
    may_read = [Depends(access.may("read"))]

    def pools(request: Request) -> set[str]:
        """Return the pools of the settings and of workers that the project may use."""
        project = address_of(context, request).project
        own = {name for name in context.pools if context.may_use_pool(name, project)}
        return own | context.store.tokens.pools(project)

    def shown(request: Request, name: str) -> dict[str, Any]:
        address = address_of(context, request)
        location = "global" if address.any_location else address.location
        path = f"projects/{address.project}/locations/{location}/workerPools/{name}"
        return {"name": path, "displayName": name, "state": "RUNNING"}

    def list_pools(request: Request) -> Response:
        """List the pools that ``options.pool.name`` may select."""
        return json_response(
            {"workerPools": [shown(request, one) for one in sorted(pools(request))]}
        )

    def get_pool(request: Request, pool: str) -> Response:
        """Return a pool."""
        if pool not in pools(request):
            raise NotFound(f"this server has no worker pool {pool}")
        return json_response(shown(request, pool))

    for form in _FORMS:
        for path, answer in ((form, list_pools), (f"{form}/{{pool}}", get_pool)):
            routes.add_api_route(
                path,
                answer,
                methods=["GET"],
                dependencies=may_read,
                openapi_extra=documented(query=(PARENT,)),
            )
    return routes
