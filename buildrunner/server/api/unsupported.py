"""Routes of Cloud Build for resources that this server does not have.

The default service account can be read, and `pools` lists worker pools. The other methods and
resources are refused with the reason.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import unimplemented
from buildrunner.server.http.requests import address_of
from buildrunner.server.openapi import documented

WORKER_POOLS: Final = "workerPools"
_METHODS: Final = (
    (["GET", "DELETE"], documented()),
    (["POST", "PATCH"], documented(body="Empty")),
)
_REASONS: Final = {
    WORKER_POOLS: "a pool is changed in the settings of the server",
    "githubEnterpriseConfigs": "connections to forges are made in the triggers of this server",
    "bitbucketServerConfigs": "connections to forges are made in the triggers of this server",
    "gitLabConfigs": "connections to forges are made in the triggers of this server",
    "installations": "GitHub App installations belong to Google's own app",
    "connectedRepositories": "connections to forges are made in the triggers of this server",
}


def router(context: ServerContext) -> APIRouter:
    """Return the routes that refuse requests, and the route of the default service account."""
    access = Access(context)
    routes = APIRouter(tags=["not supported"])
    may_read = [Depends(access.may("read"))]

    def default_service_account(request: Request) -> Response:
        """Return a default service account, which clients request; it has no rights."""
        address = address_of(context, request)
        email = f"buildrunner@{address.project}.local"
        where = f"projects/{address.project}/locations/{address.location}"
        answer = {"name": f"{where}/defaultServiceAccount", "serviceAccountEmail": email}
        return json_response(answer)

    path = "/v1/projects/{project}/locations/{location}/defaultServiceAccount"
    routes.add_api_route(path, default_service_account, methods=["GET"], dependencies=may_read)

    for kind, reason in _REASONS.items():
        refuse = _refusal(kind, reason)
        shown = f"/v1/projects/{{project}}/locations/{{location}}/{kind}"
        older = f"/v1/projects/{{project}}/{kind}"
        for methods, extra in _METHODS:
            # `pools` has the route that lists pools.
            refused = [one for one in methods if (kind, one) != (WORKER_POOLS, "GET")]
            routes.add_api_route(
                shown, refuse, methods=refused, dependencies=may_read, openapi_extra=extra
            )
        for path in (f"{shown}/{{rest:path}}", older, f"{older}/{{rest:path}}"):
            routes.add_api_route(
                path,
                refuse,
                methods=["GET", "DELETE", "POST", "PATCH"],
                dependencies=may_read,
                include_in_schema=False,
            )
    return routes


def _refusal(kind: str, reason: str) -> Any:
    def refuse() -> Response:
        raise unimplemented(f"{kind} are not supported: {reason}")

    refuse.__doc__ = f"Not supported: {reason}."
    refuse.__name__ = f"refuse_{kind}"
    return refuse
