"""Reads the event of a stored delivery, in the format of its hook."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from buildrunner.errors import NotFound
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.model.deliveries import StoredDelivery
from buildrunner.store.sql.deliveries import SqlDeliveries
from buildrunner.triggers.build import payload_roots
from buildrunner.triggers.events import PushEvent
from buildrunner.triggers.forge_host import ForgeHost
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    ParsedDelivery,
    WebhookRequest,
    json_object,
    parse_delivery,
    part,
    text,
)
from buildrunner.triggers.forges.pubsub import pubsub_event
from buildrunner.triggers.forges.webhook import webhook_event
from buildrunner.triggers.hook_binding import PUBSUB, HookBinding, bound, unbound
from buildrunner.triggers.labels import DELIVERY, EVENT_NUMBER

RECONCILE = "reconcile"
"""The hook of events that the server found by checking a repository."""

WEBHOOK = "webhook"
"""The first part of the hook of calls of webhook triggers."""


def webhook_hook(project: str, document: Document) -> str:
    """Return the hook of calls of a webhook trigger."""
    return f"{WEBHOOK}/{project}/{document.get('name', '')}"


def parsed_delivery(delivery: StoredDelivery, binding: HookBinding | None) -> ParsedDelivery:
    """Return the event of a delivery, within the binding of its hook: see `hook_binding.bound`.

    Args:
        delivery: a verified delivery.
        binding: the binding of its hook; None for none.

    Raises:
        BadDelivery: the format is not the forge's, the hook is unbound, or its binding does not
            allow the event.
    """
    forge = delivery.hook.partition("/")[0]
    if forge in (WEBHOOK, RECONCILE):
        return _read(delivery)
    if binding is None or binding == HookBinding():
        raise BadDelivery(unbound(delivery.hook))
    return bound(_read(delivery, binding.topic), delivery.hook, binding)


def _read(delivery: StoredDelivery, topic: str = "") -> ParsedDelivery:
    """Return the event of a delivery, independent of its hook's binding."""
    request = WebhookRequest(delivery.headers, delivery.body)
    forge = delivery.hook.partition("/")[0]
    if forge == WEBHOOK:
        return ParsedDelivery(kind="webhook", events=(webhook_event(request),))
    if forge == RECONCILE:
        return _found_by_ourselves(request)
    if forge == PUBSUB:
        return ParsedDelivery(kind="message", events=(pubsub_event(request, topic),))
    return parse_delivery(FORGES[forge], request)


def delivered_repository(delivery: StoredDelivery) -> str:
    """Return the repository address that the hook of a bare repository reports; empty if none."""
    try:
        body = json_object(WebhookRequest(delivery.headers, delivery.body))
    except BadDelivery:
        return ""
    return text(body, "repository", "url")


def reconciled_project(delivery: StoredDelivery) -> str:
    """Return the project for which `reconcile` found an event.

    Raises:
        BadDelivery: the delivery has no project.
    """
    project = text(json_object(WebhookRequest(delivery.headers, delivery.body)), "project")
    if not project:
        raise BadDelivery("an earlier version found this push, and did not store for which project")
    return project


def delivered_payload(delivery: StoredDelivery, number: int) -> dict[str, Any]:
    """Return the payload of one event of a delivery, by root name; empty without one.

    Args:
        delivery: a handled delivery.
        number: index of the event in the delivery.
    """
    try:
        events = _read(delivery).events
    except BadDelivery:
        return {}
    return payload_roots(events[number]) if number < len(events) else {}


def payload_of_build(deliveries: SqlDeliveries, stored: StoredBuild) -> dict[str, Any]:
    """Return the payload of the delivery that fired a build's trigger, by root name; or empty.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    number, event = (stored.labels.get(label, "") for label in (DELIVERY, EVENT_NUMBER))
    if not number or not event:
        return {}
    try:
        delivery = deliveries.get(int(number))
    except NotFound:  # the delivery has expired
        return {}
    return delivered_payload(delivery, int(event))


def _found_by_ourselves(request: WebhookRequest) -> ParsedDelivery:
    """Return an event that `reconcile` found. It names the forge of the repository."""
    parsed = parse_delivery(FORGES["git"], request)
    repository = part(json_object(request), "repository")
    bare = part(repository, "bare") is True
    kind, url = text(repository, "forge") or "git", text(repository, "host")
    host = ForgeHost(kind=kind, url=url) if url else None
    return replace(
        parsed,
        events=tuple(
            replace(event, repository=replace(event.repository, forge=kind, host=host, bare=bare))
            for event in parsed.events
            if isinstance(event, PushEvent)
        ),
    )
