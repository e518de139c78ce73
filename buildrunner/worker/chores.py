"""Periodic work of a server besides builds: sweeps, and deletion of old builds and records.

Each deletion in the database is a small batch with a pause after it, so that no build waits for
it. Every server of a database deletes the files of deleted builds in its own folder.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from buildrunner.errors import BuildrunnerError
from buildrunner.sources.uploads import SourceUploads
from buildrunner.store.keep_rule import ALL_PROJECTS, KeepRule
from buildrunner.worker.data_folder import DataFolder

if TYPE_CHECKING:
    from buildrunner.store.sql.store import ServerStore


_log = logging.getLogger(__name__)


class Chore(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do again and again, in a thread: retention, a sweep of the engine.

    Attributes:
        name: for messages.
        every_s: pause between two runs; the first is at the start.
        run: does it.
    """

    name: str
    every_s: float
    run: Callable[[], object]


class Chores:
    """Begins each when it is due, in a thread of its own, never twice at a time.

    `begin_due` is called by one thread.
    """

    def __init__(self, chores: Iterable[Chore]) -> None:
        self._chores = tuple(chores)
        self._due = dict.fromkeys((chore.name for chore in self._chores), 0.0)

    def begin_due(self) -> None:
        """Begin those whose time has come. Returns at once."""
        for chore in self._chores:
            if time.monotonic() < self._due[chore.name]:
                continue
            self._due[chore.name] = float("inf")
            threading.Thread(target=self._do, args=(chore,), name=chore.name, daemon=True).start()

    def _do(self, chore: Chore) -> None:
        try:
            chore.run()
        except BuildrunnerError as error:
            _log.warning("%s: %s", chore.name, error)
        except Exception:  # noqa: BLE001  (nobody is above us who could report it)
            _log.exception("a bug in %s", chore.name)
        finally:
            self._due[chore.name] = time.monotonic() + chore.every_s


_BELIEVE_S = 5.0  # an answer that nobody had the time to look at is worth nothing behind this
_SILENT_S = 3.0  # an engine that takes longer than this to say that it is there is not well


class EngineWatch:
    """Whether the container engine answers. It is asked in a thread: it may take its time.

    Args:
        check: raises EngineUnavailable when it does not.
        answered: told when there is an answer; cheap.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        check: Callable[[], None],
        answered: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._answered = answered
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._answered_at: float | None = None
        self._problem = ""

    def answers(self) -> bool:
        """Whether it has answered since the last call.

        Each answer counts once. False also means that it is being asked now: `answered` follows.
        """
        with self._lock:
            now = self._clock()
            answered_at, self._answered_at = self._answered_at, None
            if answered_at is not None and now - answered_at <= _BELIEVE_S:
                return not self._problem
            if self._asked_at is None:
                self._asked_at = now
                threading.Thread(target=self._ask, name="engine-watch", daemon=True).start()
            return False

    def problem(self) -> str:
        """Why it does not answer; empty when it does, or when that is not known yet."""
        with self._lock:
            silent_s = 0.0 if self._asked_at is None else self._clock() - self._asked_at
            if silent_s > _SILENT_S:
                return f"the container engine has been silent for {silent_s:.0f} seconds"
            return self._problem

    def _ask(self) -> None:
        problem = "the container engine could not be asked"
        try:
            self._check()
            problem = ""
        except BuildrunnerError as error:
            problem = str(error)
        finally:
            with self._lock:
                self._asked_at = None
                self._answered_at = self._clock()
                self._problem = problem
            self._answered()


class BeginGate:
    """Whether a build may begin. One thread asks `may_begin`; `reason` is for any.

    Args:
        folder: the server's.
        reserve_bytes: nothing begins with less space left on its disk.
        engine: looks after the engine.
    """

    def __init__(self, folder: DataFolder, reserve_bytes: int, engine: EngineWatch) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._engine = engine
        self._reason = ""
        self._kind = ""

    def may_begin(self) -> bool:
        """Look; what keeps builds from beginning, and its end, go to the server's log once."""
        free = self._folder.free_bytes()
        well = self._engine.answers()
        reason, kind = "", ""
        if free < self._reserve_bytes:
            kind = "disk"
            reason = (
                f"The server's disk is full: {free >> 20} MiB are free, and "
                f"{self._reserve_bytes >> 20} MiB are wanted."
            )
        elif problem := self._engine.problem():
            kind = "engine"
            reason = f"{problem[0].upper()}{problem[1:]}."
        self._tell(kind, reason)
        return well and not reason

    def reason(self) -> str:
        """Why no build begins, in a sentence; empty when nothing keeps one from it."""
        return self._reason

    def _tell(self, kind: str, reason: str) -> None:
        if kind and kind != self._kind:
            _log.warning("no build is begun in %s: %s", self._folder.path, reason)
        elif self._kind and not kind:
            _log.info("builds are begun again")
        self._kind, self._reason = kind, reason


