"""Deletes in the background what a server no longer keeps: builds, deliveries, audit log.

Each deletion in the database is a small batch with a pause behind it, so that no build waits for
it. The files of a deleted build are deleted by every server of the database in its own folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from buildrunner.sources.uploads import SourceUploads
from buildrunner.store.keep_rule import ALL_PROJECTS, KeepRule
from buildrunner.worker.chores import Chore
from buildrunner.worker.data_folder import DataFolder

if TYPE_CHECKING:
    from buildrunner.store.sql.store import ServerStore

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
    """What a server keeps, and for how long.

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
