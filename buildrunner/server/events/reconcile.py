"""Finds missed pushes: compares refs of repositories with the known ones, and delivers the changes.

Refs that have moved become deliveries of the hook ``reconcile``, which are handled like all others.
Each project has known refs of its own, and a delivery fires triggers of its project only. So the
sender of a hook can tell a project nothing unless the hook may fire a trigger of that project.

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
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

from buildrunner.errors import BuildrunnerError, StoreError
from buildrunner.server.context import ServerContext
from buildrunner.server.events.reading import RECONCILE
from buildrunner.server.loop import Loop
from buildrunner.server.services.triggers import KnownRepositories, forget_unwatched, hook_binding
from buildrunner.sources.git.source import MOST_REFS
from buildrunner.store.model.deliveries import KnownRef, NewDelivery, StoredDelivery, Watched
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.events import PullRequestEvent, PushEvent
from buildrunner.triggers.forge_host import is_too_long, repository_key
from buildrunner.triggers.forges.bare_git import INSTALLED
from buildrunner.triggers.forges.forge import BadDelivery, ParsedDelivery
from buildrunner.triggers.hook_binding import BARE, HookBinding
from buildrunner.triggers.repository import TriggerRepository, bare_history, pull_history

_Done = TypeVar("_Done")

_log = logging.getLogger("buildrunner.server")

_MOST_AT_ONCE: Final = 16
_MOST_OF_A_HOST: Final = 4
_QUICK_S: Final = 1.0  # a quicker refusal costs no time
_MOST_SLOW: Final = 2  # of a project on one host, in one look; threads may begin a few more
_MOST_IN_A_ROW: Final = 12  # slow failures until a host counts as unreachable
_MOST_MESSAGES: Final = 20
_MOST_WATCHERS: Final = 8  # projects for one list of refs: their records are in memory meanwhile
_MOST_EVENTS: Final = 50  # events of one delivery: each is matched with every trigger
_MOST_CHANGES: Final = 1000  # of all repositories of a project, for one look
MOST_KNOWN_REFS: Final = 1_000_000
"""The most known refs of one project, of all its repositories."""


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


class Watcher(NamedTuple):
    """A project with a trigger for a repository.

    Attributes:
        watched: the project, and the key of the repository's history.
        repository: the repository, as deliveries describe it: ``name``, ``url``, ``forge``,
            ``host`` (empty if unknown), ``bare``.
        hook: the hook of a bare repository; empty for others.
    """

    watched: Watched
    repository: dict[str, Any]
    hook: str

    @property
    def installation(self) -> Watched:
        """Return the history that the hook of a bare repository begins."""
        return self.watched._replace(project="")


class Place(NamedTuple):
    """A repository to check.

    Attributes:
        url: its URL.
        watchers: the projects with triggers for it.
    """

    url: str
    watchers: tuple[Watcher, ...]

    @property
    def name(self) -> str:
        """Return its full name, or its name in a trigger, for messages."""
        return str(self.watchers[0].repository["name"])

    @property
    def projects(self) -> set[str]:
        """Return the projects of its watchers."""
        return {one.watched.project for one in self.watchers}


class _OfProjects(Protocol):
    """Work for some projects."""

    @property
    def projects(self) -> set[str]: ...


_Work = TypeVar("_Work", bound=_OfProjects)


def _in_turns(work: Iterable[_Work]) -> list[_Work]:
    """Return work in another order: the first of each project comes before the second of any."""
    so_far: Counter[str] = Counter()
    turns = []
    for one in work:
        projects = one.projects
        turns.append((min(so_far[project] for project in projects), one))
        so_far.update(projects)
    return [one for _, one in sorted(turns, key=lambda turn: turn[0])]


class _Line:
    """The repositories of one host that wait for their check in one look. Thread-safe.

    After a few slow failures, the other repositories of a project are left to the next look. After
    many in a row, so is the host.

    Args:
        places: the repositories, in the order of their checks.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.projects = set[str]().union(*(place.projects for place in places))
        self.size = len(places)
        self._places = deque(places)
        self._lock = threading.Lock()
        self._slow: Counter[str] = Counter()
        self._in_a_row = 0

    def next(self) -> Place | None:
        """Return the repository to check now; None at the end."""
        with self._lock:
            while self._places and self._in_a_row < _MOST_IN_A_ROW:
                place = self._places.popleft()
                if any(self._slow[project] < _MOST_SLOW for project in place.projects):
                    return place
        return None

    def note(self, place: Place, *, is_slow_failure: bool) -> None:
        """Record the end of a check."""
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if is_slow_failure else 0
            if is_slow_failure:
                self._slow.update(place.projects)


