"""Operations on builds, for routes and pages: create, find, cancel, retry, approve."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import msgspec

from buildrunner.errors import ConfigError, Conflict, NotFound, UsageError
from buildrunner.plan.pinned_images import is_pinned
from buildrunner.plan.selection import reused_steps
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import (
    already_exists,
    failed_precondition,
    invalid_argument,
    permission_denied,
)
from buildrunner.server.http.requests import Address
from buildrunner.server.http.tokens import Caller
from buildrunner.server.loop import Loop
from buildrunner.server.services.authorship import SUBMITTER, caller_alone, people_of
from buildrunner.server.services.queueing import (
    Arrival,
    TriggerQueue,
    arrival,
    expires_at,
    known_settings,
    queue_build,
    reason_of,
)
from buildrunner.server.services.triggers import known_trigger
from buildrunner.spec.model.build import FINAL_STATUSES, Build
from buildrunner.spec.model.results import ApprovalResult, Decision
from buildrunner.spec.model.source import Source
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import ListedBuild, StoredBuild
from buildrunner.store.model.deployments import RecordedDeployment
from buildrunner.store.records import (
    FIRST_ATTEMPT,
    FROM_BUILD,
    FROM_STEP,
    OF_ONE_ATTEMPT,
    PINNED_IMAGES,
    REUSED_STEPS,
    ROLLBACK_STEP,
    ROLLBACK_TO,
)
from buildrunner.triggers.forge_host import repository_key
from buildrunner.triggers.labels import NOTHING_TO_BUILD
from buildrunner.triggers.repository import Revision, source_of
from buildrunner.triggers.settings import ApprovalPolicy, TriggerSettings

_COMMIT: Final = re.compile("[0-9a-f]{40}")


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a request that makes a build, besides Cloud Build's own; see `NewBuild`.

    Attributes:
        request_id: idempotency key; empty for none.
        priority, group, group_limit, push: see `NewBuild`.
        supersede: ``cancel_queued`` or ``cancel_all``; empty for none.
    """

    request_id: str = ""
    priority: int = 0
    group: str = ""
    group_limit: int = 0
    supersede: str = ""
    push: bool = True


