"""Brings a database's tables up to date, and refuses a database of a newer buildrunner.

The steps are Alembic revisions in ``migrations/versions``. All missing revisions run in one
transaction under a lock: of several servers that start together, one runs them and the others wait.
Alembic itself is imported only if a revision is missing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, inspect, text

from buildrunner.errors import StoreError
from buildrunner.store.sql.database import Database
from buildrunner.store.sql.triggers import index_triggers

# All revisions, oldest first; the last one is that of this version.
REVISIONS = tuple(f"{number:04}" for number in range(1, 27))

FOLDER = os.path.join(os.path.dirname(__file__), "migrations")
# Any number that no other lock on the same database has.
_LOCK = 0x6275696C64


def migrate(database: Database, *, to: str = REVISIONS[-1]) -> None:
    """Upgrade the tables to revision ``to``, from any older one or from nothing.

    Raises:
        StoreError: the database is newer than this program, is another program's, or can't be
            changed.
    """
    if database.is_sqlite:
        _make_file(database.path)
    with _alone(database):
        if database.is_sqlite:
            database.use_write_ahead_log()
        with database.read() as connection:
            revision = _revision(connection, database.name)
        if revision == to:
            return
        with database.write() as connection:
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            # Another process may have done this during the wait.
            if _revision(connection, database.name) != to:
                _upgrade(connection, to)
                if to == REVISIONS[-1]:
                    index_triggers(connection)


def is_current(database: Database) -> bool:
    """Return whether a database has this version's tables. Changes nothing.

    Raises:
        StoreError: the database is newer than this program, or can't be used.
    """
    with database.read() as connection:
        return _revision(connection, database.name) == REVISIONS[-1]


def alembic_config(connection: Connection | None = None) -> Any:
    """Return Alembic's configuration for our revisions, on an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", FOLDER.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection, to: str) -> None:
    from alembic import command

    command.upgrade(alembic_config(connection), to)


def _revision(connection: Connection, name: str) -> str:
    """Return the database's revision; empty for one without tables."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found in REVISIONS:
        return str(found)
    raise StoreError(
        f"the database {name} has tables of version {found}, which is newer than this buildrunner",
        hint="start the newer version again, or restore a backup from before the upgrade",
    )


def _make_file(path: str) -> None:
    """Create an empty file, readable by its user only, if it is missing.

    SQLite's files beside it get the same mode.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"the database {path} can't be opened: {error.strerror}") from error


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """On SQLite: hold a lock, so that only one process at a time prepares the database.

    SQLite's locks don't cover the change to write-ahead logging, which would fail instead of
    waiting.
    """
    if not database.is_sqlite:
        yield
        return
    descriptor = os.open(os.path.dirname(database.path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
