"""What can be done with builds: keep, find, cancel, try again, approve. For routes and pages."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi import Request

from buildrunner.errors import ConfigError, Conflict, NotFound
from buildrunner.server.admission import Arrival, admit, queue_ttl
from buildrunner.server.approvals import refusal
from buildrunner.server.attempts import going_on
from buildrunner.server.errors import (
    already_exists,
    failed_precondition,
    invalid_argument,
    permission_denied,
)
from buildrunner.server.requests import (
    Address,
    address_of,
    flag,
    idempotency_key,
    number,
    parameter,
)
from buildrunner.server.tokens import Caller
from buildrunner.server.trigger_queue import TriggerQueue, reason_of
from buildrunner.spec.decode import decode_message
from buildrunner.spec.encode import encode_instant
from buildrunner.spec.model import Build
from buildrunner.spec.model_results import ApprovalResult, Decision
from buildrunner.store.attempt_labels import FIRST_ATTEMPT, OF_ONE_ATTEMPT
from buildrunner.triggers.labels import NOTHING_TO_BUILD

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.store.stored_build import NewBuild, StoredBuild
    from buildrunner.triggers.trigger_settings import ApprovalPolicy

_SUPERSEDE = ("", "cancel_queued", "cancel_all")


class Builds:
    """Does it.

    Args:
        context: the server's.
    """

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
            "request_id": idempotency_key(request, caller),
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
        if NOTHING_TO_BUILD in old.labels:
            raise failed_precondition(
                f"nobody said what build {old.id} should build: run its trigger"
            )
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
        policy = self._policy(stored, approves=approved)
        refused = refusal(policy, stored.labels, caller.name, approves=approved)
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

    def _policy(self, stored: StoredBuild, *, approves: bool) -> ApprovalPolicy:
        """Return who may approve a build, as its trigger says now.

        Raises:
            ApiError: nobody can tell: the trigger was deleted, or its settings can't be read.
        """
        project, trigger = stored.document["projectId"], stored.document.get("buildTriggerId", "")
        try:
            if trigger and approves:  # its settings, with the approvers, went with it
                self._context.store.get_trigger(project, trigger)
            return TriggerQueue(self._context).settings(project, trigger).approval
        except NotFound:
            raise failed_precondition(
                f"the trigger of build {stored.id} was deleted, and with it who may approve: reject"
                " the build"
            ) from None
        except ConfigError as error:
            raise failed_precondition(
                f"the settings of the trigger of build {stored.id}, which say who may approve,"
                f" can't be read: {reason_of(error)}"
            ) from error


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
