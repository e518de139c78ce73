"""Queues what triggers make, whoever asks for it: a person, a hook, the clock.

What is set beside a trigger (`triggers.trigger_settings`) counts here: its group, limit and policy.
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

# The label that tells who began a build.
SUBMITTER: Final = "submitter"


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one run of a trigger.

    Attributes:
        who: who or what began it.
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


class TriggerQueue:
    """Puts builds of triggers into the queue. Thread-safe."""

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
            StoreError: it can't be kept.
        """
        settings = self.settings(project, document["id"])
        arrival = self._arrival(project, document, made, facts, settings)
        return self._keep(admit(made.request, arrival))

    def fail(
        self,
        project: str,
        document: dict[str, Any],
        made: TriggeredBuild,
        facts: RunFacts,
        error: ConfigError | UsageError,
    ) -> StoredBuild:
        """Keep a build that can't be queued as one that failed; it is told of as any other.

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
        arrival = self._arrival(project, document, made, facts, known_settings(beside))
        return self._keep(refused(made.request, arrival, reason_of(error)))

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
        return Arrival(
            build_id=context.new_id(),
            project=project,
            location=location_of(document),
            now=context.clock(),
            public_url=context.settings.public_url,
            worker=context.settings.worker,
            policy=context.settings.sources,
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

    def _keep(self, new: NewBuild) -> StoredBuild:
        context = self._context
        stored = context.store.builds.create(new)
        if stored.id == new.document["id"]:
            context.metrics.build_created()
        context.wake()
        return stored

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
