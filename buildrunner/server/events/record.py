"""Texts of an event: its summary, the labels of its builds, the verdicts of triggers. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from buildrunner.server.events.reading import WEBHOOK
from buildrunner.server.services.approval_facts import (
    AUTHOR,
    AUTHOR_ID,
    BASE_BRANCH,
    COMMENTER,
    FORK,
    HEAD_REPOSITORY,
    PULL_REQUEST_URL,
    TITLE,
)
from buildrunner.store.model.deliveries import StoredDelivery
from buildrunner.triggers.build import forge_labels
from buildrunner.triggers.events import Event, MessageEvent, PullRequestEvent, PushEvent, Verdict
from buildrunner.triggers.forge_host import request_name
from buildrunner.triggers.forges.forge import shortened
from buildrunner.triggers.labels import DELIVERY

MOST_VERDICTS = 1000
"""Of an event; whoever has more triggers than that has most of them for other repositories."""


def described(event: Event) -> str:
    """The event in one line."""
    match event:
        case PushEvent():
            where = f"{event.repository.full_name} ({event.repository.forge})"
            if event.is_deletion:
                return f"{shortened(event.ref)} of {where} was deleted"
            return f"push of {shortened(event.ref)} to {event.after[:12]} in {where}"
        case PullRequestEvent():
            name = request_name(event.repository.forge, event.number)
            return f"{name} of {event.repository.full_name}: {event.action}"
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
    if verdict.waits_for_answer:
        shown["waitsForAnswer"] = True
    return shown


def kept_verdicts(verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """As many verdicts as are kept: those of other repositories go first, and are counted."""
    if len(verdicts) <= MOST_VERDICTS:
        return {"verdicts": verdicts}
    mine = [one for one in verdicts if not _is_of_another_repository(one)]
    others = [one for one in verdicts if _is_of_another_repository(one)]
    kept = [*mine, *others][:MOST_VERDICTS]
    return {"verdicts": kept, "more": len(verdicts) - len(kept)}


def _is_of_another_repository(verdict: dict[str, Any]) -> bool:
    last = verdict["rules"][-1] if verdict["rules"] else {}
    return last.get("name") == "repository" and last.get("passed") is False


def build_labels(delivery: StoredDelivery, event: Event) -> dict[str, str]:
    """What a build's labels say of the event that made it; statuses are sent by them."""
    labels = {DELIVERY: str(delivery.number), "hook": delivery.hook}
    if isinstance(event, MessageEvent):
        return {**labels, "event": event.kind}
    told = event.repository
    if told.host is not None:
        labels |= forge_labels(told.host, told.full_name)
    else:
        labels |= {"forge": told.forge, "repository": told.full_name}
    if isinstance(event, PushEvent):
        labels |= {"event": "tag" if event.tag else "push", "commit": event.after}
        labels["branch"] = event.branch
    else:
        labels |= {"event": "pull_request", "commit": event.head_commit}
        labels |= {"branch": event.head_branch, "pull_request": str(event.number)}
        labels |= _pull_labels(event)
    return {name: value for name, value in labels.items() if value}


def _pull_labels(event: PullRequestEvent) -> dict[str, str]:
    """What whoever decides about a pull request's build must know; see `approval_facts`."""
    told = event.repository
    labels = {
        TITLE: shortened(event.title),
        BASE_BRANCH: event.base_branch,
        HEAD_REPOSITORY: event.head_full_name,
        FORK: "yes" if event.is_fork else "",
        PULL_REQUEST_URL: told.host.pull_request_page(told.full_name, event.number)
        if told.host
        else "",
        AUTHOR: f"{told.forge}:{event.author}" if event.author else "",
        AUTHOR_ID: event.author_id,
        COMMENTER: event.commenter if event.action == "commented" else "",
    }
    return {name: value for name, value in labels.items() if value}


def who_made(delivery: StoredDelivery, event: Event) -> str:
    """Who is behind an event, for the audit log."""
    if isinstance(event, MessageEvent):
        forge, _, name = delivery.hook.rpartition("/")
        return f"{WEBHOOK}:{name}" if forge.startswith(WEBHOOK) else f"hook:{delivery.hook}"
    person = event.author
    if isinstance(event, PullRequestEvent):
        person = event.commenter if event.action == "commented" else event.actor or event.author
    return f"{event.repository.forge}:{person}" if person else f"hook:{delivery.hook}"