class Builds:
    """Operations on builds, for routes and pages. Thread-safe.

    Args:
        context: the server's context.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def create(
        self, address: Address, body: Any, options: BuildOptions, caller: Caller
    ) -> StoredBuild:
        """Queue a caller's build.

        Raises:
            ApiError: the address names no location, or the request id is another build's.
            ConfigError: the build can't run.
        """
        if address.any_location:
            raise invalid_argument("a build needs one location, not -", field="location")
        at = arrival(
            self._context,
            address.project,
            address.location,
            labels={SUBMITTER: caller.name, **caller_alone(caller.name).labels()},
            **msgspec.structs.asdict(options),
        )
        return self._queued(body, at)

    def _queued(self, body: Any, at: Arrival) -> StoredBuild:
        try:
            return queue_build(self._context, body, at)
        except Conflict as error:
            raise already_exists(str(error)) from error

    def find(self, address: Address, build_id: str) -> StoredBuild:
        """Return a build of a project, in any location if the address names none.

        Raises:
            NotFound: the project has no such build, or it is in another location.
        """
        stored = self._context.store.builds.get(address.project, build_id)
        if address.regional and not address.any_location and stored.location != address.location:
            raise NotFound(f"build {build_id} is in {stored.location}, not in {address.location}")
        return stored

    def cancel(self, stored: StoredBuild, caller: Caller) -> StoredBuild:
        """Cancel a build that has not ended.

        Raises:
            ApiError: the build has ended.
        """
        project = stored.document["projectId"]
        try:
            cancelled = self._context.store.builds.request_cancel(
                project,
                stored.id,
                now=self._context.clock(),
                reason=f"cancelled by {caller.name}",
            )
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        self._context.wake()
        return cancelled

    def retry(
        self,
        old: StoredBuild,
        options: BuildOptions,
        caller: Caller,
        from_step: str = "",
        deployment: RecordedDeployment | None = None,
    ) -> StoredBuild:
        """Queue a new build from an old one's request; a trigger's build on the same revision.

        Args:
            old: the build to retry.
            options: only the request id and ``supersede`` count; the rest is the old build's.
            caller: the authenticated caller.
            from_step: id or index of a step of the old build. Steps that succeeded before it do
                not run again, and the workspace is as the old build left it. Empty runs all steps.
            deployment: a deployment of the old build to roll back to. Only its step runs again, on
                the workspace that the old build left, with the images that the step deployed.

        Raises:
            ApiError: the old build still waits for its approval, or can't be resumed.
            ConfigError: the build would be refused today.
        """
        if old.status == "PENDING":
            raise failed_precondition(f"build {old.id} still waits for its approval")
        if NOTHING_TO_BUILD in old.labels:
            raise failed_precondition(
                f"build {old.id} has neither steps nor a config: run its trigger again"
            )
        document = old.document
        is_tied = bool(from_step or deployment)
        first = old.labels.get(FIRST_ATTEMPT, old.id)
        labels = {name: text for name, text in old.labels.items() if name not in OF_ONE_ATTEMPT}
        if from_step or deployment:
            self._check_workspace(old)
            labels |= going_on(old, from_step) if deployment is None else roll_back(old, deployment)
        approval = document.get("approval", {}).get("config", {}).get("approvalRequired", False)
        approval = approval or self._wants_approval(document)
        at = arrival(
            self._context,
            document["projectId"],
            old.location,
            trigger_id=document.get("buildTriggerId", ""),
            approval=approval,
            labels={
                **labels,
                SUBMITTER: caller.name,
                **people_of(old.labels).joined_by(caller.name).labels(),
                "retry_of": old.id,
                FIRST_ATTEMPT: first,
            },
            request_id=options.request_id,
            supersede=options.supersede,
            attempt_of=first,
            is_tied=is_tied,
            priority=old.priority,
            group=old.group,
            group_limit=old.group_limit,
            push=old.push,
            untrusted=old.untrusted,
            worker=old.only_worker or self._context.settings.worker,
        )
        request = _same_revision(old, always=is_tied)
        if request is old.request:
            self._check_repository(old)
        return self._queued(request, at)

    def _check_repository(self, old: StoredBuild) -> None:
        """Refuse to fetch the present tip of a repository that the build's trigger has left.

        Raises:
            ApiError: the trigger was deleted, or builds another repository now.
        """
        project, trigger_id = old.document["projectId"], old.document.get("buildTriggerId", "")
        repository, revision = _fetched(decode_message(Build, old.request).value.source)
        if not trigger_id or not repository or _COMMIT.fullmatch(revision):
            return
        try:
            trigger = self._context.store.triggers.get(project, trigger_id)
            known = known_trigger(self._context, project, trigger)
            present, _ = source_of(known.trigger, Revision(branch="any"), known.repository)
            inline = known.trigger.build.source if known.trigger.build is not None else None
        except (NotFound, UsageError):
            present = inline = None
        if _fetched(present or inline)[0] != repository:
            raise failed_precondition(
                f"build {old.id} fetched nothing, and its trigger no longer builds that repository:"
                " run the trigger instead"
            )

    def _check_workspace(self, old: StoredBuild) -> None:
        if not self._context.workspace_is_kept(old.id):
            if old.status not in FINAL_STATUSES:
                raise failed_precondition(
                    f"build {old.id} has not ended, and its workspace is kept from then on"
                )
            raise failed_precondition(
                f"the workspace of build {old.id} is not kept: only that of a build in which a step"
                " failed or deployed is, while there is room for it"
            )

    def _wants_approval(self, document: dict[str, Any]) -> bool:
        """Return whether the build's trigger requires an approval now, or was deleted.

        A deleted trigger may have required approvals at last.
        """
        trigger = document.get("buildTriggerId", "")
        if not trigger:
            return False
        try:
            found = self._context.store.triggers.get(document["projectId"], trigger)
        except NotFound:
            return True
        return found.get("approvalConfig", {}).get("approvalRequired") is True

    def decide(self, stored: StoredBuild, decision: ApprovalResult, caller: Caller) -> StoredBuild:
        """Approve or reject a build.

        Raises:
            ApiError: the build does not wait for an approval, the caller may not decide, or the
                approval policy of the trigger can't be read.
        """
        approved = decision.decision is Decision.APPROVED
        now = self._context.clock()
        is_admin = caller.may("admin", stored.document["projectId"])
        policy = self._policy(stored, approves=approved, is_admin=is_admin)
        refused = refusal(policy, stored.labels, caller.name, approves=approved, is_admin=is_admin)
        if refused:
            raise permission_denied(refused)
        document = _decided(stored.document, decision, caller, now)
        build = decode_message(Build, stored.request).value
        try:
            decided = self._context.store.builds.decide_approval(
                document["projectId"],
                stored.id,
                document,
                approved=approved,
                expires_at=expires_at(build, now),
            )
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        self._context.wake()
        return decided

    def _policy(self, stored: StoredBuild, *, approves: bool, is_admin: bool) -> ApprovalPolicy:
        """Return the current approval policy of a build's trigger.

        Raises:
            ApiError: the caller is no admin and approves a build whose trigger was deleted, or the
                trigger's settings can't be read.
        """
        project, trigger = stored.document["projectId"], stored.document.get("buildTriggerId", "")
        try:
            if trigger and approves:  # a deleted trigger has no settings, and so no approvers
                self._context.store.triggers.get(project, trigger)
            return TriggerQueue(self._context).settings(project, trigger).approval
        except NotFound:
            if is_admin:
                return ApprovalPolicy()
            raise permission_denied(
                f"the trigger of build {stored.id} was deleted, and with it who may approve: only"
                " an admin of the project may"
            ) from None
        except ConfigError as error:
            raise failed_precondition(
                f"the settings of the trigger of build {stored.id}, which say who may approve,"
                f" can't be read: {reason_of(error)}"
            ) from error


def _same_revision(old: StoredBuild, *, always: bool) -> dict[str, Any]:
    """Return the request of a build. For a trigger's build, the source is the resolved commit.

    Source: the API's text of ``retry``.

    Args:
        old: the build.
        always: use the resolved commit for any build.
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


