"""Finds missed pushes: compares refs of repositories with the known ones, and delivers the changes.

Refs that have moved become deliveries of the hook ``reconcile``, which are handled like all others.
The known refs are in the store. So a server that was down finds the pushes of that time, as one
push for each ref. A push that a forge reports later is not built again. At the first check of a
repository, its refs are only recorded.

Several repositories are queried concurrently, so that an unreachable Git server delays few others.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec

from buildrunner.errors import BuildrunnerError, StoreError
from buildrunner.server.context import ServerContext
from buildrunner.server.events.reading import RECONCILE
from buildrunner.server.loop import Loop
from buildrunner.server.services.triggers import KnownRepositories
from buildrunner.store.model.deliveries import KnownRef, NewDelivery, StoredDelivery
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.events import PullRequestEvent, PushEvent
from buildrunner.triggers.forge_host import repository_key
from buildrunner.triggers.forges.forge import ParsedDelivery
from buildrunner.triggers.repository import TriggerRepository, listens_to

_log = logging.getLogger("buildrunner.server")

_MOST_AT_ONCE: Final = 16
_MOST_OF_A_HOST: Final = 4
_QUICK_S: Final = 1.0  # a quicker refusal costs no time
_MOST_MESSAGES: Final = 20
_MOST_REFS: Final = 50  # events of one delivery: each is matched with every trigger


class RemoteRefs(msgspec.Struct, frozen=True, kw_only=True):
    """Requests to Git servers. `list_refs` and `message` raise `BuildrunnerError`.

    Attributes:
        list_refs: returns branches and tags of the repository at a URL: commit by full name.
        message: returns the message of a commit, by the repository's URL and the SHA.
        stop: ends all running requests, and permits no others.
    """

    list_refs: Callable[[str], dict[str, str]]
    message: Callable[[str, str], str]
    stop: Callable[[], None] = lambda: None


class Place(NamedTuple):
    """A repository to check.

    Attributes:
        url: its URL.
        name: its full name, or its name in triggers.
        forge: see `Repository.forge`.
        host: URL of the forge; empty if unknown.
    """

    url: str
    name: str
    forge: str
    host: str


class Reconciler:
    """Checks all repositories at each call of `look`. Calls must not overlap.

    Args:
        context: the server's context.
        remote: requests to Git servers.
    """

    def __init__(self, context: ServerContext, remote: RemoteRefs) -> None:
        self._context = context
        self._remote = remote
        self._repositories = KnownRepositories(context.store, context.repositories)
        self._failing: dict[str, str] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End a running check. Idempotent, from any thread."""
        self._stopped.set()
        self._remote.stop()

    def look(self) -> int:
        """Check every repository of an enabled trigger. Returns the number of new deliveries.

        A repository that can't be queried is checked again at the next call.

        Raises:
            StoreError: the database fails.
        """
        lines = self._lines()
        with ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="reconcile") as threads:
            # The first repository of each host comes before the second one of any host.
            lookers = [
                threads.submit(self._look_along, line)
                for number in range(_MOST_OF_A_HOST)
                for line in lines
                if number < len(line)
            ]
        return sum(looker.result() for looker in lookers)

    def _lines(self) -> list[deque[Place]]:
        """Return the repositories by host; those that failed the last time come last."""
        found: dict[str, deque[Place]] = {}
        for place in sorted(self._places(), key=lambda one: (one.url in self._failing, one.url)):
            host = repository_key(place.url).partition("/")[0]
            found.setdefault(host, deque()).append(place)
        return list(found.values())

    def _look_along(self, line: deque[Place]) -> int:
        """Check the repositories of one host, and stop if the host does not answer."""
        made = 0
        while not self._stopped.is_set():
            try:
                place = line.popleft()
            except IndexError:
                break
            begun = time.monotonic()
            found = self._look_at(place)
            if found is None and time.monotonic() - begun > _QUICK_S:
                break
            made += found or 0
        return made

    def _look_at(self, place: Place) -> int | None:
        """Check one repository. Returns the number of deliveries; None if it can't be queried."""
        try:
            refs = self._remote.list_refs(place.url)
        except StoreError:
            raise
        except BuildrunnerError as error:
            if self._stopped.is_set():
                return None
            if self._failing.get(place.url) != str(error):
                _log.warning("%s can't be looked at for missed pushes: %s", place.name, error)
            self._failing[place.url] = str(error)
            return None
        self._failing.pop(place.url, None)
        made = self._compared(place, refs)
        if made:
            self._context.hook_arrived()
        return made

    def _places(self) -> list[Place]:
        """Return the repositories with triggers, each once."""
        found: dict[str, Place] = {}
        for wanted in self._repositories.all():
            if wanted.problem or not wanted.url:
                continue
            forge, host = (wanted.host.kind, wanted.host.url) if wanted.host else ("git", "")
            found.setdefault(wanted.url, Place(wanted.url, wanted.name, forge, host))
        return list(found.values())

    def _compared(self, place: Place, refs: dict[str, str]) -> int:
        """Call `_compare`; a bug with one repository does not stop the check of the others."""
        try:
            return self._compare(place, refs)
        except BuildrunnerError:
            raise
        except Exception:  # noqa: BLE001  (a bug that one repository meets is that one's)
            _log.exception("%s can't be looked at for missed pushes", place.name)
            return 0

    def _compare(self, place: Place, refs: dict[str, str]) -> int:
        store, key = self._context.store, repository_key(place.url)
        known = store.refs.known(key)
        if known.pop(LOOKED_AT, None) is None:
            store.refs.note_first_look(key, {**refs, LOOKED_AT: "looked at"}, "first look")
            refs = {ref: commit for ref, commit in refs.items() if ref in known}
        changed = [
            _ref(ref, known[ref].commit if ref in known else "", commit)
            for ref, commit in sorted(refs.items())
            if ref not in known or known[ref].commit != commit
        ]
        changed += [_ref(ref, known[ref].commit, "") for ref in sorted(known.keys() - refs.keys())]
        self._add_messages(place.url, changed[:_MOST_MESSAGES])
        repository = {
            "name": place.name,
            "url": place.url,
            "forge": place.forge,
            "host": place.host,
        }
        for at in range(0, len(changed), _MOST_REFS):
            self._deliver(repository, changed[at : at + _MOST_REFS])
        return -(-len(changed) // _MOST_REFS)

    def _add_messages(self, url: str, refs: list[dict[str, Any]]) -> None:
        """Add the commits' messages. After the first error, no more are requested."""
        for one in refs:
            if not one["after"]:
                continue
            try:
                one["message"] = self._remote.message(url, one["after"])
            except BuildrunnerError as error:
                commit = one["after"]
                _log.warning("the message of %s in %s can't be read: %s", commit, url, error)
                return

    def _deliver(self, repository: dict[str, str], refs: list[dict[str, Any]]) -> None:
        body = {"id": str(uuid.uuid4()), "repository": repository, "refs": refs}
        new = NewDelivery(
            hook=RECONCILE,
            delivery_id=str(body["id"]),
            headers={},
            body=msgspec.json.encode(body),
            lane=repository_key(repository["url"]),
        )
        self._context.store.deliveries.add([new], now=self._context.clock())


class ReconcileLoop:
    """Checks the repositories at the start and then periodically, in a separate thread.

    Args:
        reconciler: makes the checks.
        every_s: seconds between two checks.
    """

    def __init__(self, reconciler: Reconciler, every_s: float) -> None:
        self._reconciler = reconciler
        self._loop = Loop("missed pushes", self._turn, every_s)

    def start(self) -> None:
        """Check the repositories at once, and then periodically."""
        self._loop.start()

    def stop(self) -> None:
        """End a running check, and wait for its end, since it uses the store. Idempotent."""
        self._loop.end()
        self._reconciler.stop()
        self._loop.stop()

    def _turn(self) -> None:
        self._reconciler.look()


def _ref(ref: str, before: str, after: str) -> dict[str, Any]:
    return {"ref": ref, "before": before, "after": after, "message": "", "files": None}


LOOKED_AT = ""
"""A pseudo-ref that marks a repository as checked."""


class SeenRefs:
    """Records refs, and finds changes. Thread-safe.

    Args:
        store: stores the refs.
    """

    def __init__(self, store: ServerStore) -> None:
        self._store = store

    def know(self, delivery: StoredDelivery, parsed: ParsedDelivery, url: str) -> None:
        """Record the refs of a bare repository. Later moves count as pushes.

        Args:
            delivery: the delivery of its hook's installation.
            parsed: the parsed delivery, with the refs.
            url: URL of the repository.
        """
        refs = {event.ref: event.after for event in parsed.known}
        self._store.refs.note_first_look(
            repository_key(url), {**refs, LOOKED_AT: "looked at"}, f"delivery {delivery.number}"
        )

    def is_unchanged(self, delivery: StoredDelivery, event: PullRequestEvent) -> bool:
        """Record the head of a pull request. Returns whether an update brings no commits.

        This matters only for Bitbucket, which sends the same event for changed texts and commits.
        """
        if event.repository.forge != "bitbucket":
            return False
        key = f"{repository_key(event.repository.clone_url)} pull requests"
        ref = f"refs/pull/{event.number}/head"
        if event.action not in ("opened", "reopened", "pushed", "updated"):
            return False
        before = self._store.refs.known(key, ref).get(ref)
        by = f"delivery {delivery.number}"
        self._store.refs.note(key, ref, event.head_commit, by)
        is_same = before is not None and _is_one_commit(before.commit, event.head_commit)
        is_news = before is None or before.seen_by == by or bool(delivery.replays)
        return event.action == "updated" and is_same and not is_news

    def note_push(
        self,
        delivery: StoredDelivery,
        event: PushEvent,
        wanted: list[TriggerRepository | None],
    ) -> str:
        """Record the ref's position. Returns why the push is not new; empty if it is.

        Args:
            delivery: the delivery that reports the push.
            event: the push.
            wanted: the repositories of the triggers that are matched.
        """
        repository = event.repository
        listeners = [one for one in wanted if one and listens_to(one, repository).passed]
        addresses = [repository.clone_url, *(one.url for one in listeners)]
        keys = {key for key in map(repository_key, addresses) if key}
        kind = RECONCILE if delivery.hook == RECONCILE else "delivery"
        by = f"{kind} {delivery.number}"
        after = "" if event.is_deletion else event.after
        store = self._store
        before = [store.refs.known(key, event.ref).get(event.ref) for key in keys]
        if delivery.replays:
            return ""
        if any(_is_late(event, one) for one in before):
            return f"the server has looked at {event.ref} since, and built what it found there"
        before = store.refs.note_all(keys, event.ref, KnownRef(after, by, event.before))
        if after and any(one and one.commit == after and one.seen_by != by for one in before):
            return f"{event.ref} was seen at {after[:12]} already, and built then"
        return ""


def _is_one_commit(one: str, other: str) -> bool:
    """Return whether two commits may be the same, by SHAs that may be abbreviated."""
    return bool(one and other) and (one.startswith(other) or other.startswith(one))


def _is_late(event: PushEvent, known: KnownRef | None) -> bool:
    """Return whether a push is older than the last check, which found the ref at another commit.

    This is unknown for tags: forges report the object of an annotated tag, not its commit.
    """
    if event.tag or known is None or not known.seen_by.startswith(RECONCILE) or not event.before:
        return False
    return known.commit not in (event.before, event.after)
