"""Periodic work of a server besides builds: sweeps, and deletion of old builds and records.

Each deletion in the database is a small batch with a pause after it, so that no build waits for
it. Each server of a database deletes the files of deleted builds in its own folder.
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
    """A periodic task, which runs in a thread: retention, or a sweep of the engine.

    Attributes:
        name: name in messages.
        every_s: pause between two runs, in seconds; the first run is at the start.
        run: the function to call.
    """

    name: str
    every_s: float
    run: Callable[[], object]


class Chores:
    """Starts each chore when it is due, in its own thread, never twice at a time.

    Only one thread may call `begin_due`.
    """

    def __init__(self, chores: Iterable[Chore]) -> None:
        self._chores = tuple(chores)
        self._due = dict.fromkeys((chore.name for chore in self._chores), 0.0)

    def begin_due(self) -> None:
        """Start the chores that are due. Returns at once."""
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
        except Exception:  # noqa: BLE001  (no caller could report it)
            _log.exception("a bug in %s", chore.name)
        finally:
            self._due[chore.name] = time.monotonic() + chore.every_s


_BELIEVE_S = 5.0  # an answer older than this is ignored
_SILENT_S = 3.0  # an engine that takes longer than this to answer is not working


class EngineWatch:
    """Checks in a thread whether the container engine answers, which may take long.

    Args:
        check: raises EngineUnavailable if the engine does not answer.
        answered: called when there is an answer; must be cheap.
        clock: monotonic clock in seconds.
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
        """Return whether the engine has answered since the last call.

        Each answer counts once. False also means that a check has started: `answered` follows.
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
        """Return why it does not answer; empty if it does, or if that is not known yet."""
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
    """Decides whether a build may begin. One thread calls `may_begin`; any may call `reason`.

    Args:
        folder: the server's folder.
        reserve_bytes: free disk space below which no build begins.
        engine: the watch on the engine.
    """

    def __init__(self, folder: DataFolder, reserve_bytes: int, engine: EngineWatch) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._engine = engine
        self._reason = ""
        self._kind = ""

    def may_begin(self) -> bool:
        """Return whether a build may begin. An obstacle, and its end, are logged once each."""
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
        """Return why no build begins, in a sentence; empty if builds may begin."""
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
# How long the ids of deleted builds are known. A server that is stopped for longer keeps files of
# builds that were deleted meanwhile.
_KNOWN: Final = timedelta(days=90)
# Maximum time by which transactions of other servers become visible after their date.
_OVERLAP: Final = timedelta(minutes=10)


class KeptTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The retention times of a server's records.

    Attributes:
        builds: rule of each project; `ALL_PROJECTS` is the rule of all other projects.
        audit: maximum age of entries of the audit log; None keeps all.
    """

    builds: Mapping[str, KeepRule] = {}
    audit: timedelta | None = timedelta(days=AUDIT_DAYS)

    def shortened(self, age: timedelta) -> timedelta:
        """Return an age, limited to that of builds: no record outlives its build for long."""
        of_builds = self.builds.get(ALL_PROJECTS, KeepRule()).max_age
        return age if of_builds is None else min(age, of_builds)


class Retention:
    """Deletes old builds, files and records.

    Args:
        store: the database.
        folder: folder of this server.
        uploads: sources that clients uploaded to this server.
        kept: the retention times.
        now: returns the current time.
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
        """Return the deletions as chores."""
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
        """Delete the files of deleted builds in this server's folder."""
        now = self._now()
        for build_id in self._store.retention.deleted_since(self._files_until):
            self._folder.remove_build(build_id)
        self._files_until = now - _OVERLAP

    def delete_uploads(self) -> None:
        """Delete uploaded sources that were not used lately."""
        self._uploads.prune((self._now() - self._kept.shortened(UPLOADS)).timestamp())

    def delete_records(self) -> None:
        """Delete old deliveries, ended messages, audit entries, and ids of deleted builds."""
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
