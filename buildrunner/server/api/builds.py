"""Builds: create, get, list, cancel, retry, approve; and their operations, which clients poll.

Each route has two address forms: ``projects/P/builds`` and ``projects/P/locations/L/builds``. They
lead to the same builds; the older form finds a build by its id in any location.

Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.builds and
https://cloud.google.com/build/docs/api/reference/rest/v1/operations
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import (
    as_requested,
    build_of_operation,
    build_response,
    id_of_operation,
    json_response,
    operation_response,
    shown_build,
)
from buildrunner.server.http.bodies import (
    READ_SLOT,
    SEARCH_SLOT,
    as_mapping,
    build_body,
    json_body,
    member,
)
from buildrunner.server.http.errors import (
    failed_precondition,
    invalid_argument,
    invalid_config,
    permission_denied,
)
from buildrunner.server.http.requests import (
    address_of,
    flag,
    idempotency_key,
    number,
    page_size,
    parameter,
)
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import (
    GROUP,
    PAGING,
    PARENT,
    PRIORITY,
    PUSH,
    REQUEST_ID,
    SUPERSEDE,
    Parameter,
    documented,
)
from buildrunner.server.services.approval_facts import approval_facts
from buildrunner.server.services.builds import BuildOptions, Builds
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.results import ApprovalResult, Decision
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.builds import StoredBuild

_FORMS = ("/v1/projects/{project}/builds", "/v1/projects/{project}/locations/{location}/builds")

_PACKAGES = ("pythonPackages", "mavenArtifacts", "goModules", "npmPackages")
_SUPERSEDE = ("", "cancel_queued", "cancel_all")
_FILTER = Parameter("filter", "string", """Which builds, such as status="FAILURE".""")
_FROM_STEP = Parameter("fromStep", "string", "Id or index of the step to resume from.")

_DEPLOYMENT = Parameter("deployment", "string", "Id of a deployment of the build to roll back to.")


def router(context: ServerContext) -> APIRouter:
    """Return the routes of builds."""
    access = Access(context)
    body_of = build_body(context)
    builds = Builds(context)
    routes = APIRouter(tags=["builds"])

    def create(
        request: Request,
        caller: Caller = Depends(access.may("submit", "builds.create")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Queue a build."""
        address = address_of(context, request)
        stored = builds.create(address, _build_in(body), _options(request, caller), caller)
        note_target(request, address.project, stored.id)
        return operation_response(request, stored.document)

    def listing(request: Request) -> Response:
        """List builds, newest first."""
        address = address_of(context, request)
        page = context.store.builds.page(
            address.project,
            location=None if address.any_location else address.location,
            filter=parameter(request, "filter"),
            page_size=page_size(request),
            page_token=parameter(request, "pageToken"),
        )
        answer: dict[str, Any] = {
            "builds": [as_requested(request, Build, shown_build(b.document)) for b in page.builds]
        }
        if page.next_page_token:
            answer["nextPageToken"] = page.next_page_token
        return json_response(answer)

    def get(
        request: Request,
        build: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Return a build."""
        return build_response(request, builds.find(address_of(context, request), build).document)

    def cancel(
        request: Request,
        build: str,
        caller: Caller = Depends(access.may("submit", "builds.cancel")),
        body: Any = Depends(body_of),  # noqa: ARG001  (read, so that the connection stays open)
    ) -> Response:
        """Stop a running build, or remove a waiting build from the queue."""
        stored = builds.find(address_of(context, request), build)
        note_target(request, stored.document["projectId"], build)
        return build_response(request, builds.cancel(stored, caller).document)

    def retry(
        request: Request,
        build: str,
        caller: Caller = Depends(access.may("submit", "builds.retry")),
        body: Any = Depends(body_of),  # noqa: ARG001  (read, so that the connection stays open)
    ) -> Response:
        """Queue a new build from the request of an old one.

        With ``fromStep`` (id or index of a step) it resumes from that step. Steps that succeeded
        before do not run again, and the workspace is as the old build left it. With ``deployment``
        (id of a deployment of the build) it rolls back to that: the step that deployed runs alone.
        """
        old = builds.find(address_of(context, request), build)
        deployment = parameter(request, "deployment")
        if deployment and parameter(request, "fromStep"):
            raise invalid_argument("give fromStep or deployment, not both", field="deployment")
        project = old.document["projectId"]
        rollback = context.store.deployments.get(project, deployment) if deployment else None
        options = BuildOptions(
            request_id=idempotency_key(request, caller), supersede=_supersede(request)
        )
        new = builds.retry(old, options, caller, parameter(request, "fromStep"), rollback)
        note_target(request, new.document["projectId"], build, new.id)
        return operation_response(request, new.document)

    def approve(
        request: Request,
        build: str,
        caller: Caller = Depends(access.may("approve", "builds.approve")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Approve or reject a build that waits for an approval."""
        stored = builds.find(address_of(context, request), build)
        note_target(request, stored.document["projectId"], build)
        decided = builds.decide(stored, _decision(body), caller)
        return operation_response(request, decided.document)

    for form in _FORMS:
        routes.add_api_route(
            form,
            create,
            methods=["POST"],
            openapi_extra=documented(
                body="Build",
                answer="Operation",
                query=(PARENT, REQUEST_ID, PUSH, PRIORITY, *GROUP, SUPERSEDE),
            ),
        )
        routes.add_api_route(
            form,
            listing,
            methods=["GET"],
            dependencies=[Depends(access.may("read")), SEARCH_SLOT],
            openapi_extra=documented(answer="ListBuildsResponse", query=(PARENT, _FILTER, *PAGING)),
        )
        routes.add_api_route(
            form + "/{build}:cancel",
            cancel,
            methods=["POST"],
            openapi_extra=documented(body="Empty", answer="Build", query=(PARENT,)),
        )
        routes.add_api_route(
            form + "/{build}:retry",
            retry,
            methods=["POST"],
            openapi_extra=documented(
                body="Empty",
                answer="Operation",
                query=(PARENT, REQUEST_ID, SUPERSEDE, _FROM_STEP, _DEPLOYMENT),
            ),
        )
        routes.add_api_route(
            form + "/{build}:approve",
            approve,
            methods=["POST"],
            openapi_extra=documented(
                body="ApproveBuildRequest", answer="Operation", query=(PARENT,)
            ),
        )
        routes.add_api_route(
            form + "/{build}",
            get,
            methods=["GET"],
            openapi_extra=documented(answer="Build", query=(PARENT,)),
        )
    return routes


def own_router(context: ServerContext) -> APIRouter:
    """Routes that Cloud Build does not have; those of the log and the events are in `logs`."""
    access = Access(context)
    builds = Builds(context)
    routes = APIRouter(
        prefix="/buildrunner/v1/projects/{project}/builds/{build}", tags=["more about builds"]
    )

    reading = [Depends(access.may("read")), READ_SLOT]

    def plan(request: Request, build: str) -> Response:
        """Return the compiled plan: final arguments, environment and edges, without secrets."""
        found = context.store.builds.plan(builds.find(address_of(context, request), build).id)
        if found is None:
            raise NotFound(f"build {build} has no plan yet")
        return Response(found, media_type="application/json")

    def waiting(request: Request, build: str) -> Response:
        """Return the reason why a build waits; empty if it has started."""
        stored = builds.find(address_of(context, request), build)
        reason = context.why_waiting(stored.id)
        return json_response({} if reason is None else msgspec.structs.asdict(reason))

    def approval(request: Request, build: str) -> Response:
        """Return the author of the code, the rights that an approval grants, and the decision."""
        facts = approval_facts(builds.find(address_of(context, request), build))
        return json_response(msgspec.to_builtins(facts))

    def artifacts(request: Request, build: str) -> Response:
        """List the images and files that the build pushed and uploaded."""
        return json_response(
            {"artifacts": made_by(builds.find(address_of(context, request), build).document)}
        )

    def delete(
        request: Request,
        build: str,
        _: Caller = Depends(access.may("admin", "builds.delete")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Delete a build that has ended, with its log, events and kept workspace."""
        stored = builds.find(address_of(context, request), build)
        project = stored.document["projectId"]
        note_target(request, project, build)
        try:
            context.store.retention.delete(project, stored.id, now=context.clock())
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        return json_response({})

    routes.add_api_route("", delete, methods=["DELETE"], openapi_extra=documented(query=(PARENT,)))
    for route in (plan, waiting, approval, artifacts):
        routes.add_api_route(
            f"/{route.__name__}",
            route,
            methods=["GET"],
            dependencies=reading,
            openapi_extra=documented(query=(PARENT,)),
        )
    return routes


def _options(request: Request, caller: Caller) -> BuildOptions:
    """Return buildrunner's own parameters of a request that makes a build.

    Raises:
        ApiError: a parameter has an invalid value.
    """
    return BuildOptions(
        supersede=_supersede(request),
        request_id=idempotency_key(request, caller),
        priority=number(request, "priority", low=-1000, high=1000),
        group=parameter(request, "group"),
        group_limit=number(request, "groupLimit", low=0, high=1000),
        push=flag(request, "push", default=True),
    )


def _supersede(request: Request) -> str:
    given = parameter(request, "supersede")
    if given not in _SUPERSEDE:
        message = f"supersede takes cancel_queued or cancel_all, not {given}"
        raise invalid_argument(message, field="supersede")
    return given


def _build_in(body: Any) -> dict[str, Any]:
    """Return the build in a body, which is the body itself."""
    build = as_mapping(body)
    if not build:
        raise invalid_argument("no build field was provided", field="build")
    return build


def _decision(body: Any) -> ApprovalResult:
    """Return the decision in a request to approve.

    Raises:
        ApiError: the body has no decision, or the decision can't be read.
    """
    result = member(as_mapping(body), "approvalResult")
    loaded = decode_message(ApprovalResult, result, outputs=False)
    if not loaded.ok:
        raise invalid_config(loaded.problems, prefix="approvalResult.")
    if loaded.value.decision is Decision.DECISION_UNSPECIFIED:
        message = "approvalResult.decision is required: APPROVED or REJECTED"
        raise invalid_argument(message, field="approvalResult.decision")
    return loaded.value


def made_by(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all artifacts in a build's results, each with its kind."""
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


_REGIONAL_OPERATION = "/v1/projects/{project}/locations/{location}/operations/{operation}"


def operations_router(context: ServerContext) -> APIRouter:
    """Return the routes of operations."""
    access = Access(context)
    body_of = json_body(context)
    routes = APIRouter(tags=["operations"])

    def found(request: Request, caller: Caller, scope: str) -> StoredBuild:
        stored = _build_of(context, request)
        project = stored.document["projectId"]
        if not caller.may(scope, project):
            if project not in caller.projects:  # as for an operation that does not exist
                raise NotFound(f"there is no build {stored.id} here")
            raise permission_denied(f"token {caller.name} needs scope {scope} for this project")
        return stored

    def get(
        request: Request,
        caller: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Return the operation of a build, which is done when the build has ended."""
        return operation_response(request, found(request, caller, "read").document)

    def cancel(
        request: Request,
        caller: Caller = Depends(access.may("submit", "operations.cancel")),
        body: Any = Depends(body_of),  # noqa: ARG001  (read, so that the connection stays open)
        _slot: None = READ_SLOT,
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
            return json_response({})  # as for any operation, a late cancel is no error
        context.wake()
        return json_response({})

    for form in ("/v1/operations/{operation:path}", _REGIONAL_OPERATION):
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


def _build_of(context: ServerContext, request: Request) -> StoredBuild:
    name: str = request.path_params["operation"]
    project = request.path_params.get("project")
    if project is not None:
        return context.store.builds.get(project, id_of_operation(name))
    place = build_of_operation(name)
    if place is None:
        raise NotFound(f"there is no operation {name}")
    return context.store.builds.get(*place)
