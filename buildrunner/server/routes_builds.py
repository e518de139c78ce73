"""Builds: create, get, list, cancel, retry, approve.

Each route has two address forms: ``projects/P/builds`` and ``projects/P/locations/L/builds``. They
lead to the same builds; the older form finds a build by its id in any location.

Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.builds
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.access import Access, note_target
from buildrunner.server.admission import Arrival, admit, queue_ttl
from buildrunner.server.answers import (
    as_asked,
    build_response,
    json_response,
    operation_response,
    shown_build,
)
from buildrunner.server.approvals import refusal
from buildrunner.server.attempts import going_on
from buildrunner.server.errors import (
    already_exists,
    failed_precondition,
    invalid_argument,
    invalid_config,
    permission_denied,
)
from buildrunner.server.requests import (
    Address,
    address_of,
    as_mapping,
    flag,
    json_body,
    member,
    number,
    page_size,
    parameter,
)
from buildrunner.server.tokens import Caller
from buildrunner.server.trigger_queue import TriggerQueue
from buildrunner.spec.decode import decode_message
from buildrunner.spec.encode import encode_instant
from buildrunner.spec.model import Build
from buildrunner.spec.model_results import ApprovalResult, Decision
from buildrunner.store.attempt_labels import FIRST_ATTEMPT, OF_ONE_ATTEMPT

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.store.stored_build import NewBuild, StoredBuild

_FORMS = ("/v1/projects/{project}/builds", "/v1/projects/{project}/locations/{location}/builds")
_SUPERSEDE = ("", "cancel_queued", "cancel_all")


def router(context: ServerContext) -> APIRouter:
    """The routes of builds."""
    access = Access(context)
    body_of = json_body(context)
    builds = Builds(context)
    routes = APIRouter(tags=["builds"])

    def create(
        request: Request,
        caller: Caller = Depends(access.may("submit", "builds.create")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Queue a build."""
        address = address_of(context, request)
        arrival = builds.arrival(request, address, caller)
        stored = builds.keep(admit(_build_in(body), arrival))
        note_target(request, address.project, stored.id)
        return operation_response(request, stored.document)

    def listing(request: Request, _: Caller = Depends(access.may("read"))) -> Response:
        """The newest builds first."""
        address = address_of(context, request)
        page = context.store.list_builds(
            address.project,
            location=None if address.any_location else address.location,
            filter=parameter(request, "filter"),
            page_size=page_size(request),
            page_token=parameter(request, "pageToken"),
        )
        answer: dict[str, Any] = {
            "builds": [as_asked(request, Build, shown_build(b.document)) for b in page.builds]
        }
        if page.next_page_token:
            answer["nextPageToken"] = page.next_page_token
        return json_response(answer)

    def get(request: Request, build: str, _: Caller = Depends(access.may("read"))) -> Response:
        """One build."""
        return build_response(request, builds.find(request, build).document)

    def cancel(
        request: Request,
        build: str,
        _: Caller = Depends(access.may("submit", "builds.cancel")),
        body: Any = Depends(body_of),  # noqa: ARG001  (read, so that the connection goes on)
    ) -> Response:
        """Stop a build, or take it out of the queue."""
        stored = builds.find(request, build)
        note_target(request, stored.document["projectId"], build)
        return build_response(request, builds.cancel(stored).document)

    def retry(
        request: Request,
        build: str,
        caller: Caller = Depends(access.may("submit", "builds.retry")),
        body: Any = Depends(body_of),  # noqa: ARG001  (read, so that the connection goes on)
    ) -> Response:
        """Queue a new build from the request of an old one.

        With ``fromStep`` (id or index of a step) it goes on from there: what succeeded before does
        not run again, and the workspace is as the old build left it.
        """
        old = builds.find(request, build)
        new = builds.retry(request, old, caller, parameter(request, "fromStep"))
        note_target(request, new.document["projectId"], build, new.id)
        return operation_response(request, new.document)

    def approve(
        request: Request,
        build: str,
        caller: Caller = Depends(access.may("approve", "builds.approve")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Approve or reject a build that waits for it."""
        stored = builds.find(request, build)
        note_target(request, stored.document["projectId"], build)
        decided = builds.decide(stored, _decision(body), caller)
        return operation_response(request, decided.document)

    for form in _FORMS:
        routes.add_api_route(form, create, methods=["POST"])
        routes.add_api_route(form, listing, methods=["GET"])
        routes.add_api_route(form + "/{build}:cancel", cancel, methods=["POST"])
        routes.add_api_route(form + "/{build}:retry", retry, methods=["POST"])
        routes.add_api_route(form + "/{build}:approve", approve, methods=["POST"])
        routes.add_api_route(form + "/{build}", get, methods=["GET"])
    return routes


class Builds:
    """What can be done with builds, for the routes of builds and of triggers."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def arrival(self, request: Request, address: Address, caller: Caller, **facts: Any) -> Arrival:
        """The circumstances of a request that makes a build.

        Beside Cloud Build's own parameters these are understood: ``requestId``, ``push``,
        ``priority``, ``group``, ``groupLimit``, ``supersede``.

        Raises:
            ApiError: a parameter has a value that it can't have.
        """
        settings = self._context.settings
        if address.any_location:
            raise invalid_argument("a build needs one location, not -", field="location")
        supersede = parameter(request, "supersede")
        if supersede not in _SUPERSEDE:
            message = f"supersede takes cancel_queued or cancel_all, not {supersede}"
            raise invalid_argument(message, field="supersede")
        given = {
            "worker": settings.worker,
            "request_id": parameter(request, "requestId"),
            "priority": number(request, "priority", low=-1000, high=1000),
            "group": parameter(request, "group"),
            "group_limit": number(request, "groupLimit", low=0, high=1000),
            "supersede": supersede,
            "push": flag(request, "push", default=True),
        }
        labels = {"submitter": caller.name, **facts.pop("labels", {})}
        return Arrival(
            build_id=self._context.new_id(),
            project=address.project,
            location=address.location,
            now=self._context.clock(),
            public_url=settings.public_url,
            policy=settings.sources,
            labels=labels,
            **{**given, **facts},
        )

    def keep(self, new: NewBuild) -> StoredBuild:
        """Put a build into the queue (or wait for its approval), and wake the worker."""
        try:
            stored = self._context.store.create_build(new)
        except Conflict as error:
            raise already_exists(str(error)) from error
        if stored.document["id"] == new.document["id"]:
            self._context.metrics.build_created()
        self._context.wake()
        return stored

    def find(self, request: Request, build_id: str) -> StoredBuild:
        """The build that a path names.

        Raises:
            NotFound: there is none, or it is in another location.
        """
        address = address_of(self._context, request)
        stored = self._context.store.get_build(address.project, build_id)
        if address.regional and not address.any_location and stored.location != address.location:
            raise NotFound(f"build {build_id} is in {stored.location}, not in {address.location}")
        return stored

    def cancel(self, stored: StoredBuild) -> StoredBuild:
        """See `ServerStore.request_cancel`.

        Raises:
            ApiError: it has ended.
        """
        project = stored.document["projectId"]
        try:
            cancelled = self._context.store.request_cancel(
                project, stored.id, now=self._context.clock()
            )
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        self._context.wake()
        return cancelled

    def retry(
        self, request: Request, old: StoredBuild, caller: Caller, from_step: str = ""
    ) -> StoredBuild:
        """A new build from an old one's request; of a trigger's build on the same revision.

        Args:
            request: the request.
            old: the build to try again.
            caller: who wants it.
            from_step: id or index of a step of the old build: what succeeded before it does not run
                again, and the workspace is as the old build left it. Empty for a whole build.

        Raises:
            ApiError: the old one still waits for its approval, or can't be gone on with.
            ConfigError: it would not be accepted any more.
        """
        if old.status == "PENDING":
            raise failed_precondition(f"build {old.id} still waits for its approval")
        document = old.document
        first = old.labels.get(FIRST_ATTEMPT, old.id)
        labels = {name: text for name, text in old.labels.items() if name not in OF_ONE_ATTEMPT}
        if from_step:
            if not self._context.workspace_is_kept(old.id):
                raise failed_precondition(
                    f"the workspace of build {old.id} is not kept: only that of a build in which a"
                    " step failed is, while there is room for it"
                )
            labels |= going_on(old, from_step)
        approval = document.get("approval", {}).get("config", {}).get("approvalRequired", False)
        address = Address(document["projectId"], old.location, regional=True)
        arrival = self.arrival(
            request,
            address,
            caller,
            trigger_id=document.get("buildTriggerId", ""),
            approval=approval,
            labels={**labels, "submitter": caller.name, "retry_of": old.id, FIRST_ATTEMPT: first},
            attempt_of=first,
            is_tied=bool(from_step),
            priority=old.priority,
            group=old.group,
            group_limit=old.group_limit,
            push=old.push,
            untrusted=old.untrusted,
            worker=old.only_worker or self._context.settings.worker,
        )
        request_again = _same_revision(old, always=bool(from_step))
        return self.keep(admit(request_again, arrival))

    def decide(self, stored: StoredBuild, decision: ApprovalResult, caller: Caller) -> StoredBuild:
        """Approve or reject.

        Raises:
            ApiError: the build does not wait for it, or its trigger lets others decide.
        """
        approved = decision.decision is Decision.APPROVED
        now = self._context.clock()
        trigger = stored.document.get("buildTriggerId", "")
        settings = TriggerQueue(self._context).settings(stored.document["projectId"], trigger)
        refused = refusal(settings.approval, stored.labels, caller.name, approves=approved)
        if refused:
            raise permission_denied(refused)
        document = _decided(stored.document, decision, caller, now)
        build = decode_message(Build, stored.request).value
        try:
            decided = self._context.store.decide_approval(
                document["projectId"],
                stored.id,
                document,
                approved=approved,
                expires_at=now + queue_ttl(build),
            )
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        self._context.wake()
        return decided


def _build_in(body: Any) -> dict[str, Any]:
    """The build of a body: the body itself."""
    build = as_mapping(body)
    if not build:
        raise invalid_argument("no build field was provided", field="build")
    return build


def _same_revision(old: StoredBuild, *, always: bool) -> dict[str, Any]:
    """The request of a build; a trigger's build is tied to the commit that was built.

    Source: the API's text of ``retry``.
    """
    resolved = old.document.get("sourceProvenance", {})
    if not always and not old.document.get("buildTriggerId"):
        return old.request
    for name, kind in (
        ("gitSource", "resolvedGitSource"),
        ("repoSource", "resolvedRepoSource"),
        ("connectedRepository", "resolvedConnectedRepository"),
    ):
        if kind in resolved and name in old.request.get("source", {}):
            return {**old.request, "source": {name: resolved[kind]}}
    return old.request


def _decision(body: Any) -> ApprovalResult:
    """The decision in a request to approve.

    Raises:
        ApiError: there is none, or it can't be read.
    """
    result = member(as_mapping(body), "approvalResult")
    loaded = decode_message(ApprovalResult, result, outputs=False)
    if not loaded.ok:
        raise invalid_config(loaded.problems, prefix="approvalResult.")
    if loaded.value.decision is Decision.DECISION_UNSPECIFIED:
        message = "approvalResult.decision is required: APPROVED or REJECTED"
        raise invalid_argument(message, field="approvalResult.decision")
    return loaded.value


def _decided(
    document: dict[str, Any], decision: ApprovalResult, caller: Caller, now: datetime
) -> dict[str, Any]:
    approved = decision.decision is Decision.APPROVED
    result: dict[str, Any] = {
        "approverAccount": caller.name,
        "approvalTime": encode_instant(now),
        "decision": decision.decision.name,
    }
    result |= {k: v for k, v in (("comment", decision.comment), ("url", decision.url)) if v}
    state = "APPROVED" if approved else "REJECTED"
    decided = {**document, "status": "QUEUED" if approved else "CANCELLED"}
    decided["approval"] = {**document.get("approval", {}), "state": state, "result": result}
    if not approved:
        decided["statusDetail"] = f"rejected by {caller.name}"
        decided["finishTime"] = encode_instant(now)
    return decided
