"""What a stored delivery says: whose hook it came by decides how it is read. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.server.routes_hooks import PUBSUB
from buildrunner.triggers.event_build import payload_roots
from buildrunner.triggers.events import PushEvent
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    ParsedDelivery,
    WebhookRequest,
    json_object,
    text,
)
from buildrunner.triggers.forges.plausible import parse_delivery
from buildrunner.triggers.forges.pubsub import pubsub_event
from buildrunner.triggers.forges.webhook import webhook_event

if TYPE_CHECKING:
    from buildrunner.store.build_store import Document
    from buildrunner.store.delivery_store import StoredDelivery

RECONCILE = "reconcile"
"""The hook of what the server found by looking at a repository itself."""

WEBHOOK = "webhook"
"""The first part of the hook of calls of webhook triggers."""


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
    parsed = parse_delivery(FORGES[forge], request)
    if forge == "git":
        for event in (*parsed.events, *parsed.known):
            if isinstance(event, PushEvent) and event.repository.full_name != name:
                told = event.repository.full_name
                raise BadDelivery(f"the hook of {name} can't speak for {told}")
    return parsed


def delivered_payload(delivery: StoredDelivery, number: int) -> dict[str, Any]:
    """The payload of one event of a delivery, by root name; empty where there is none.

    Args:
        delivery: which was handled.
        number: the event's place among the delivery's events.
    """
    try:
        events = parsed_delivery(delivery).events
    except BadDelivery:
        return {}
    return payload_roots(events[number]) if number < len(events) else {}


def _found_by_ourselves(request: WebhookRequest) -> ParsedDelivery:
    """What `reconcile` found: it knows the forge by the repository's address."""
    parsed = parse_delivery(FORGES["git"], request)
    forge = text(json_object(request), "repository", "forge") or "git"
    return replace(
        parsed,
        events=tuple(
            replace(event, repository=replace(event.repository, forge=forge))
            for event in parsed.events
            if isinstance(event, PushEvent)
        ),
    )