AUDIT_DAYS: Final = 365
DELIVERIES: Final = timedelta(days=90)
MESSAGES: Final = timedelta(days=30)
UPLOADS: Final = timedelta(days=30)

BATCH: Final = 50
_PAUSE_S: Final = 0.05
_DAY_S: Final = 86400.0
_HOUR_S: Final = 3600.0
_FILES_S: Final = 10.0
# Servers of a database that was away for longer than that keep the files of builds deleted before.
_KNOWN: Final = timedelta(days=90)
# Transactions of other servers may become visible so much later than they are dated.
_OVERLAP: Final = timedelta(minutes=10)


class KeptTimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long a server keeps its records.

    Attributes:
        builds: rule of each project; `ALL_PROJECTS` is that of projects that are not named.
        audit: age of entries of the audit log; None keeps them for good.
    """

    builds: Mapping[str, KeepRule] = {}
    audit: timedelta | None = timedelta(days=AUDIT_DAYS)

    def shortened(self, age: timedelta) -> timedelta:
        """An age, or that of builds where this is less: nothing of a build outlives it for long."""
        of_builds = self.builds.get(ALL_PROJECTS, KeepRule()).max_age
        return age if of_builds is None else min(age, of_builds)


class Retention:
    """Does the deletions.

    Args:
        store: the database.
        folder: of this server.
        uploads: sources that clients uploaded to this server.
        kept: what is kept.
        now: the time.
    """

    def __init__(
        self,
        store: ServerStore,
        folder: DataFolder,
        uploads: SourceUploads,
        kept: KeptTimes,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._folder = folder
        self._uploads = uploads
        self._kept = kept
        self._now = now
        self._files_until = datetime.fromtimestamp(0, UTC)

    def chores(self) -> tuple[Chore, ...]:
        """The deletions, each with its pause."""
        return (
            Chore(name="old builds", every_s=_HOUR_S, run=self.delete_builds),
            Chore(name="files of deleted builds", every_s=_FILES_S, run=self.delete_files),
            Chore(name="old sources", every_s=_DAY_S, run=self.delete_uploads),
            Chore(name="old records", every_s=_DAY_S, run=self.delete_records),
        )

    def delete_builds(self) -> None:
        """Delete the builds that no rule keeps."""
        if not self._kept.builds:
            return
        for project in self._store.retention.projects():
            rule = self._kept.builds.get(project, self._kept.builds.get(ALL_PROJECTS, KeepRule()))
            delete = self._store.retention.delete_old
            _in_batches(partial(delete, project, rule, now=self._now(), limit=BATCH))

    def delete_files(self) -> None:
        """Delete the files that builds have left in this server's folder."""
        now = self._now()
        for build_id in self._store.retention.deleted_since(self._files_until):
            self._folder.remove_build(build_id)
        self._files_until = now - _OVERLAP

    def delete_uploads(self) -> None:
        """Delete uploaded sources that nobody has asked for lately."""
        self._uploads.prune((self._now() - self._kept.shortened(UPLOADS)).timestamp())

    def delete_records(self) -> None:
        """Delete old deliveries, sent messages and entries of the audit log."""
        now, store = self._now(), self._store
        deliveries = now - self._kept.shortened(DELIVERIES)
        messages = now - self._kept.shortened(MESSAGES)
        _in_batches(lambda: store.deliveries.forget(before=deliveries, limit=BATCH))
        _in_batches(lambda: store.outbox.forget(before=messages, limit=BATCH))
        if self._kept.audit is not None:
            audit = now - self._kept.audit
            _in_batches(lambda: store.audit.forget(before=audit, limit=BATCH))
        store.retention.forget(before=now - _KNOWN)


def _in_batches(delete: Callable[[], int]) -> None:
    while delete() == BATCH:
        time.sleep(_PAUSE_S)
