"""The flags for the folder and the database of a server, for every command on them."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from buildrunner import wiring
from buildrunner.errors import UsageError
from buildrunner.settings import data_folder, server_database

if TYPE_CHECKING:
    from buildrunner.store.sql.store import ServerStore

_WHO = "local"


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--database``."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        default="",
        help="the server's folder: database, logs, sources (default: buildrunner/server in your"
        " data folder)",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        default="",
        help="postgresql://USER@HOST/NAME: a PostgreSQL database instead of a file in the folder;"
        " if the URL has a password, set BUILDRUNNER_DATABASE instead",
    )


def data_of(args: argparse.Namespace) -> str:
    """Return the server's folder, absolute."""
    return os.path.abspath(args.data or os.path.join(data_folder(), "server"))


def database_of(args: argparse.Namespace, data: str) -> str:
    """Return the database's URL: flag, environment, or the file in the folder."""
    url: str = args.database or server_database()
    return url or f"sqlite:///{data}/server.db"


def open_store_if_any(args: argparse.Namespace) -> ServerStore | None:
    """Open the database of this machine's server; None if there is none and no flag names one.

    Raises:
        UsageError: a flag names a database that does not exist.
        StoreError: it can't be used.
    """
    url = database_of(args, data_of(args))
    is_named = bool(args.data or args.database)
    if url.startswith("sqlite:") and not is_named and not os.path.exists(url[len("sqlite:///") :]):
        return None
    return open_store(args)


def note_in_audit_log(store: ServerStore, action: str, target: str) -> None:
    """Record in the audit log what a person did as a user of the server's machine.

    Raises:
        StoreError: the database can't be used.
    """
    from datetime import UTC, datetime

    from buildrunner.store.model.access import AuditEntry

    now = datetime.now(UTC)
    store.audit.add(AuditEntry(at=now, who=_WHO, action=action, target=target, outcome="ok"))


def open_store(args: argparse.Namespace) -> ServerStore:
    """Open the database of a server that was started before.

    Raises:
        UsageError: the database does not exist.
        StoreError: it can't be used.
    """
    data = data_of(args)
    url = database_of(args, data)
    if not has_database(url):
        raise UsageError(
            f"there is no server in {data}",
            hint="start one with `buildrunner serve`, or name its folder with --data",
        )
    return wiring.server_store(url)


def has_database(url: str) -> bool:
    """Whether a database exists at a URL; always True for a URL of a database server."""
    return not url.startswith("sqlite:") or os.path.exists(url.removeprefix("sqlite:///"))
