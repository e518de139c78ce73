"""The embedded store: SQLite in the user's data folder, with log files beside it.

``builds.db`` has one row for each build, and ``logs/ID/`` has its log (see
`buildrunner.logs.files.log_file`). WAL mode lets readers and one writer work concurrently; a
second writer waits. The schema's version is SQLite's own ``user_version``; `_MIGRATIONS` brings an
older file up to date.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.process_owner import is_alive
from buildrunner.errors import Conflict, NotFound, StoreError
from buildrunner.logs.console.wording import unwritable_hint
from buildrunner.logs.files.log_file import LOG_NAME, log_folder
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.build_store import Document

if TYPE_CHECKING:
    from buildrunner.store.model.deployments import RecordedDeployment

DATABASE_NAME = "builds.db"
DIED = "the buildrunner process died"

_BUSY_TIMEOUT_S = 10.0
# Never change a released entry: add one.
_MIGRATIONS = (
    """
    CREATE TABLE builds (
        id          TEXT PRIMARY KEY,
        create_time TEXT NOT NULL,
        status      TEXT NOT NULL,
        owner       TEXT NOT NULL,  -- PID:START of the process that runs it, empty once it ended
        document    BLOB NOT NULL   -- the Build resource, protobuf JSON
    ) WITHOUT ROWID;
    CREATE INDEX builds_by_time ON builds (create_time);
    """,
    """
    CREATE TABLE deployments (
        id       TEXT PRIMARY KEY,
        build_id TEXT NOT NULL,
        target   TEXT NOT NULL,
        at       INTEGER NOT NULL,  -- microseconds since 1970
        document BLOB NOT NULL      -- the RecordedDeployment
    ) WITHOUT ROWID;
    CREATE INDEX deployments_by_time ON deployments (at DESC, id);
    CREATE INDEX deployments_by_target ON deployments (target, at DESC, id);
    CREATE INDEX deployments_of_build ON deployments (build_id);
    """,
)


class LocalBuildStore:
    """A `BuildStore` in a folder. Used by one thread; other threads open their own.

    Args:
        folder: created if missing, readable by the user only.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        with self._translated():
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._db = sqlite3.connect(
                os.path.join(folder, DATABASE_NAME),
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate()

    def create(self, document: Document, *, owner: str) -> None:
        """See `BuildStore.create`."""
        final = document["status"] in FINAL_STATUSES
        row = (
            document["id"],
            document["createTime"],
            document["status"],
            "" if final else owner,
            msgspec.json.encode(document),
        )
        with self._translated(), self._durable(when=final):
            try:
                self._db.execute("INSERT INTO builds VALUES (?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise Conflict(f"a build {document['id']} exists already") from error

    def update(self, document: Document) -> None:
        """See `BuildStore.update`."""
        status, build_id = document["status"], document["id"]
        final = status in FINAL_STATUSES
        with self._translated(), self._durable(when=final):
            changed = self._db.execute(
                "UPDATE builds SET status = ?, document = ?, owner = iif(?, '', owner)"
                " WHERE id = ? AND owner != ''",
                (status, msgspec.json.encode(document), final, build_id),
            ).rowcount
        if not changed:
            was = self.get(build_id)["status"]
            raise Conflict(f"build {build_id} has ended already, with status {was}")

    def get(self, build_id: str) -> Document:
        """See `BuildStore.get`."""
        after = build_id + "\U0010ffff"
        rows = self._rows("WHERE id >= ? AND id < ? ORDER BY id LIMIT 2", (build_id, after))
        if not rows or not build_id:
            raise NotFound(
                f'there is no build "{build_id}" here', hint="`buildrunner builds list` shows all"
            )
        if len(rows) > 1 and rows[0]["id"] != build_id:
            raise Conflict(
                f'several builds begin with "{build_id}"', hint="give more characters of the id"
            )
        return rows[0]

    def delete(self, build_id: str) -> None:
        """See `BuildStore.delete`."""
        import shutil

        status = self.get(build_id)["status"]  # also ends a build whose process died
        with self._translated():
            deleted = self._db.execute(
                "DELETE FROM builds WHERE id = ? AND owner = ''", (build_id,)
            ).rowcount
            if deleted:
                self._db.execute("DELETE FROM deployments WHERE build_id = ?", (build_id,))
                shutil.rmtree(log_folder(self._folder, build_id), ignore_errors=True)
                return
        raise Conflict(f"build {build_id} has not ended: it is {status}")

    def find(self, *, statuses: Sequence[str] = (), limit: int = 50) -> list[Document]:
        """See `BuildStore.find`."""
        self._bury_orphans()
        marks = ", ".join("?" * len(statuses))
        where = f"WHERE status IN ({marks})" if statuses else ""
        return self._rows(f"{where} ORDER BY create_time DESC, id LIMIT ?", (*statuses, limit))

    def owner_of(self, build_id: str) -> str:
        """See `BuildStore.owner_of`."""
        with self._translated():
            row = self._db.execute("SELECT owner FROM builds WHERE id = ?", (build_id,)).fetchone()
        return row[0] if row else ""

    def record_deployments(self, made: Sequence[RecordedDeployment]) -> None:
        """See `BuildStore.record_deployments`."""
        from buildrunner.store.records import microseconds

        for one in made:
            earlier = self.deployments(target=one.target, limit=2)
            before = next((other for other in earlier if other.id != one.id), None)
            document = msgspec.json.encode(one.after(before))
            row = (one.id, one.build_id, one.target, microseconds(one.time), document)
            with self._translated():
                self._db.execute("INSERT OR IGNORE INTO deployments VALUES (?, ?, ?, ?, ?)", row)

    def deployments(
        self, *, target: str = "", build_id: str = "", latest: bool = False, limit: int = 50
    ) -> list[RecordedDeployment]:
        """See `BuildStore.deployments`."""
        from buildrunner.store.model.deployments import RecordedDeployment

        values = {"target": target, "build": build_id, "latest": latest, "limit": limit}
        with self._translated():
            rows = self._db.execute(
                "SELECT document FROM deployments AS d"
                " WHERE (:target = '' OR target = :target)"
                " AND (:build = '' OR build_id = :build)"
                " AND (NOT :latest OR id = (SELECT id FROM deployments WHERE target = d.target"
                " ORDER BY at DESC, id LIMIT 1))"
                " ORDER BY at DESC, id LIMIT :limit",
                values,
            ).fetchall()
        return [msgspec.json.decode(body, type=RecordedDeployment) for (body,) in rows]

    def close(self) -> None:
        """See `BuildStore.close`."""
        self._db.close()

    def _rows(self, clause: str, values: Sequence[object]) -> list[Document]:
        # The clause is a constant of this module; values are always parameters.
        with self._translated():
            rows = self._db.execute(
                f"SELECT document, owner FROM builds {clause}",  # noqa: S608
                values,
            ).fetchall()
        return [self._read(body, owner) for body, owner in rows]

    def _read(self, body: bytes, owner: str) -> Document:
        document: Document = msgspec.json.decode(body)
        if owner and not is_alive(owner):
            return self._bury(document, owner)
        return document

    def _bury_orphans(self) -> None:
        """Give builds whose process died their final status."""
        self._rows("WHERE owner != ''", ())

    def _bury(self, document: Document, owner: str) -> Document:
        document["status"] = "INTERNAL_ERROR"
        document["statusDetail"] = DIED
        document["finishTime"] = _last_sign_of_life(log_folder(self._folder, document["id"]))
        for step in document.get("steps", ()):
            if step.get("status") == "WORKING":
                step["status"] = "CANCELLED"
        with self._translated():
            # Only if the owner is unchanged: another process may have done this meanwhile.
            self._db.execute(
                "UPDATE builds SET status = ?, document = ?, owner = '' WHERE id = ? AND owner = ?",
                (document["status"], msgspec.json.encode(document), document["id"], owner),
            )
        return document

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == len(_MIGRATIONS):
            return
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"the builds in {self._folder} were written by a newer buildrunner",
                hint="use that version, or point XDG_DATA_HOME to another folder",
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        # Another process may migrate concurrently: take the lock first, then check again.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            for script in _MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _durable(self, *, when: bool) -> Iterator[None]:
        # NORMAL survives the end of the process, FULL also a power cut.
        if not when:
            yield
            return
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreError(
                f"the store of builds in {self._folder} can't be used: {reason}",
                hint=unwritable_hint(error),
            ) from error


def _last_sign_of_life(folder: str) -> str:
    try:
        changed = os.stat(os.path.join(folder, LOG_NAME)).st_mtime
        at = datetime.fromtimestamp(changed, UTC)
    except OSError:
        at = datetime.now(UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
