"""JSON documents of buildrunner's own resources, for the API, pages and commands. Pure."""

from __future__ import annotations

from typing import Any

from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.access import AccessToken, AuditEntry
from buildrunner.store.model.deliveries import WAITING, StoredDelivery
from buildrunner.store.model.outbox import Message


def shown_token(token: AccessToken) -> dict[str, Any]:
    """Return the public facts of a token, without its hash."""
    shown: dict[str, Any] = {
        "name": token.name,
        "scopes": token.scopes,
        "projects": token.projects,
        "createTime": encode_instant(token.create_time),
    }
    if token.pool:
        shown["pool"] = token.pool
    if token.revoke_time is not None:
        shown["revokeTime"] = encode_instant(token.revoke_time)
    return shown


def shown_entry(entry: AuditEntry) -> dict[str, Any]:
    """Return an entry of the audit log as JSON."""
    return {
        "id": str(entry.id),
        "at": encode_instant(entry.at),
        "who": entry.who,
        "action": entry.action,
        "target": entry.target,
        "outcome": entry.outcome,
        "address": entry.address,
    }


def shown_delivery(delivery: StoredDelivery) -> dict[str, Any]:
    """Return a delivery as JSON for a list."""
    outcome = delivery.outcome
    verdicts = [one for event in outcome.get("events", ()) for one in event.get("verdicts", ())]
    events = [event.get("event", "") for event in outcome.get("events", ())]
    more = f", and {len(events) - 1} more" if len(events) > 1 else ""
    shown: dict[str, Any] = {
        "number": delivery.number,
        "hook": delivery.hook,
        "id": delivery.delivery_id,
        "receivedAt": encode_instant(delivery.received_at),
        "status": delivery.status,
        "address": delivery.address,
        "kind": outcome.get("kind", ""),
        "about": events[0] + more if events else "",
        "builds": [one["build"] for one in verdicts if one.get("build")],
        "replays": delivery.replays,
    }
    if "retry" in outcome and delivery.status == WAITING:
        shown |= {"waitsFor": outcome["retry"]["because"], "nextTry": outcome["retry"]["at"]}
    for name in ("reason", "ignored", "error"):
        if outcome.get(name):
            shown["problem" if name == "error" else name] = outcome[name]
    if outcome.get("times"):
        shown["reason"] = f"{outcome['reason']} ({outcome['times']} times)"
    return shown


def shown_message(message: Message) -> dict[str, Any]:
    """Return a message as JSON for a list."""
    shown: dict[str, Any] = {
        "id": message.id,
        "state": message.state,
        "target": message.target,
        "buildId": message.build_id,
        "attempts": message.attempts,
        "createTime": encode_instant(message.created_at),
    }
    if message.last_error:
        shown["reason"] = message.last_error
    if message.done_at is not None:
        shown["doneTime"] = encode_instant(message.done_at)
    elif message.state == "waiting":
        shown["nextTry"] = encode_instant(message.next_try)
    return shown
