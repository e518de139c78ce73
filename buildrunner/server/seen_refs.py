"""Where the refs of repositories were when they were last heard of: what moved is news, once.

A push may come twice, late, or after the server has looked at the repository by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.server.delivery_reading import RECONCILE
from buildrunner.store.delivery_store import KnownRef
from buildrunner.triggers.forge_host import repository_key
from buildrunner.triggers.trigger_repository import listens_to

if TYPE_CHECKING:
    from buildrunner.store.delivery_store import DeliveryStore, StoredDelivery
    from buildrunner.triggers.events import PullRequestEvent, PushEvent
    from buildrunner.triggers.forges.forge import ParsedDelivery
    from buildrunner.triggers.trigger_repository import TriggerRepository

LOOKED_AT = ""
"""The "ref" that says that a repository was looked at before."""


class SeenRefs:
    """Remembers them, and tells news from what is known. Thread-safe.

    Args:
        store: keeps them.
    """

    def __init__(self, store: DeliveryStore) -> None:
        self._store = store

    def know(self, delivery: StoredDelivery, parsed: ParsedDelivery, url: str) -> None:
        """Remember where the refs of a bare repository are: what moves from now on is news.

        Args:
            delivery: of its hook's installation.
            parsed: says where they are.
            url: of the repository.
        """
        refs = {event.ref: event.after for event in parsed.known}
        self._store.note_first_look(
            repository_key(url), {**refs, LOOKED_AT: "looked at"}, f"delivery {delivery.number}"
        )

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
        self,
        delivery: StoredDelivery,
        event: PushEvent,
        wanted: list[TriggerRepository | None],
    ) -> str:
        """Remember where the ref is now; why the push is old news, empty when it is not.

        Args:
            delivery: which tells of the push.
            event: the push.
            wanted: the repositories of all triggers.
        """
        told = event.repository
        listeners = [one for one in wanted if one and listens_to(one, told).passed]
        addresses = [told.clone_url, *(one.url for one in listeners)]
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
        if after and any(one and one.commit == after and one.seen_by != by for one in before):
            return f"{event.ref} was seen at {after[:12]} already, and built then"
        return ""


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