def _fetched(source: Source | None) -> tuple[str, str]:
    """Return the Git repository and the revision of a source; empty for another source."""
    source = source or Source()
    if source.git_source is not None:
        return repository_key(source.git_source.url), source.git_source.revision
    if source.repo_source is not None:
        named = source.repo_source
        return f"{named.project_id}/{named.repo_name}", named.commit_sha or ""
    if source.connected_repository is not None:
        return source.connected_repository.repository, source.connected_repository.revision
    return "", ""


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


def going_on(old: StoredBuild, name: str) -> dict[str, str]:
    """Return the labels of a build that resumes an old one: its first step and reused steps.

    Args:
        old: the build to resume.
        name: id or index of the step of ``old`` to resume from.

    Raises:
        ApiError: the build has no such step.
    """
    steps: Sequence[dict[str, Any]] = old.document.get("steps", ())
    first = _index_of(steps, name)
    if first is None:
        known = ", ".join(step["id"] for step in steps[:20] if step.get("id"))
        message = f"build {old.id} has no step {name}: it has {len(steps)}, counted from 0"
        raise invalid_argument(f"{message}; ids: {known}" if known else message, field="fromStep")
    reused = reused_steps([step.get("status", "") for step in steps], first)
    return {
        FROM_BUILD: old.id,
        FROM_STEP: steps[first].get("id") or f"#{first}",
        REUSED_STEPS: ",".join(map(str, reused)),
    }


def roll_back(old: StoredBuild, deployment: RecordedDeployment) -> dict[str, str]:
    """Return the labels of a build that repeats a deployment of an old build.

    Raises:
        ApiError: the deployment is another build's.
    """
    if deployment.build_id != old.id:
        raise invalid_argument(
            f"deployment {deployment.id} is not of build {old.id}", field="deployment"
        )
    by_digest = [image for image in deployment.images if is_pinned(image)]
    return {
        FROM_BUILD: old.id,
        FROM_STEP: deployment.step_id or f"#{deployment.step}",
        ROLLBACK_TO: deployment.id,
        ROLLBACK_STEP: str(deployment.step),
        PINNED_IMAGES: " ".join(by_digest),
    }


