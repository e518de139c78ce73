"""What is kept and shown of an event: a line, a build's labels, the verdict of a trigger. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from buildrunner.errors import ConfigError, NotFound
from buildrunner.server.context import ServerContext
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
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.build_store import Document
from buildrunner.store.model.deliveries import StoredDelivery
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.build import forge_labels
from buildrunner.triggers.events import Event, MessageEvent, PullRequestEvent, PushEvent, Verdict
from buildrunner.triggers.forge_host import request_name
from buildrunner.triggers.forges.forge import shortened
from buildrunner.triggers.hook_binding import BARE, HookBinding
from buildrunner.triggers.labels import DELIVERY
from buildrunner.triggers.repository import TriggerRepository, trigger_repository
from buildrunner.triggers.settings import TriggerSettings, read_settings

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


_UNREADABLE: Final = "set the trigger's settings again, or update this server"


class KnownTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger and all that decides what fires it.

    Attributes:
        project: the trigger's project.
        document: the BuildTrigger as it is stored.
        trigger: the same, decoded.
        set_beside: its settings as they are stored.
        settings: the same, decoded.
        repository: the repository that it listens to; None for a trigger that listens to none.
    """

    project: str
    document: dict[str, Any]
    trigger: BuildTrigger
    set_beside: dict[str, Any]
    settings: TriggerSettings
    repository: TriggerRepository | None


class KnownTriggers:
    """Reads all triggers anew each time, and decodes those that have changed. Thread-safe.

    Each delivery asks all of them, and few of them change in between.

    Args:
        store: has them.
        repositories: where connected repositories are: name -> URL.
    """

    def __init__(self, store: ServerStore, repositories: Mapping[str, str]) -> None:
        self._store = store
        self._repositories = repositories
        self._decoded: dict[tuple[str, str], KnownTrigger] = {}
        self._bare: dict[str, str] = {}

    def all(self) -> list[KnownTrigger]:
        """The triggers of all projects, as they are now.

        Raises:
            StoreError: the database fails.
        """
        bare = bare_repositories(self._store)
        before, found = self._decoded if bare == self._bare else {}, {}
        for project, document, settings in self._store.triggers.every():
            key = (project, str(document["id"]))
            known = before.get(key)
            if known is None or known.document != document or known.set_beside != settings:
                known = _known(project, document, settings, self._repositories, bare)
            found[key] = known
        self._decoded, self._bare = found, bare
        return list(found.values())


def known_trigger(context: ServerContext, project: str, document: Document) -> KnownTrigger:
    """One trigger as `KnownTriggers` has it.

    Raises:
        StoreError: the database fails.
    """
    settings = context.store.triggers.settings(project, document["id"])
    bare = bare_repositories(context.store)
    return _known(project, document, settings, context.repositories, bare)


def hook_bindings(store: ServerStore) -> dict[str, HookBinding]:
    """What hooks are bound to, by their names."""
    stored = store.hooks.all()
    return {name: msgspec.convert(document, HookBinding) for name, document in stored.items()}


def hook_binding(store: ServerStore, hook: str) -> HookBinding | None:
    """What a hook is bound to; None if it is bound to nothing."""
    try:
        return msgspec.convert(store.hooks.get(hook), HookBinding)
    except NotFound:
        return None


def bare_repositories(store: ServerStore) -> dict[str, str]:
    """Where bare repositories with a hook are: name -> URL."""
    return {
        name.partition("/")[2]: one.repository
        for name, one in hook_bindings(store).items()
        if name.partition("/")[0] == BARE
    }


def _known(
    project: str,
    document: Document,
    set_beside: Document,
    repositories: Mapping[str, str],
    bare: Mapping[str, str],
) -> KnownTrigger:
    trigger = decode_message(BuildTrigger, document).value
    try:
        settings = read_settings(set_beside)
        wrong = ""
    except ConfigError as error:  # stored by another version
        settings, wrong = TriggerSettings(), f"its settings can't be read: {error}"
    repository = trigger_repository(trigger, settings.forge, repositories=repositories, bare=bare)
    if repository is not None and wrong:  # they name its forge: no other one may stand in for that
        repository = TriggerRepository(name=repository.name, problem=wrong, hint=_UNREADABLE)
    return KnownTrigger(
        project=project,
        document=document,
        trigger=trigger,
        set_beside=set_beside,
        settings=settings,
        repository=repository,
    )
