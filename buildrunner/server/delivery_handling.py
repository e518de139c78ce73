"""From a stored delivery to builds: read it, ask every trigger, queue what fires, keep the reasons.

Handling is idempotent: a build's key is made of the delivery, the event's place in it and the
trigger. A server that is killed in the middle does it again and makes nothing twice.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.errors import BuildrunnerError, Conflict, StoreError
from buildrunner.server.delivery_reading import WEBHOOK, parsed_delivery, webhook_hook
from buildrunner.server.event_facts import EventFacts, KnownEvent, SilentPlaces
from buildrunner.server.event_record import build_labels, described, shown_verdict, who_made
from buildrunner.server.routes_hooks import PUBSUB
from buildrunner.server.seen_refs import SeenRefs
from buildrunner.server.status_reporter import StatusReporter
from buildrunner.server.trigger_queue import TriggerQueue
from buildrunner.spec.decode import decode_message
from buildrunner.spec.trigger import BuildTrigger
from buildrunner.triggers.event_build import event_run
from buildrunner.triggers.events import (
    Event,
    MessageEvent,
    PullRequestEvent,
    PushEvent,
    Rule,
    Verdict,
)
from buildrunner.triggers.forges.bare_git import INSTALLED
from buildrunner.triggers.forges.forge import BadDelivery

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.server.context import ServerContext
    from buildrunner.store.build_store import Document
    from buildrunner.store.delivery_store import StoredDelivery

_log = logging.getLogger("buildrunner.server")

_MOST_VERDICTS = 1000


class DeliveryHandler:
    """Handles deliveries. Used by one thread.

    Args:
        context: the server's.
        facts: asks others.
    """

    def __init__(self, context: ServerContext, facts: EventFacts | None = None) -> None:
        self._context = context
        self._facts = facts or EventFacts()
        self._queue = TriggerQueue(context)
        self._statuses = StatusReporter(context.secret)
        self._places = SilentPlaces()
        self._seen = SeenRefs(context.store, context.repositories)

    def handle(self, delivery: StoredDelivery) -> dict[str, Any]:
        """Do what a delivery asks for; what came of it, for `DeliveryStore.finish_deliveries`.

        Raises:
            StoreError: the database fails; the delivery must be handled again.
        """
        try:
            parsed = parsed_delivery(delivery)
        except BadDelivery as error:
            return {"error": str(error)}
        if parsed.kind == INSTALLED:
            self._seen.know(delivery, parsed)
        outcome: dict[str, Any] = {"kind": parsed.kind}
        if parsed.ignored:
            outcome["ignored"] = parsed.ignored
        outcome["events"] = [
            self._event(delivery, number, event) for number, event in enumerate(parsed.events)
        ]
        return outcome

    def _event(self, delivery: StoredDelivery, number: int, event: Event) -> dict[str, Any]:
        event = _located(event, self._context.repositories)
        found: dict[str, Any] = {"event": described(event)}
        known = KnownEvent(event, self._facts, self._places)
        problem = known.complete()
        if problem:
            found["problem"] = problem
        documents = self._context.store.every_trigger()
        is_call = delivery.hook.startswith(f"{WEBHOOK}/")
        triggers = [
            (project, document, decode_message(BuildTrigger, document).value)
            for project, document in documents
            if not is_call or delivery.hook == webhook_hook(project, document)
        ]
        if is_call and not triggers:
            return {**found, "ignored": "the trigger is not there any more", "verdicts": []}
        event = known.event
        if isinstance(event, PullRequestEvent) and self._seen.is_unchanged(delivery, event):
            return {**found, "ignored": "its text changed, not its commits", "verdicts": []}
        if isinstance(event, PushEvent):
            listeners = [trigger for _, _, trigger in triggers]
            old_news = self._seen.note_push(delivery, event, listeners)
            if old_news:
                return {**found, "ignored": old_news, "verdicts": []}
        found["verdicts"] = [
            self._answer(delivery, number, known, project, document, trigger)
            for project, document, trigger in triggers[:_MOST_VERDICTS]
        ]
        return found

    def _answer(
        self,
        delivery: StoredDelivery,
        number: int,
        known: KnownEvent,
        project: str,
        document: Document,
        trigger: BuildTrigger,
    ) -> dict[str, Any]:
        """What one trigger says. A bug that it meets is kept with it: the others fire as ever."""
        try:
            return self._ask(delivery, number, known, project, document, trigger)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  (one bad trigger must not silence the others)
            _log.exception("delivery %s: trigger %s can't be asked", delivery.number, trigger.name)
            reason = f"internal error, see the server's log: {type(error).__name__}"
            rule = Rule(name="internal", passed=False, text=reason)
            return {
                "project": project,
                "trigger": trigger.name,
                "triggerId": trigger.id,
                **shown_verdict(Verdict(fires=False, rules=(rule,))),
            }

    def _ask(
        self,
        delivery: StoredDelivery,
        number: int,
        known: KnownEvent,
        project: str,
        document: Document,
        trigger: BuildTrigger,
    ) -> dict[str, Any]:
        if isinstance(known.event, MessageEvent):
            event = _for_topic(delivery.hook, known.event, trigger)
            known = KnownEvent(event, self._facts, self._places)
        verdict = known.judge(trigger, self._context.repositories)
        event = known.event
        found: dict[str, Any] = {
            "project": project,
            "trigger": trigger.name,
            "triggerId": trigger.id,
            **shown_verdict(verdict),
        }
        if not verdict.fires:
            if verdict.waits_for_comment:
                self._tell_of_waiting(delivery, number, event, project, trigger)
            return found
        try:
            made = event_run(trigger, event, self._context.repositories)
            key = f"delivery-{delivery.number}-{delivery.replays}-{number}-{trigger.id}"
            stored = self._queue.queue(
                project,
                document,
                made,
                who=who_made(delivery, event),
                labels=build_labels(delivery, event),
                request_id=key,
                untrusted=made.untrusted,
                approval=True if made.hold else None,
            )
        except StoreError:
            raise
        except BuildrunnerError as error:
            hint = getattr(error, "hint", "")
            found["problem"] = f"{error}; {hint}" if hint else str(error)
        else:
            found["build"] = stored.id
            if made.warnings:
                found["warnings"] = list(made.warnings)
        return found

    def _tell_of_waiting(
        self,
        delivery: StoredDelivery,
        number: int,
        event: Event,
        project: str,
        trigger: BuildTrigger,
    ) -> None:
        """Have the forge show that a build of a pull request waits for a comment."""
        context = self._context
        message = self._statuses.waiting(
            build_labels(delivery, event),
            project,
            trigger.name,
            url=f"{context.settings.public_url}/deliveries/{delivery.number}",
            key=f"waits/{delivery.number}-{delivery.replays}-{number}-{trigger.id}",
        )
        if message is not None:
            with suppress(Conflict):  # told before a crash
                context.store.put_message(message, now=context.clock())


def _located(event: Event, repositories: Mapping[str, str]) -> Event:
    """The event with the address of its repository: Bitbucket Server does not tell it."""
    if isinstance(event, MessageEvent) or event.repository.clone_url:
        return event
    url = repositories.get(event.repository.full_name, "")
    return replace(event, repository=replace(event.repository, clone_url=url)) if url else event


def _for_topic(hook: str, event: Event, trigger: BuildTrigger) -> Event:
    """A message with the full name of its topic, of which the hook's address has the last part."""
    if not isinstance(event, MessageEvent) or not event.topic or "/" in event.topic:
        return event
    config = trigger.pubsub_config
    mine = config is not None and config.topic.rpartition("/")[2] == event.topic
    topic = config.topic if mine and config is not None else f"projects/-/topics/{event.topic}"
    return replace(event, topic=topic) if hook.startswith(PUBSUB) else event
