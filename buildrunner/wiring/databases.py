"""Where builds are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildrunner.store.build_store import BuildStore
    from buildrunner.store.server_store import ServerStore
    from buildrunner.store.sql_backup import BackupFacts


def build_store(folder: str) -> BuildStore:
    """The local store in a folder."""
    from buildrunner.store.local_store import LocalBuildStore

    return LocalBuildStore(folder)


def server_store(address: str) -> ServerStore:
    """The server's database, its tables brought up to date.

    Args:
        address: ``sqlite:////folder/server.db`` or ``postgresql://user:password@host/name``.

    Raises:
        UsageError: the address is of no known form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    from buildrunner.store.sql_store import open_store

    return open_store(address)


def current_server_store(address: str) -> ServerStore | None:
    """The server's database as it is, nothing changed; None if its tables are an older version's.

    Raises:
        UsageError: the address is of no known form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    from buildrunner.store.sql_database import Database
    from buildrunner.store.sql_migrate import is_current
    from buildrunner.store.sql_store import SqlStore

    database = Database(address)
    if is_current(database):
        return SqlStore(database)
    database.close()
    return None


def backup_database(address: str, path: str) -> BackupFacts:
    """Copy a server's database into a new file; see `buildrunner.store.sql_backup.backup`."""
    from buildrunner.store.sql_backup import backup

    return backup(address, path)


def restore_database(path: str, address: str, *, replace: bool) -> BackupFacts:
    """Make a backup the database; see `buildrunner.store.sql_backup.restore`."""
    from buildrunner.store.sql_backup import restore

    return restore(path, address, replace=replace)