class _Records(NamedTuple):
    """The records of a repository for a project, as of before a look.

    Attributes:
        refs: the last seen commits, by full name.
        is_first: the project has not looked at the repository yet.
        installed: the refs that the hook of a bare repository reported, before a first look.
    """

    refs: dict[str, str]
    is_first: bool
    installed: dict[str, str]


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
        self._left_out: set[Watched] = set()
        self._changes: Counter[str] = Counter()  # of this look, by project
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
        repositories = self._repositories.all()
        lines = self._lines(_places(repositories))
        self._changes.clear()
        needed = {
            Watched(project, history) for project, one in repositories for history in one.histories
        }
        forget_unwatched(self._context, needed)
        with ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="reconcile") as threads:
            # The first repository of each host comes before the second one of any host.
            lookers = [
                threads.submit(self._look_along, line)
                for number in range(_MOST_OF_A_HOST)
                for line in lines
                if number < line.size
            ]
        return sum(looker.result() for looker in lookers)

    def _lines(self, places: Iterable[Place]) -> list[_Line]:
        """Return the repositories by host.

        Projects take turns on each host, and with their hosts. So the slow repositories and hosts
        of a project delay its own repositories. The repositories that failed the last time come
        last, the one that was queried longest ago first.
        """
        failed = {url: number for number, url in enumerate(self._failing, 1)}
        found: dict[str, tuple[list[Place], list[Place]]] = {}
        for place in sorted(places, key=lambda one: (failed.get(one.url, 0), one.url)):
            host = repository_key(place.url).partition("/")[0]
            found.setdefault(host, ([], []))[place.url in failed].append(place)
        return _in_turns(_Line(_in_turns(good) + _in_turns(bad)) for good, bad in found.values())

    def _look_along(self, line: _Line) -> int:
        """Check the repositories of one host, as far as `_Line` permits."""
        made = 0
        while not self._stopped.is_set() and (place := line.next()) is not None:
            begun = time.monotonic()
            found = self._look_at(place)
            line.note(place, is_slow_failure=found is None and time.monotonic() - begun > _QUICK_S)
            made += found or 0
        return made

    def _look_at(self, place: Place) -> int | None:
        """Check one repository. Returns the number of deliveries; None if it can't be queried."""
        made, begun = 0, set[Watched]()
        found: int | None = 0
        for at in range(0, len(place.watchers), _MOST_WATCHERS):
            found = self._look_for(place, place.watchers[at : at + _MOST_WATCHERS], begun)
            if found is None:
                break
            made += found
        else:
            refs = self._context.store.refs
            for installation in begun:
                if refs.known(installation, LOOKED_AT):  # projects have histories of their own now
                    refs.forget(installation)
        if made:
            self._context.hook_arrived()
        return None if found is None else made

    def _look_for(
        self, place: Place, watchers: Sequence[Watcher], begun: set[Watched]
    ) -> int | None:
        """Check a repository for some projects.

        Adds the installations to ``begun`` whose refs the projects' own histories replace.

        Their records are read first. Read after the answer of the Git server, a push that arrived
        in between would look like a move back to the commit before it.
        """
        found = ((one, self._guarded(place, partial(self._records, one))) for one in watchers)
        records = [(one, known) for one, known in found if known is not None]
        if not records:
            return 0
        try:
            listed = self._remote.list_refs(place.url)
        except StoreError:
            raise
        except BuildrunnerError as error:
            if self._stopped.is_set():
                return None
            if self._failing.pop(place.url, None) != str(error):
                _log.warning("%s can't be looked at for missed pushes: %s", place.name, error)
            self._failing[place.url] = str(error)
            return None
        self._failing.pop(place.url, None)
        refs = {ref: commit for ref, commit in listed.items() if not is_too_long(ref)}
        messages = _Messages(self._remote, place.url)
        compared = (partial(self._compare, *one, refs, messages) for one in records)
        made = sum(self._guarded(place, one) or 0 for one in compared)
        begun |= {
            one.installation
            for one, known in records
            if one.hook and (known.installed or not known.is_first)
            if one.watched not in self._left_out
        }
        return made

    def _records(self, watcher: Watcher) -> _Records | None:
        """Return the records of a repository; None while earlier changes are not handled yet."""
        store = self._context.store
        if store.deliveries.busy_lanes([_lane(watcher.watched)]):
            return None
        known = {ref: one.commit for ref, one in store.refs.known(watcher.watched).items()}
        is_first = known.pop(LOOKED_AT, None) is None
        return _Records(known, is_first, self._installed(watcher) if is_first else {})

    def _guarded(self, place: Place, work: Callable[[], _Done]) -> _Done | None:
        """Do the work; a bug with one repository does not stop the check of the others."""
        try:
            return work()
        except Exception as error:
            if isinstance(error, StoreError) and not error.is_refusal:
                raise
            _log.exception("%s can't be looked at for missed pushes", place.name)
            return None

    def _compare(
        self, watcher: Watcher, records: _Records, refs: dict[str, str], messages: _Messages
    ) -> int:
        watched, known = watcher.watched, records.refs
        if records.is_first:
            first = records.installed or refs
            if not self._note_first(watcher, {**first, LOOKED_AT: "looked at"}):
                return 0
            if records.installed:
                known = {**records.installed, **known}
                known.pop(LOOKED_AT, None)
            else:
                refs = {ref: commit for ref, commit in refs.items() if ref in known}
        # Deletions come first: they make room in a full record.
        changed = [_ref(ref, known[ref], "") for ref in sorted(known.keys() - refs.keys())]
        changed += [
            _ref(ref, known.get(ref, ""), commit)
            for ref, commit in sorted(refs.items())
            if known.get(ref) != commit
        ]
        # The next look finds the rest. Two threads may both take the last ones, which is harmless.
        del changed[max(0, _MOST_CHANGES - self._changes[watched.project]) :]
        self._changes[watched.project] += len(changed)
        for one in [one for one in changed if one["after"]][:_MOST_MESSAGES]:
            one["message"] = messages.of(one["after"])
        for at in range(0, len(changed), _MOST_EVENTS):
            self._deliver(watcher, changed[at : at + _MOST_EVENTS])
        return -(-len(changed) // _MOST_EVENTS)

    def _note_first(self, watcher: Watcher, refs: dict[str, str]) -> bool:
        """Record the refs of a first look. Returns False if the project has too many records."""
        refs_store, watched = self._context.store.refs, watcher.watched
        if refs_store.count(watched.project) + len(refs) > MOST_KNOWN_REFS:
            if watched not in self._left_out:
                _log.warning(
                    "%s of project %s can't be looked at for missed pushes: its triggers'"
                    " repositories have more than %d branches and tags",
                    watcher.repository["name"],
                    watched.project,
                    MOST_KNOWN_REFS,
                )
            self._left_out.add(watched)
            return False
        self._left_out.discard(watched)
        refs_store.note_first_look(watched, refs, "first look")
        return True

    def _installed(self, watcher: Watcher) -> dict[str, str]:
        """Return the refs that a bare repository's hook has reported to the project; or empty."""
        if not watcher.hook:
            return {}
        binding = hook_binding(self._context.store, watcher.hook)
        if binding in (None, HookBinding()) or not binding.allows_project(watcher.watched.project):
            return {}
        found = self._context.store.refs.known(watcher.installation)
        return {ref: one.commit for ref, one in found.items()} if LOOKED_AT in found else {}

    def _deliver(self, watcher: Watcher, refs: list[dict[str, Any]]) -> None:
        body = {
            "id": str(uuid.uuid4()),
            "project": watcher.watched.project,
            "repository": watcher.repository,
            "refs": refs,
        }
        new = NewDelivery(
            hook=RECONCILE,
            delivery_id=str(body["id"]),
            headers={},
            body=msgspec.json.encode(body),
            lane=_lane(watcher.watched),
        )
        self._context.store.deliveries.add([new], now=self._context.clock())


def _places(repositories: Iterable[tuple[str, TriggerRepository]]) -> list[Place]:
    """Return the repositories of triggers with their projects, each once."""
    found: dict[str, dict[Watched, Watcher]] = {}
    for project, wanted in repositories:
        if not wanted.problem and wanted.url:
            watcher = _watcher(project, wanted)
            found.setdefault(wanted.url, {}).setdefault(watcher.watched, watcher)
    return [Place(url, tuple(watchers.values())) for url, watchers in found.items()]


def _lane(watched: Watched) -> str:
    return f"{RECONCILE}/{watched.project} {watched.repository}"


def _watcher(project: str, wanted: TriggerRepository) -> Watcher:
    host = wanted.host
    repository = {
        "name": wanted.bare if wanted.reported else wanted.name,
        # Triggers are matched with the forge's address, also if the settings name a mirror.
        "url": host.clone_url(wanted.name) if host else wanted.url,
        "forge": host.kind if host else "git",
        "host": host.url if host else "",
        "bare": wanted.reported,
    }
    hook = f"{BARE}/{wanted.bare}" if wanted.reported else ""
    return Watcher(Watched(project, wanted.history), repository, hook)


class _Messages:
    """The messages of a repository's commits, each requested once, for one check.

    After the first error, no more are requested.
    """

    def __init__(self, remote: RemoteRefs, url: str) -> None:
        self._remote = remote
        self._url = url
        self._found: dict[str, str] = {}
        self._failed = False

    def of(self, commit: str) -> str:
        """Return the message of a commit; empty for none, and after an error."""
        if not commit or commit in self._found or self._failed:
            return self._found.get(commit, "")
        try:
            self._found[commit] = self._remote.message(self._url, commit)
        except BuildrunnerError as error:
            _log.warning("the message of %s in %s can't be read: %s", commit, self._url, error)
            self._failed = True
        return self._found.get(commit, "")


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

TOO_MANY_REFS: Final = " too many"
"""A pseudo-ref that marks the record of a hook that reported too many refs."""

_NO_ROOM: Final = f"the record of its repository has {MOST_REFS:,} branches and tags already"


class SeenRefs:
    """Records refs, and finds changes. Thread-safe.

    Each project has records of its own: the sender of a hook that may fire no trigger of a project
    can't change them.

    Args:
        store: stores the refs.
    """

    def __init__(self, store: ServerStore) -> None:
        self._store = store

    def know(self, delivery: StoredDelivery, parsed: ParsedDelivery, url: str) -> None:
        """Record refs of a bare repository. Later moves count as pushes.

        The record belongs to the hook, and is complete with the last part of the refs. It is the
        first look of projects that the hook may fire. A hook that reports too many refs has no
        record: a part of the refs would make the others look new.

        Args:
            delivery: a delivery of its hook's installation.
            parsed: the parsed delivery, with the refs.
            url: URL of the repository.

        Raises:
            BadDelivery: the hook has reported too many refs.
        """
        refs = {event.ref: event.after for event in parsed.known}
        watched, by = _installation(delivery, url), f"delivery {delivery.number}"
        if self._has_too_many(watched, refs):
            self._store.refs.forget(watched)
            self._store.refs.note_first_look(watched, {TOO_MANY_REFS: "refused"}, by)
            raise BadDelivery(
                f"hook {delivery.hook} reported more than {MOST_REFS:,} branches and tags,"
                " which are not recorded: a repository with more is not checked for missed pushes"
            )
        if parsed.kind == INSTALLED:
            refs[LOOKED_AT] = "looked at"
        self._store.refs.note_first_look(watched, refs, by)

    def _has_too_many(self, watched: Watched, refs: Collection[str]) -> bool:
        known = self._store.refs
        if known.known(watched, TOO_MANY_REFS):
            return True
        return known.count_with(watched, refs) > MOST_REFS

    def _add_reported(self, new: set[Watched], installation: Watched, ref: str) -> None:
        """Add a hook's record to those that a push changes, unless it has too many refs."""
        refs = self._store.refs
        if refs.known(installation, ref) or not self._has_too_many(installation, (ref,)):
            new.add(installation)
        else:
            refs.forget(installation)

    def _full(self, known: Mapping[Watched, KnownRef | None], ref: str) -> set[Watched]:
        """Return the records that have no room for an unknown ref."""
        unknown = [one for one, before in known.items() if before is None]
        count_with = self._store.refs.count_with
        return {one for one in unknown if count_with(one, (ref,)) > MOST_REFS}

    def unchanged(self, delivery: StoredDelivery, event: PullRequestEvent, project: str) -> str:
        """Record the head of a pull request for a project.

        Returns why an update brings no commits; empty if it may. This matters only for Bitbucket,
        which sends the same event for changed texts and commits.
        """
        if event.repository.forge != "bitbucket":
            return ""
        watched = Watched(project, pull_history(repository_key(event.repository.clone_url)))
        ref = f"refs/pull/{event.number}/head"
        if event.action not in ("opened", "reopened", "pushed", "updated"):
            return ""
        before = self._store.refs.known(watched, ref).get(ref)
        by = f"delivery {delivery.number}"
        if not self._full({watched: before}, ref):
            self._store.refs.note(watched, ref, event.head_commit, by)
        is_same = before is not None and _is_one_commit(before.commit, event.head_commit)
        is_news = before is None or before.seen_by == by or bool(delivery.replays)
        is_unchanged = event.action == "updated" and is_same and not is_news
        return "its text changed, not its commits" if is_unchanged else ""

    def note_push(
        self,
        delivery: StoredDelivery,
        event: PushEvent,
        listening: Mapping[str, Sequence[TriggerRepository]],
    ) -> dict[str, str]:
        """Record the ref's position for each project with a trigger for the repository.

        Returns why the push is not new, by project; empty for a project to which it is new. A full
        record gets no further ref. A reported push of such a ref is new. A push that a check finds
        is not, since each check would find it again.

        Args:
            delivery: the delivery that reports the push.
            event: the push.
            listening: repositories of the triggers that listen to the event's, by project.
        """
        found = dict.fromkeys(listening, "")
        kind = RECONCILE if delivery.hook == RECONCILE else "delivery"
        by = f"{kind} {delivery.number}"
        after = "" if event.is_deletion else event.after
        refs = self._store.refs
        watched = {
            Watched(project, repository.history)
            for project, repositories in listening.items()
            for repository in repositories
        }
        known = {one: refs.known(one, event.ref).get(event.ref) for one in watched}
        if delivery.replays:
            return found
        late = {one.project for one, before in known.items() if _is_late(event, before)}
        said = f"the server has looked at {event.ref} since, and built what it found there"
        found |= dict.fromkeys(late, said)
        full = self._full(known, event.ref)
        if delivery.hook == RECONCILE:
            found.update(dict.fromkeys((one.project for one in full), _NO_ROOM))
        new = {one for one in watched - full if one.project not in late}
        if delivery.hook.partition("/")[0] == BARE:
            installation = _installation(delivery, event.repository.clone_url)
            if refs.known(installation, LOOKED_AT):
                self._add_reported(new, installation, event.ref)
        if not new:
            return found
        is_found = delivery.hook == RECONCILE
        now = KnownRef(after, by, event.before)
        seen = refs.note_all(new, event.ref, now, only_from_before=is_found)
        if is_found:
            moved = {
                one.project
                for one, before in seen.items()
                if (before.commit if before else "") == event.before
                or (before is not None and before.seen_by == by)
            }
            for project in {one.project for one in seen} - moved:
                found[project] = f"{event.ref} has moved since the server looked at it"
        for one, before in seen.items():
            is_known = before is not None and before.commit == after and before.seen_by != by
            if after and is_known and one.project:
                found[one.project] = f"{event.ref} was seen at {after[:12]} already, and built then"
        return found


def _installation(delivery: StoredDelivery, url: str) -> Watched:
    """Return the history that the hook of a bare repository begins."""
    return Watched("", bare_history(delivery.hook.partition("/")[2], url))


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
