"""From a stored delivery to builds: read it, ask every trigger, queue what fires, keep the reasons.

Handling is idempotent: a build's key is made of the delivery, the event's place in it and the
trigger. A server that is killed in the middle does it again and makes nothing twice.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from buildrunner.errors import BuildrunnerError, Conflict, StoreError
from buildrunner.server.approvals import AUTHOR
from buildrunner.server.event_facts import EventFacts, KnownEvent, SilentPlaces
from buildrunner.server.routes_hooks import PUBSUB
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
    Verdict,
)
from buildrunner.triggers.forges.bare_git import INSTALLED
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    ParsedDelivery,
    WebhookRequest,
    json_object,
    text,
)
from buildrunner.triggers.forges.pubsub import pubsub_event
from buildrunner.triggers.forges.webhook import webhook_event
from buildrunner.triggers.repository_names import (
    address_of_trigger,
    forge_address,
    listens_to,
    repository_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.server.context import ServerContext
    from buildrunner.store.build_store import Document
    from buildrunner.store.delivery_store import KnownRef, StoredDelivery

_log = logging.getLogger("buildrunner.server")

RECONCILE = "reconcile"
LOOKED_AT = ""  # the "ref" that says that a repository was looked at before
WEBHOOK = "webhook"
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
            self._know(delivery, parsed)
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
        if isinstance(event, PullRequestEvent) and self._is_unchanged(delivery, event):
            return {**found, "ignored": "its text changed, not its commits", "verdicts": []}
        if isinstance(event, PushEvent):
            seen = self._note_refs(delivery, event, [trigger for _, _, trigger in triggers])
            if seen:
                return {**found, "ignored": seen, "verdicts": []}
        found["verdicts"] = [
            self._ask(delivery, number, known, project, document, trigger)
            for project, document, trigger in triggers[:_MOST_VERDICTS]
        ]
        return found

    def _know(self, delivery: StoredDelivery, parsed: ParsedDelivery) -> None:
        """Remember a repository and where its refs are: what moves from now on is news."""
        url = repository_url(delivery)
        store, key, by = self._context.store, repository_key(url), f"delivery {delivery.number}"
        for event in parsed.known:
            if not store.known_refs(key, event.ref):
                store.note_ref(key, event.ref, event.after, by)
        if key:
            store.note_ref(key, LOOKED_AT, "looked at", by)

    def _is_unchanged(self, delivery: StoredDelivery, event: PullRequestEvent) -> bool:
        """Remember the head of a pull request; whether an update of it brings no commits.

        Only Bitbucket does not tell an update of texts from one of commits.
        """
        if event.repository.forge != "bitbucket":
            return False
        key = f"{repository_key(event.repository.clone_url)} pull requests"
        ref = f"refs/pull/{event.number}/head"
        if event.action not in ("opened", "reopened", "pushed", "updated"):
            return False
        before = self._context.store.known_refs(key, ref).get(ref)
        by = f"delivery {delivery.number}"
        self._context.store.note_ref(key, ref, event.head_commit, by)
        is_same = before is not None and before.commit == event.head_commit
        is_news = before is None or before.seen_by == by or bool(delivery.replays)
        return event.action == "updated" and is_same and not is_news

    def _note_refs(
        self, delivery: StoredDelivery, event: PushEvent, triggers: list[BuildTrigger]
    ) -> str:
        """Remember where the ref is now; why the push is old news, empty when it is not."""
        known = self._context.repositories
        addresses = [event.repository.clone_url]
        addresses += [
            address_of_trigger(trigger, known)
            for trigger in triggers
            if listens_to(trigger, event.repository, known).passed
        ]
        keys = {key for key in map(repository_key, addresses) if key}
        kind = RECONCILE if delivery.hook == RECONCILE else "delivery"
        by = f"{kind} {delivery.number}"
        after = "" if event.is_deletion else event.after
        store = self._context.store
        before = [store.known_refs(key, event.ref).get(event.ref) for key in keys]
        if delivery.replays:
            return ""
        if any(_is_late(event, one) for one in before):
            return f"the server has looked at {event.ref} since, and built what it found there"
        store.note_refs(keys, event.ref, after, by)
        if after and any(one and one.commit == after and one.seen_by != by for one in before):
            return f"{event.ref} was seen at {after[:12]} already, and built then"
        return ""

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
                who=_who(delivery, event),
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


def webhook_hook(project: str, document: Document) -> str:
    """The hook of calls of a webhook trigger."""
    return f"{WEBHOOK}/{project}/{document.get('name', '')}"


def repository_url(delivery: StoredDelivery) -> str:
    """Where the hook of a bare repository says that it is; empty when it does not."""
    try:
        body = json_object(WebhookRequest(delivery.headers, delivery.body))
    except BadDelivery:
        return ""
    return text(body, "repository", "url")


def parsed_delivery(delivery: StoredDelivery) -> ParsedDelivery:
    """What a delivery says.

    Raises:
        BadDelivery: it is not what that forge sends.
    """
    request = WebhookRequest(delivery.headers, delivery.body)
    forge, _, name = delivery.hook.partition("/")
    if forge == WEBHOOK:
        return ParsedDelivery(kind="webhook", events=(webhook_event(request),))
    if forge == PUBSUB:
        return ParsedDelivery(kind="message", events=(pubsub_event(request, name),))
    if forge == RECONCILE:
        return _found_by_ourselves(request)
    parsed = FORGES[forge].parse(request)
    if forge == "git":
        for event in (*parsed.events, *parsed.known):
            if isinstance(event, PushEvent) and event.repository.full_name != name:
                told = event.repository.full_name
                raise BadDelivery(f"the hook of {name} can't speak for {told}")
    return parsed


def _found_by_ourselves(request: WebhookRequest) -> ParsedDelivery:
    """What `reconcile` found: it knows the forge by the repository's address."""
    parsed = FORGES["git"].parse(request)
    forge = text(json_object(request), "repository", "forge") or "git"
    return replace(
        parsed,
        events=tuple(
            replace(event, repository=replace(event.repository, forge=forge))
            for event in parsed.events
            if isinstance(event, PushEvent)
        ),
    )


