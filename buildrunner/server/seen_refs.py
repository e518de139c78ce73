"""Where the refs of repositories were when they were last heard of: what moved is news, once.

A push may come twice, late, or after the server has looked at the repository by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.server.delivery_reading import RECONCILE, repository_url
from buildrunner.store.delivery_store import KnownRef
from buildrunner.triggers.repository_names import (
    address_of_trigger,
    listens_to,
    repository_key,
    wanted_repository,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.spec.trigger import BuildTrigger
    from buildrunner.store.delivery_store import DeliveryStore, StoredDelivery
    from buildrunner.triggers.events import PullRequestEvent, PushEvent
    from buildrunner.triggers.forges.forge import ParsedDelivery

LOOKED_AT = ""
"""The "ref" that says that a repository was looked at before."""

_ADDRESSES = "addresses of "  # and a name: no repository's key has a blank in it


def known_addresses(store: DeliveryStore, name: str) -> dict[str, str]:
    """Where deliveries said that a repository is: forge by URL.

    Args:
        store: keeps it.
        name: as triggers call the repository.
    """
    found = store.known_refs(_ADDRESSES + name.casefold())
    return {one.commit: forge for forge, one in found.items()}


def told_address(
    store: DeliveryStore, trigger: BuildTrigger, repositories: Mapping[str, str]
) -> str:
    """Where deliveries said that a trigger's repository is; empty where the settings say it.

    Args:
        store: keeps what they said.
        trigger: which listens to the repository.
        repositories: addresses of repositories, by name.
    """
    name, _ = wanted_repository(trigger)
    if not name or (trigger.github is None and address_of_trigger(trigger, repositories)):
        return ""
    found = {forge: url for url, forge in known_addresses(store, name).items()}
    if trigger.github is not None and "github" in found:
        return found["github"]
    return next(iter(found.values()), "")


class SeenRefs:
    """Remembers them, and tells news from what is known. Thread-safe.

    Args:
        store: keeps them.
        repositories: addresses of repositories, by name.
    """

    def __init__(self, store: DeliveryStore, repositories: Mapping[str, str]) -> None:
        self._store = store
        self._repositories = repositories
        self._addresses: dict[tuple[str, str], str] = {}  # that we noted: most pushes bring no news

    def know(self, delivery: StoredDelivery, parsed: ParsedDelivery) -> None:
        """Remember a repository and where its refs are: what moves from now on is news."""
        url = repository_url(delivery)
        store, key, by = self._store, repository_key(url), f"delivery {delivery.number}"
        for event in parsed.known:
            if not store.known_refs(key, event.ref):
                store.note_ref(key, event.ref, event.after, by)
        if key:
            store.note_ref(key, LOOKED_AT, "looked at", by)
            forge, _, name = delivery.hook.partition("/")
            self._note_address(name, url, forge, by)

    def is_unchanged(self, delivery: StoredDelivery, event: PullRequestEvent) -> bool:
        """Remember the head of a pull request; whether an update of it brings no commits.

        Only Bitbucket does not tell an update of texts from one of commits.
        """
        if event.repository.forge != "bitbucket":
            return False
        key = f"{repository_key(event.repository.clone_url)} pull requests"
        ref = f"refs/pull/{event.number}/head"
        if event.action not in ("opened", "reopened", "pushed", "updated"):
            return False
        before = self._store.known_refs(key, ref).get(ref)
        by = f"delivery {delivery.number}"
        self._store.note_ref(key, ref, event.head_commit, by)
        is_same = before is not None and _is_one_commit(before.commit, event.head_commit)
        is_news = before is None or before.seen_by == by or bool(delivery.replays)
        return event.action == "updated" and is_same and not is_news

    def note_push(
        self, delivery: StoredDelivery, event: PushEvent, triggers: list[BuildTrigger]
    ) -> str:
        """Remember where the ref is now; why the push is old news, empty when it is not."""
        known, told = self._repositories, event.repository
        listeners = [one for one in triggers if listens_to(one, told, known).passed]
        addresses = [told.clone_url, *(address_of_trigger(one, known) for one in listeners)]
        keys = {key for key in map(repository_key, addresses) if key}
        kind = RECONCILE if delivery.hook == RECONCILE else "delivery"
        by = f"{kind} {delivery.number}"
        after = "" if event.is_deletion else event.after
        store = self._store
        before = [store.known_refs(key, event.ref).get(event.ref) for key in keys]
        if delivery.replays:
            return ""
        if any(_is_late(event, one) for one in before):
            return f"the server has looked at {event.ref} since, and built what it found there"
        before = store.note_refs(keys, event.ref, KnownRef(after, by, event.before))
        for name in {wanted_repository(one)[0] for one in listeners}:
            self._note_address(name, told.clone_url, told.forge, by)
        if after and any(one and one.commit == after and one.seen_by != by for one in before):
            return f"{event.ref} was seen at {after[:12]} already, and built then"
        return ""

    def _note_address(self, name: str, url: str, forge: str, by: str) -> None:
        """Remember where the repository is that triggers call so: there it is looked at."""
        if url and self._addresses.get((name, forge)) != url:
            self._store.note_ref(_ADDRESSES + name.casefold(), forge, url, by)
            self._addresses[name, forge] = url


def _is_one_commit(one: str, other: str) -> bool:
    """Whether two commits may be the same; of each there may be the first characters only."""
    return bool(one and other) and (one.startswith(other) or other.startswith(one))


def _is_late(event: PushEvent, known: KnownRef | None) -> bool:
    """Whether a push comes from before the ref was looked at: it begins where the ref is not.

    Where a tag was before nobody can say: forges tell the object of an annotated one.
    """
    if event.tag or known is None or not known.seen_by.startswith(RECONCILE) or not event.before:
        return False
    return known.commit not in (event.before, event.after)
