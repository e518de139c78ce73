"""Queues what triggers make, whoever asks for it: a person, a hook, the clock.

What is set beside a trigger (`triggers.trigger_settings`) counts here: its group, limit and policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from buildrunner.errors import ConfigError
from buildrunner.server.admission import Arrival, admit
from buildrunner.store.stored_build import TRIGGER_GROUP
from buildrunner.triggers.trigger_settings import TriggerSettings, read_settings

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.store.stored_build import StoredBuild
    from buildrunner.triggers.trigger_build import TriggeredBuild

# The label that tells who began a build.
SUBMITTER: Final = "submitter"


class TriggerQueue:
    """Puts builds of triggers into the queue. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def queue(
        self,
        project: str,
        document: dict[str, Any],
        made: TriggeredBuild,
        *,
        who: str,
        labels: dict[str, str] | None = None,
        request_id: str = "",
        untrusted: bool = False,
        approval: bool | None = None,
        priority: int = 0,
        push: bool = True,
    ) -> StoredBuild:
        """Queue a build, behind an approval if it wants one.

        Args:
            project: project of the trigger.
            document: the trigger.
            made: what it made of an event.
            who: who or what began it.
            labels: facts about the event; see `NewBuild.labels`.
            request_id: with the same one the build that was made first is returned.
            untrusted: its config is a stranger's: no secrets, no socket, nothing is pushed.
            approval: whether somebody must approve; None: as the trigger says.
            priority: see `NewBuild`.
            push: push its images.

        Raises:
            ConfigError: the build can't run.
            StoreError: it can't be kept.
        """
        context = self._context
        if approval is None:
            approval = bool(document.get("approvalConfig", {}).get("approvalRequired"))
        settings = self.settings(project, document["id"])
        concurrency = settings.concurrency
        policy = "" if concurrency.policy == "queue" else concurrency.policy
        arrival = Arrival(
            build_id=context.new_id(),
            project=project,
            location=location_of(document),
            now=context.clock(),
            public_url=context.settings.public_url,
            worker=context.settings.worker,
            policy=context.settings.sources,
            trigger_id=document["id"],
            approval=approval,
            labels={SUBMITTER: who, **made.labels, **(labels or {})},
            request_id=request_id,
            priority=priority,
            group=concurrency.group or f"{TRIGGER_GROUP}{document['id']}",
            group_limit=concurrency.limit or context.settings.max_builds_per_trigger,
            supersede=policy,
            push=push and not untrusted,
            untrusted=untrusted,
        )
        new = admit(made.request, arrival)
        stored = context.store.create_build(new)
        if stored.id == new.document["id"]:
            context.metrics.build_created()
        context.wake()
        return stored

    def settings(self, project: str, trigger_id: str) -> TriggerSettings:
        """What is set beside a trigger."""
        document = self._context.store.trigger_settings(project, trigger_id)
        try:
            return read_settings(document)
        except ConfigError:  # of another version: what it knew is not ours to guess
            return TriggerSettings()


def location_of(document: dict[str, Any]) -> str:
    """The location in a trigger's resource name."""
    parts = str(document.get("resourceName", "")).split("/")
    return parts[3] if len(parts) > 3 else "global"
