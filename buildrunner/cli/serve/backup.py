"""``buildrunner backup``: copies the server's database, and restores a copy."""

from __future__ import annotations

import argparse
import os
import sys

from buildrunner import wiring
from buildrunner.cli.serve.place import add_place_flags, data_of, database_of
from buildrunner.errors import EXIT_SUCCESS
from buildrunner.logs.console.wording import printable

_EPILOG = """\
The server may run during a backup. Stop it for a restore. Logs and uploaded sources are files in
the server's folder: copy them after the database. For PostgreSQL, use pg_dump and psql
(docs/how-to/backup.md).

examples:
  buildrunner backup create server-$(date +%F).db
  buildrunner backup restore server-2026-05-01.db --replace
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``backup`` and their flags."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    creating = actions.add_parser("create", help="copy the database into a new file")
    creating.add_argument("file", metavar="FILE", help="file to write, which must not exist")
    restoring = actions.add_parser("restore", help="replace the database with a backup")
    restoring.add_argument("file", metavar="FILE", help="file of `backup create`")
    restoring.add_argument(
        "--replace",
        action="store_true",
        help="replace an existing database, which is moved to server.db.replaced or the next free"
        " name",
    )
    for action in (creating, restoring):
        add_place_flags(action)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: the database is not SQLite.
        NotFound: the database, or the backup, does not exist.
        Conflict: the file exists already, or the database is in use.
        StoreError: the copy failed, a server runs, or the backup is damaged.
    """
    path = os.path.abspath(args.file)
    data = data_of(args)
    database = database_of(args, data)
    if args.action == "create":
        facts = wiring.backup_database(database, path)
        done = f"Backed up to {path}"
    else:
        from buildrunner.worker.data_folder import DataFolder

        with DataFolder(data).lock():  # no server can start until this has ended
            facts = wiring.restore_database(path, database, replace=args.replace)
        done = f"Restored from {path}"
        if facts.moved_to:
            sys.stderr.write(f"Moved the existing database to {facts.moved_to}\n")
        if facts.kept_revoked:
            names = ", ".join(map(printable, facts.kept_revoked))
            sys.stderr.write(f"Tokens revoked after the backup stay revoked: {names}\n")
        if facts.unconfirmed:
            names = ", ".join(map(printable, facts.unconfirmed))
            sys.stderr.write(
                "warning: these tokens are valid again, even if they were revoked after the"
                f" backup: {names}\n"
                "Revoke each that should not be: buildrunner tokens revoke NAME\n"
            )
    sys.stderr.write(
        f"{done}: builds {facts.builds}, triggers {facts.triggers},"
        f" {facts.size_bytes / 1024**2:.1f} MiB.\n"
    )
    return EXIT_SUCCESS
