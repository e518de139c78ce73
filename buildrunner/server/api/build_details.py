"""Our own routes of builds: the plan, why a build waits, its approval, what it made, deletion."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import failed_precondition
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PARENT, documented
from buildrunner.server.services.approval_facts import approval_facts
from buildrunner.server.services.builds import Builds

_PACKAGES = ("pythonPackages", "mavenArtifacts", "goModules", "npmPackages")


def router(context: ServerContext) -> APIRouter:
    """The routes; the log and the events are in `routes_logs`."""
    access = Access(context)
    builds = Builds(context)
    routes = APIRouter(
        prefix="/buildrunner/v1/projects/{project}/builds/{build}", tags=["more about builds"]
    )

    def plan(request: Request, build: str, _: Caller = Depends(access.may("read"))) -> Response:
        """The compiled plan: final arguments, environment, edges; no secret is in it."""
        found = context.store.builds.plan(builds.find(request, build).id)
        if found is None:
            raise NotFound(f"build {build} has no plan yet")
        return Response(found, media_type="application/json")

    def waiting(request: Request, build: str, _: Caller = Depends(access.may("read"))) -> Response:
        """Why the build has not begun; empty when it has."""
        stored = builds.find(request, build)
        reason = context.why_waiting(stored.id)
        return json_response({} if reason is None else msgspec.structs.asdict(reason))

    def approval(request: Request, build: str, _: Caller = Depends(access.may("read"))) -> Response:
        """Whose code waits for an approval, what that grants, and who decided."""
        facts = approval_facts(builds.find(request, build))
        return json_response(msgspec.to_builtins(facts))

    def artifacts(
        request: Request, build: str, _: Caller = Depends(access.may("read"))
    ) -> Response:
        """The images and files that the build pushed and uploaded."""
        return json_response({"artifacts": made_by(builds.find(request, build).document)})

    def delete(
        request: Request,
        build: str,
        _: Caller = Depends(access.may("admin", "builds.delete")),
    ) -> Response:
        """Delete a build that has ended, with its log, events and kept workspace."""
        stored = builds.find(request, build)
        project = stored.document["projectId"]
        note_target(request, project, build)
        try:
            context.store.retention.delete(project, stored.id, now=context.clock())
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        return json_response({})

    routes.add_api_route("", delete, methods=["DELETE"], openapi_extra=documented(query=(PARENT,)))
    routes.add_api_route("/plan", plan, methods=["GET"], openapi_extra=documented(query=(PARENT,)))
    routes.add_api_route(
        "/waiting", waiting, methods=["GET"], openapi_extra=documented(query=(PARENT,))
    )
    routes.add_api_route(
        "/approval", approval, methods=["GET"], openapi_extra=documented(query=(PARENT,))
    )
    routes.add_api_route(
        "/artifacts", artifacts, methods=["GET"], openapi_extra=documented(query=(PARENT,))
    )
    return routes


def made_by(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that a build's results name, each with its kind."""
    results = document.get("results", {})
    made: list[dict[str, Any]] = [
        {"kind": "image", "name": image.get("name", ""), "digest": image.get("digest", "")}
        for image in results.get("images", [])
    ]
    for kind in _PACKAGES:
        made += [
            {"kind": kind, "name": package.get("uri", "")} for package in results.get(kind, [])
        ]
    manifest = results.get("artifactManifest")
    if manifest:
        count = results.get("numArtifacts", "0")
        made.append({"kind": "objects", "name": manifest, "count": count})
    return made
