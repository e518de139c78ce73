"""SQLite databases of servers under test: a template with up-to-date tables, copied."""

from __future__ import annotations

import atexit
import functools
import secrets
import shutil
import sqlite3
import tempfile
from pathlib import Path

from buildrunner.store.sql.store import ServerStore, open_store


def new_store(folder: str) -> ServerStore:
    """Open the database of a server's folder; a new one is empty and has keys of its own."""
    path = Path(folder, "server.db")
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(_template(), path)
        with sqlite3.connect(path, isolation_level=None) as database:
            # This copy may get lost with the machine: it does not wait for the disk.
            database.execute("PRAGMA synchronous = OFF")
            for (name,) in database.execute("SELECT name FROM keys").fetchall():
                database.execute(
                    "UPDATE keys SET value = ? WHERE name = ?", (secrets.token_bytes(32), name)
                )
        database.close()
    return open_store(f"sqlite:///{path}")


@functools.cache
def _template() -> str:
    """An empty database, migrated once for each process of tests."""
    folder = tempfile.mkdtemp(prefix="buildrunner-template-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    open_store(f"sqlite:///{folder}/server.db").close()
    return f"{folder}/server.db"
