"""The provenance of builds, and the public key that it is signed with."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.logs.files.log_file import log_folder
from buildrunner.provenance.stored import read_attestations
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.requests import address_of
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PARENT, documented
from buildrunner.server.services.builds import Builds

_ENVELOPES = "application/jsonl"
_PEM = "application/x-pem-file"


def router(context: ServerContext) -> APIRouter:
    """The routes. The public key needs no token: whoever verifies an image needs it."""
    access = Access(context)
    builds = Builds(context)
    routes = APIRouter(tags=["more about builds"])

    def provenance(
        request: Request, build: str, _: Caller = Depends(access.may("read"))
    ) -> Response:
        """The signed provenance of what the build published: DSSE envelopes, one a line."""
        stored = builds.find(address_of(context, request), build)
        folder = log_folder(context.data_folder, stored.id)
        return Response(read_attestations(folder, stored.id), media_type=_ENVELOPES)

    def public_key() -> Response:
        """The public key that verifies the provenance of this server's builds, as PEM."""
        return Response(context.provenance_key(), media_type=_PEM)

    routes.add_api_route(
        "/buildrunner/v1/projects/{project}/builds/{build}/provenance",
        provenance,
        methods=["GET"],
        openapi_extra=documented(query=(PARENT,)),
    )
    routes.add_api_route("/buildrunner/v1/provenance-key", public_key, methods=["GET"])
    return routes
