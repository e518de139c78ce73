"""Backup of the server's SQLite database while servers use it, and its restore.

PostgreSQL has its own tools for this (docs/how-to/backup.md). A backup is one file, a SQLite
database itself, readable by its user only.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple
from urllib.parse import quote

from buildrunner.containers.process_owner import is_alive, pid_of
from buildrunner.errors import Conflict, NotFound, StoreError, UsageError
from buildrunner.store.sql.database import parse_url
from buildrunner.store.sql.migrate import REVISIONS
from buildrunner.store.sql.schema import FENCE

_REPLACED = ".replaced"

# Processes of builds may outlive the server and the restore. Later leases must differ from the
# leases of these processes, which may be missing in the backup.
_FENCE_STEP = 1_000_000
_BESIDE = ("", "-wal", "-shm")


class BackupFacts(NamedTuple):
    """The content of a backup.

    Attributes:
        builds: number of builds.
        triggers: number of triggers.
        size_bytes: size of the file.
        moved_to: path to which `restore` moved an existing database; empty for none.
        kept_revoked: names of the tokens that were revoked after the backup, and stay revoked.
        unconfirmed: names of the tokens that are valid after `restore`, and are not known to have
            been valid before it.
    """

    builds: int
    triggers: int
    size_bytes: int
    moved_to: str = ""
    kept_revoked: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()


def backup(address: str, path: str) -> BackupFacts:
    """Copy a consistent snapshot of a database, while servers continue to use it.

    Args:
        address: the database.
        path: the new file. It is created complete, or not at all.

    Raises:
        UsageError: the database is not SQLite.
        NotFound: there is no database.
        Conflict: the file exists.
        StoreError: the copy failed, or the database is damaged.
    """
    database = _file_of(address)
    if not os.path.exists(database):
        raise NotFound(f"there is no database {database}")
    if os.path.lexists(path):
        raise Conflict(f"{path} exists already", hint="name another file; backups are not replaced")
    with _fresh_beside(path) as fresh:
        _copy(database, fresh)
        with _opened(fresh) as copy:
            # A single file, without SQLite's files beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            facts = _checked(copy, database)
        _put(fresh, path)
    return facts._replace(size_bytes=os.path.getsize(path))


def restore(path: str, address: str, *, replace: bool) -> BackupFacts:
    """Replace a database by a backup. No server may be running on it.

    Tokens that are revoked in the existing database stay revoked.

    Args:
        path: the backup.
        address: the database.
        replace: move an existing database to the same name with ``.replaced``, or
            ``.replaced-2`` and so on if an earlier restore used that name.

    Raises:
        UsageError: the database is not SQLite.
        NotFound: the backup does not exist.
        Conflict: a database exists and ``replace`` is not given, or a build of it still runs.
        StoreError: the backup is invalid, damaged or of a newer version, or can't be copied.
    """
    database = _file_of(address)
    if not os.path.exists(path):
        raise NotFound(f"there is no backup {path}")
    if os.path.exists(database):
        if not replace:
            raise Conflict(
                f"there is a database {database} already",
                hint="with --replace it is moved aside",
            )
        _check_idle(database)
    known = _tokens_of(database)
    with _reported(path):
        os.makedirs(os.path.dirname(database), mode=0o700, exist_ok=True)
    with _fresh_beside(database) as fresh:
        _copy(path, fresh)
        with _opened(fresh) as copy:
            facts = _checked(copy, path)
            with copy:
                copy.execute(
                    "UPDATE counters SET value = value + ? WHERE name = ?", (_FENCE_STEP, FENCE)
                )
                # A user who signed out after the backup stays signed out. Old backups have no
                # sessions.
                if copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone():
                    copy.execute("DELETE FROM sessions")
                revoked, unconfirmed = _keep_revoked(copy, known)
        moved_to = _moved_aside(database)
        _put(fresh, database)
    return facts._replace(
        size_bytes=os.path.getsize(database),
        moved_to=moved_to,
        kept_revoked=revoked,
        unconfirmed=unconfirmed,
    )


def _tokens_of(database: str) -> dict[str, int | None]:
    """Return when each token of a database was revoked, by its hash; None for a valid one.

    The result is empty if the database does not exist or can't be read.
    """
    if os.path.exists(database):
        with suppress(StoreError), _opened(database) as connection:
            return dict(connection.execute("SELECT hash_hex, revoke_time FROM tokens").fetchall())
    return {}


def _keep_revoked(
    copy: sqlite3.Connection, known: dict[str, int | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Revoke the tokens of a copy that are known to be revoked.

    Returns:
        Names of these tokens, and of the valid tokens about which nothing is known.
    """
    revoked: list[str] = []
    unconfirmed: list[str] = []
    valid = "SELECT name, hash_hex FROM tokens WHERE revoke_time IS NULL ORDER BY name"
    for name, hash_hex in copy.execute(valid).fetchall():
        if hash_hex not in known:
            unconfirmed.append(name)
        elif known[hash_hex] is not None:
            copy.execute(
                "UPDATE tokens SET revoke_time = ? WHERE name = ?", (known[hash_hex], name)
            )
            revoked.append(name)
    return tuple(revoked), tuple(unconfirmed)


