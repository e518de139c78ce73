"""The stores of builds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildrunner.store.build_store import BuildStore
    from buildrunner.store.sql.backup import BackupFacts
    from buildrunner.store.sql.store import ServerStore


def build_store(folder: str) -> BuildStore:
    """Return the local store in a folder."""
    from buildrunner.store.local import LocalBuildStore

    return LocalBuildStore(folder)


def server_store(address: str) -> ServerStore:
    """Return the server's database after migrating its tables.

    Args:
        address: ``sqlite:////folder/server.db`` or ``postgresql://user:password@host/name``.

    Raises:
        UsageError: the address has no known form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    from buildrunner.store.sql.store import open_store

    return open_store(address)


def current_server_store(address: str) -> ServerStore | None:
    """Return the server's database without migrating it; None if its tables are outdated.

    Raises:
        UsageError: the address has no known form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    from buildrunner.store.sql.database import Database
    from buildrunner.store.sql.migrate import is_current
    from buildrunner.store.sql.store import ServerStore

    database = Database(address)
    if is_current(database):
        return ServerStore(database)
    database.close()
    return None


def backup_database(address: str, path: str) -> BackupFacts:
    """Copy a server's database into a new file; see `buildrunner.store.sql.backup.backup`."""
    from buildrunner.store.sql.backup import backup

    return backup(address, path)


def restore_database(path: str, address: str, *, replace: bool) -> BackupFacts:
    """Restore a backup as the database; see `buildrunner.store.sql.backup.restore`."""
    from buildrunner.store.sql.backup import restore

    return restore(path, address, replace=replace)
