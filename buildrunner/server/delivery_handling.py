"""From a stored delivery to builds: read it, ask every trigger, queue what fires, keep the reasons.

Handling is idempotent: a build's key is made of the delivery, the event's place in it and the
trigger. A server that is killed in the middle does it again and makes nothing twice. What hangs on
somebody who does not answer is tried again later; what was decided by then stays decided.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.errors import BuildrunnerError, ConfigError, Conflict, StoreError, UsageError
from buildrunner.server.bounded_filters import BoundedFilters
from buildrunner.server.delivery_reading import WEBHOOK, parsed_delivery, webhook_hook
from buildrunner.server.delivery_retry import next_try
from buildrunner.server.event_facts import EventFacts, KnownEvent
from buildrunner.server.event_record import (
    build_labels,
    described,
    kept_verdicts,
    shown_verdict,
    who_made,
)
from buildrunner.server.known_triggers import KnownTriggers
from buildrunner.server.routes_hooks import PUBSUB
from buildrunner.server.seen_refs import SeenRefs
from buildrunner.server.silent_places import NobodyNow, NotNow, SilentPlaces
from buildrunner.server.status_reporter import StatusReporter
from buildrunner.server.told_event import ToldEvent, located, waits
from buildrunner.server.trigger_queue import RunFacts, TriggerQueue, reason_of
from buildrunner.triggers.event_build import event_run, failed_run
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
from buildrunner.triggers.labels import EVENT_NUMBER
from buildrunner.triggers.open_questions import may_care

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.server.known_triggers import KnownTrigger
    from buildrunner.server.silent_places import Places
    from buildrunner.spec.trigger import BuildTrigger
    from buildrunner.store.build_store import Document
    from buildrunner.store.delivery_store import StoredDelivery
    from buildrunner.triggers.trigger_build import TriggeredBuild

_log = logging.getLogger("buildrunner.server")


class DeliveryHandler:
    """Handles deliveries. Thread-safe.

    Args:
        context: the server's.
        facts: asks others.
    """

    def __init__(self, context: ServerContext, facts: EventFacts | None = None) -> None:
        self._context = context
        self._facts = facts or EventFacts()
        self._queue = TriggerQueue(context)
        self._triggers = KnownTriggers(context.store)
        self._statuses = StatusReporter(context.secrets)
        self._places = SilentPlaces()
        self._seen = SeenRefs(context.store, context.repositories)

    def stop(self) -> None:
        """End what is being asked: see `NotNow`. Idempotent."""
        self._places.stop()
        self._facts.stop()

    def handle(self, delivery: StoredDelivery, *, may_ask: bool = True) -> dict[str, Any]:
        """Do what a delivery asks for; what came of it, for `DeliveryStore.finish_deliveries`.

        What came of it so far if `delivery_retry.tried_again_at` says so.

        Args:
            delivery: which was claimed.
            may_ask: others may be asked, and waited for.

        Raises:
            StoreError: the database fails; the delivery must be handled again.
            MustAsk: somebody must be asked.
            NotNow: whoever is asked was cut short by `stop`.
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
        retry = next_try(delivery, self._context.clock())
        places = self._places if may_ask else NobodyNow(self._places)
        told = [
            ToldEvent(delivery, number, located(event, self._context.repositories), bool(retry))
            for number, event in enumerate(parsed.events)
        ]
        outcome["events"] = [self._event(one, places) for one in told]
        waits_for = next((one.waits_for for one in told if one.waits_for), "")
        if waits_for and retry:
            outcome["retry"] = {**retry, "because": waits_for}
        elif waits_for:
            outcome["error"] = f"given up: {waits_for}"
        return outcome

    def _event(self, told: ToldEvent, places: Places) -> dict[str, Any]:
        found: dict[str, Any] = {"event": described(told.event)}
        known = KnownEvent(told.event, self._facts, places)
        triggers = self._asked(told.delivery)
        if not triggers and told.delivery.hook.startswith(f"{WEBHOOK}/"):
            return {**found, "ignored": "the trigger is not there any more", "verdicts": []}
        problem = self._complete(known, triggers)
        if problem:
            found["problem"] = problem
        if problem and known.waits_for and not isinstance(known.event, PushEvent):
            told.waits_for = known.waits_for
            if told.may_wait:
                return {**found, "verdicts": list(told.decided.values())}
        old_news = self._old_news(told.delivery, known.event, triggers)
        if old_news:
            return {**found, "ignored": old_news, "verdicts": []}
        verdicts = [
            told.decided.get(trigger.id) or self._answer(told, known, project, document, trigger)
            for project, document, trigger in triggers
        ]
        if waits(verdicts):
            told.waits_for = known.waits_for
        found |= kept_verdicts(verdicts)
        return found

    def _asked(self, delivery: StoredDelivery) -> list[KnownTrigger]:
        """All that are asked about a delivery."""
        found = self._triggers.all()
        if not delivery.hook.startswith(f"{WEBHOOK}/"):
            return found
        return [one for one in found if delivery.hook == webhook_hook(one[0], one[1])]

    def _complete(self, known: KnownEvent, triggers: list[KnownTrigger]) -> str:
        """Learn what the payload does not tell if a trigger cares; why that failed."""
        repositories = self._context.repositories
        matters = known.lacks_commit and any(
            may_care(trigger, known.event, repositories) for _, _, trigger in triggers
        )
        return known.complete() if matters else ""

    def _old_news(
        self, delivery: StoredDelivery, event: Event, triggers: list[KnownTrigger]
    ) -> str:
        """Why an event brings nothing new; empty when it does. Remembers it."""
        if isinstance(event, PullRequestEvent):
            is_same = self._seen.is_unchanged(delivery, event)
            return "its text changed, not its commits" if is_same else ""
        if isinstance(event, PushEvent):
            return self._seen.note_push(delivery, event, [trigger for _, _, trigger in triggers])
        return ""

    def _answer(
        self,
        told: ToldEvent,
        known: KnownEvent,
        project: str,
        document: Document,
        trigger: BuildTrigger,
    ) -> dict[str, Any]:
        """What one trigger says. A bug that it meets is kept with it: the others fire as ever."""
        try:
            return self._ask(told, known, project, document, trigger)
        except (StoreError, NotNow):
            raise
        except Exception as error:  # noqa: BLE001  (one bad trigger must not silence the others)
            number = told.delivery.number
            _log.exception("delivery %s: trigger %s can't be asked", number, trigger.name)
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
        told: ToldEvent,
        known: KnownEvent,
        project: str,
        document: Document,
        trigger: BuildTrigger,
    ) -> dict[str, Any]:
        if isinstance(known.event, MessageEvent):
            known = known.about(_for_topic(told.delivery.hook, known.event, trigger))
        filters = BoundedFilters(self._context.calls, project)
        verdict = known.judge(trigger, self._context.repositories, filters.rule)
        event = known.event
        found: dict[str, Any] = {
            "project": project,
            "trigger": trigger.name,
            "triggerId": trigger.id,
            **shown_verdict(verdict),
        }
        if not verdict.fires:
            if verdict.waits_for_comment and not (verdict.waits_for_answer and told.may_wait):
                self._tell_of_waiting(told, event, project, trigger)
            return found
        try:
            found |= self._queued(told, event, project, document, trigger)
        except StoreError:
            raise
        except BuildrunnerError as error:
            hint = getattr(error, "hint", "")
            found["problem"] = f"{error}; {hint}" if hint else str(error)
        return found

    def _queued(
        self,
        told: ToldEvent,
        event: Event,
        project: str,
        document: Document,
        trigger: BuildTrigger,
    ) -> dict[str, Any]:
        """The build in the queue; one that can't run is kept as one that failed."""
        delivery = told.delivery
        facts = RunFacts(
            who=who_made(delivery, event),
            labels={**build_labels(delivery, event), EVENT_NUMBER: str(told.number)},
            request_id=f"delivery-{told.key}-{document['id']}",
        )
        made: TriggeredBuild | None = None
        try:
            made = event_run(trigger, event, self._context.repositories)
            stored = self._queue.queue(project, document, made, facts)
        except (ConfigError, UsageError) as error:
            made = made or failed_run(trigger, event)
            failed = self._queue.fail(project, document, made, facts, error)
            return {"build": failed.id, "problem": reason_of(error)}
        warnings = {"warnings": list(made.warnings)} if made.warnings else {}
        return {"build": stored.id, **warnings}

    def _tell_of_waiting(
        self, told: ToldEvent, event: Event, project: str, trigger: BuildTrigger
    ) -> None:
        """Have the forge show that a build of a pull request waits for a comment."""
        context, delivery = self._context, told.delivery
        message = self._statuses.waiting(
            build_labels(delivery, event),
            project,
            trigger.name,
            url=f"{context.settings.public_url}/deliveries/{delivery.number}",
            key=f"waits/{told.key}-{trigger.id}",
        )
        if message is not None:
            with suppress(Conflict):  # told before a crash
                context.store.put_message(message, now=context.clock())


def _for_topic(hook: str, event: Event, trigger: BuildTrigger) -> Event:
    """A message with the full name of its topic, of which the hook's address has the last part."""
    if not isinstance(event, MessageEvent) or not event.topic or "/" in event.topic:
        return event
    config = trigger.pubsub_config
    mine = config is not None and config.topic.rpartition("/")[2] == event.topic
    topic = config.topic if mine and config is not None else f"projects/-/topics/{event.topic}"
    return replace(event, topic=topic) if hook.startswith(PUBSUB) else event
