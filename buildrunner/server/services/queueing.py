"""The one way into the queue, for builds of callers, uploads, triggers, schedules and retries.

`queue_build` admits a build and stores it; `keep_refused` stores one that can't run as a failed
build. `TriggerQueue` adds the settings of a trigger: its group, limit, policy and approval.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from buildrunner.errors import ConfigError, UsageError
from buildrunner.server.context import ServerContext
from buildrunner.server.services.admission import Arrival, admit, refused
from buildrunner.store.model.builds import TRIGGER_GROUP, NewBuild, StoredBuild
from buildrunner.triggers.build import TriggeredBuild
from buildrunner.triggers.settings import TriggerSettings, read_settings

# The label that names the caller, hook or schedule that started a build.
SUBMITTER: Final = "submitter"


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one run of a trigger.

    Attributes:
        who: the caller, hook or schedule that started it.
        labels: facts about the event; see `NewBuild.labels`.
        request_id: with the same one the build that was made first is returned.
        priority: see `NewBuild`.
        push: push its images.
    """

    who: str
    labels: dict[str, str] = {}
    request_id: str = ""
    priority: int = 0
    push: bool = True


def arrival(context: ServerContext, project: str, location: str, **facts: Any) -> Arrival:
    """Return the circumstances of a new build on this server.

    Args:
        context: the server's.
        project: the build's project.
        location: the build's location.
        facts: further fields of `Arrival`.
    """
    settings = context.settings
    return Arrival(
        build_id=context.new_id(),
        project=project,
        location=location,
        now=context.clock(),
        public_url=settings.public_url,
        policy=settings.sources,
        is_pool=context.is_pool,
        **{"worker": settings.worker, **facts},
    )


def queue_build(context: ServerContext, body: Any, at: Arrival) -> StoredBuild:
    """Queue a build, or keep it until it is approved, and wake the worker.

    Args:
        context: the server's.
        body: the Build as parsed JSON.
        at: its circumstances.

    Returns:
        The stored build; the earlier one if there is one with the same request id.

    Raises:
        ApiError: the body holds no build.
        ConfigError: the build can't run; holds all problems.
        Conflict: the request id belongs to another request.
        QuotaExceeded: too many builds of the project wait.
        StoreError: the build can't be stored.
    """
    return _keep(context, admit(body, at))


def keep_refused(
    context: ServerContext, body: dict[str, Any], at: Arrival, reason: str
) -> StoredBuild:
    """Keep a build that can't run as a failed one, which is reported as any other.

    Raises:
        StoreError: the build can't be stored.
    """
    return _keep(context, refused(body, at, reason))


def _keep(context: ServerContext, new: NewBuild) -> StoredBuild:
    most = context.settings.max_waiting_builds
    stored = context.store.builds.create(new, most_waiting=most)
    if stored.id == new.document["id"]:
        context.metrics.build_created()
    context.wake()
    return stored


class TriggerQueue:
    """Queues the builds of triggers. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def queue(
        self, project: str, document: dict[str, Any], made: TriggeredBuild, facts: RunFacts
    ) -> StoredBuild:
        """Queue a build, behind an approval if it wants one.

        Args:
            project: project of the trigger.
            document: the trigger.
            made: what it made of an event.
            facts: of this run.

        Raises:
            ConfigError: the build can't run, or the trigger's settings can't be read.
            QuotaExceeded: too many builds of the project wait.
            StoreError: it can't be kept.
        """
        settings = self.settings(project, document["id"])
        at = self._arrival(project, document, made, facts, settings)
        return queue_build(self._context, made.request, at)

    def fail(
        self,
        project: str,
        document: dict[str, Any],
        made: TriggeredBuild,
        facts: RunFacts,
        error: ConfigError | UsageError,
    ) -> StoredBuild:
        """Keep a build that can't be queued as a failed one.

        Args:
            project: see `queue`.
            document: see `queue`.
            made: see `queue`.
            facts: see `queue`.
            error: why it can't.

        Raises:
            StoreError: it can't be kept.
        """
        beside = self._context.store.triggers.settings(project, document["id"])
        at = self._arrival(project, document, made, facts, known_settings(beside))
        return keep_refused(self._context, made.request, at, reason_of(error))

    def _arrival(
        self,
        project: str,
        document: dict[str, Any],
        made: TriggeredBuild,
        facts: RunFacts,
        settings: TriggerSettings,
    ) -> Arrival:
        context = self._context
        wanted = document.get("approvalConfig", {}).get("approvalRequired") is True
        concurrency = settings.concurrency
        policy = "" if concurrency.policy == "queue" else concurrency.policy
        return arrival(
            context,
            project,
            location_of(document),
            trigger_id=document["id"],
            approval=made.hold or wanted,
            labels={SUBMITTER: facts.who, **made.labels, **facts.labels},
            request_id=facts.request_id,
            priority=facts.priority,
            group=concurrency.group or f"{TRIGGER_GROUP}{document['id']}",
            group_limit=concurrency.limit or context.settings.max_builds_per_trigger,
            supersede=policy,
            push=facts.push and not made.untrusted,
            untrusted=made.untrusted,
        )

    def settings(self, project: str, trigger_id: str) -> TriggerSettings:
        """Return the settings of a trigger.

        Raises:
            ConfigError: they can't be read. Defaults would drop what they demand: approvers, the
                forge, limits.
        """
        return read_settings(self._context.store.triggers.settings(project, trigger_id))


def known_settings(document: dict[str, Any]) -> TriggerSettings:
    """Return the stored settings of a trigger, or the defaults if they can't be read. Pure.

    For what the defaults do not loosen: the end of a build that failed, or of an approval's time.
    """
    try:
        return read_settings(document)
    except ConfigError:  # stored by another version
        return TriggerSettings()


def reason_of(error: ConfigError | UsageError) -> str:
    """All that is wrong, in one line."""
    if isinstance(error, ConfigError):
        return "; ".join(problem.text() for problem in error.problems)
    return f"{error}; {error.hint}" if error.hint else str(error)


def location_of(document: dict[str, Any]) -> str:
    """The location in a trigger's resource name."""
    parts = str(document.get("resourceName", "")).split("/")
    return parts[3] if len(parts) > 3 else "global"