def _moved_aside(database: str) -> str:
    """Move a database to a free name. Returns the name, or an empty string without a database."""
    with _reported(database):
        if not any(os.path.lexists(f"{database}{ending}") for ending in _BESIDE):
            return ""
        numbers = itertools.count(2)
        target = f"{database}{_REPLACED}"
        while any(os.path.lexists(f"{target}{ending}") for ending in _BESIDE):
            target = f"{database}{_REPLACED}-{next(numbers)}"
        for ending in _BESIDE:
            with suppress(FileNotFoundError):
                os.rename(f"{database}{ending}", f"{target}{ending}")
    return target


def _file_of(address: str) -> str:
    url = parse_url(address)
    if not url.drivername.startswith("sqlite"):
        raise UsageError(
            "only SQLite databases are backed up by buildrunner",
            hint="use pg_dump and psql for PostgreSQL, as docs/how-to/backup.md says",
        )
    return str(url.database)


@contextmanager
def _fresh_beside(path: str) -> Iterator[str]:
    """Yield a new empty file in the same folder, which is deleted unless it was renamed."""
    fresh = f"{path}.{os.getpid()}.new"
    with _reported(path):
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield fresh
    finally:
        for ending in (*_BESIDE, "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(fresh + ending)


def _copy(source: str, target: str) -> None:
    with _opened(source) as origin, _opened(target) as copy, _reported(source):
        origin.backup(copy)


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    # Not in read-only mode: a database in write-ahead mode can't be read without its other files.
    with _reported(path):
        connection = sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=rw", uri=True)
    with closing(connection), _reported(path):
        yield connection


@contextmanager
def _reported(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} can't be used: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} can't be used: {error.strerror}") from error


def _checked(copy: sqlite3.Connection, name: str) -> BackupFacts:
    """Return the content of a copy, after reading every page of it."""
    (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreError(f"{name} is damaged: {verdict}")
    try:
        (revision,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.OperationalError, TypeError) as error:
        raise StoreError(f"{name} is no database of a buildrunner server") from error
    if revision not in REVISIONS:
        raise StoreError(f"{name} is of version {revision}, which is newer than this buildrunner")
    # The names are constants of this module.
    builds, triggers = (
        copy.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
        for table in ("builds", "triggers")
    )
    return BackupFacts(builds, triggers, size_bytes=0)


def _check_idle(database: str) -> None:
    """Refuse to replace a database that a build's process still writes to.

    An unreadable database may be replaced.
    """
    running: list[tuple[str, str]] = []
    with suppress(StoreError), _opened(database) as connection:
        found = connection.execute("SELECT id, process FROM builds WHERE phase = 'claimed'")
        running = [(build_id, process) for build_id, process in found if is_alive(process)]
    for build_id, process in running:
        raise Conflict(
            f"build {build_id} still runs (process {pid_of(process)})",
            hint="wait for its end, or end its process",
        )


def _put(fresh: str, path: str) -> None:
    """Rename a complete file to ``path``, durably."""
    with _reported(path):
        _sync(fresh)
        os.replace(fresh, path)
        _sync(os.path.dirname(os.path.abspath(path)))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