def _index_of(steps: Sequence[dict[str, Any]], name: str) -> int | None:
    """Return the index of the step with that id, else the index that ``name`` gives; or None."""
    for index, step in enumerate(steps):
        if step.get("id") == name:
            return index
    if name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < len(steps):
        return int(name)
    return None


_LOOK_S: Final = 5.0

_log = logging.getLogger("buildrunner.server")


def refusal(
    policy: ApprovalPolicy,
    labels: dict[str, str],
    who: str,
    *,
    approves: bool,
    is_admin: bool = False,
) -> str:
    """Return why a caller may not decide; empty if the caller may. Pure.

    Args:
        policy: the trigger's policy.
        labels: the build's labels.
        who: name of the caller's token. It is also compared with the author's login on the forge.
        approves: the decision is an approval. `ApprovalPolicy.not_author` does not apply to
            rejections.
        is_admin: the caller is an admin of the build's project. Without named approvers, only an
            admin approves a build whose authors are not all known.
    """
    if policy.approvers and who not in policy.approvers:
        names = ", ".join(policy.approvers)
        return f"{who} may not approve or reject builds of this trigger: {names} may"
    if not (policy.not_author and approves):
        return ""
    people = people_of(labels)
    if people.include(who):
        return f"{who} is behind this build, and another user must approve it"
    if not (people.are_all or policy.approvers or is_admin):
        return (
            "the server does not know all authors of this build, and the trigger lets no author"
            " approve it: an admin of the project must approve it, or the trigger's setting"
            " approval.approvers must name the users who may"
        )
    return ""


class ApprovalExpiry:
    """Cancels builds that were not approved in time: one thread in each server.

    Thread-safe. Call `start` once.

    Args:
        context: the server's context. Its clock decides whether an approval has expired.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._loop = Loop("approvals", self._turn, _LOOK_S)

    def start(self) -> None:
        """Start the thread."""
        self._loop.start()

    def stop(self) -> None:
        """End after the current turn. Idempotent."""
        self._loop.stop()

    def _turn(self) -> None:
        self.turn()

    def turn(self) -> int:
        """Cancel all builds whose approval has expired. Returns their number.

        Raises:
            StoreError: the database does not answer. The next turn retries.
        """
        return sum(
            self._expire(waiting, settings)
            for (project, trigger), waiting in groupby(
                self._context.store.builds.pending(), lambda one: (one.project, one.trigger_id)
            )
            if (settings := self._settings(project, trigger)).approval_expires is not None
        )

    def _settings(self, project: str, trigger: str) -> TriggerSettings:
        return known_settings(self._context.store.triggers.settings(project, trigger))

    def _expire(self, waiting: Iterable[ListedBuild], settings: TriggerSettings) -> int:
        """Cancel the builds of one trigger whose approval has expired. Returns their number."""
        now, lasts = self._context.clock(), settings.approval_expires
        over = [one for one in waiting if lasts is not None and one.create_time + lasts <= now]
        return sum(self._cancel(one, settings.approval.expires, now) for one in over)

    def _cancel(self, build: ListedBuild, lasts: str, now: datetime) -> bool:
        store = self._context.store.builds
        try:
            document = store.get(build.project, build.id).document
            store.decide_approval(
                build.project, build.id, _expired(document, now, lasts), approved=False
            )
        except (Conflict, NotFound):  # decided a moment ago, or another server was faster
            return False
        _log.info("build %s: nobody approved it in time", build.id)
        return True


def _expired(document: dict[str, Any], now: datetime, lasts: str) -> dict[str, Any]:
    return {
        **document,
        "status": "CANCELLED",
        "statusDetail": f"nobody approved it within {lasts}",
        "finishTime": encode_instant(now),
        "approval": {**document.get("approval", {}), "state": "CANCELLED"},
    }