def described(event: Event) -> str:
    """The event in one line."""
    match event:
        case PushEvent():
            where = f"{event.repository.full_name} ({event.repository.forge})"
            if event.is_deletion:
                return f"{event.ref} of {where} was deleted"
            return f"push of {event.ref} to {event.after[:12]} in {where}"
        case PullRequestEvent():
            return f"pull request #{event.number} of {event.repository.full_name}: {event.action}"
        case MessageEvent():
            return f"{event.kind} message" + (f" of {event.topic}" if event.topic else "")


def shown_verdict(verdict: Verdict) -> dict[str, Any]:
    """A verdict as it is stored and shown."""
    shown: dict[str, Any] = {
        "fires": verdict.fires,
        "reason": verdict.reason,
        "rules": [msgspec.structs.asdict(rule) for rule in verdict.rules],
    }
    if verdict.hold:
        shown["hold"] = True
    if verdict.waits_for_comment:
        shown["waitsForComment"] = True
    return shown


def build_labels(delivery: StoredDelivery, event: Event) -> dict[str, str]:
    """What a build's labels say of the event that made it; statuses are sent by them."""
    labels = {"delivery": str(delivery.number), "hook": delivery.hook}
    if isinstance(event, MessageEvent):
        return {**labels, "event": event.kind}
    labels |= {"forge": event.repository.forge, "repository": event.repository.full_name}
    labels["forge_url"] = forge_address(event.repository)
    if isinstance(event, PushEvent):
        labels |= {"event": "tag" if event.tag else "push", "commit": event.after}
        labels["branch"] = event.branch
    else:
        labels |= {"event": "pull_request", "commit": event.head_commit}
        labels |= {"branch": event.head_branch, "pull_request": str(event.number)}
        labels |= {AUTHOR: f"{event.repository.forge}:{event.author}"} if event.author else {}
    return {name: value for name, value in labels.items() if value}


def _located(event: Event, repositories: Mapping[str, str]) -> Event:
    """The event with the address of its repository: Bitbucket Server does not tell it."""
    if isinstance(event, MessageEvent) or event.repository.clone_url:
        return event
    url = repositories.get(event.repository.full_name, "")
    return replace(event, repository=replace(event.repository, clone_url=url)) if url else event


def _is_late(event: PushEvent, known: KnownRef | None) -> bool:
    """Whether a push comes from before the ref was looked at: it begins where the ref is not."""
    if known is None or not known.seen_by.startswith(RECONCILE) or not event.before:
        return False
    return known.commit not in (event.before, event.after)


def _who(delivery: StoredDelivery, event: Event) -> str:
    if isinstance(event, MessageEvent):
        forge, _, name = delivery.hook.rpartition("/")
        return f"{WEBHOOK}:{name}" if forge.startswith(WEBHOOK) else f"hook:{delivery.hook}"
    person = event.author
    if isinstance(event, PullRequestEvent) and event.action == "commented":
        person = event.commenter
    return f"{event.repository.forge}:{person}" if person else f"hook:{delivery.hook}"


def _for_topic(hook: str, event: Event, trigger: BuildTrigger) -> Event:
    """A message with the full name of its topic, of which the hook's address has the last part."""
    if not isinstance(event, MessageEvent) or not event.topic or "/" in event.topic:
        return event
    config = trigger.pubsub_config
    mine = config is not None and config.topic.rpartition("/")[2] == event.topic
    topic = config.topic if mine and config is not None else f"projects/-/topics/{event.topic}"
    return replace(event, topic=topic) if hook.startswith(PUBSUB) else event
