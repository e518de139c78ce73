"""``buildrunner audit``: prints the audit log of this machine's server, newest entries first."""

from __future__ import annotations

import argparse
import sys

from buildrunner.cli.serve.place import add_place_flags, open_store
from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.store.model.access import AuditEntry

_COLUMNS = ("ID", "TIME", "WHO", "ACTION", "TARGET", "OUTCOME", "ADDRESS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``audit``."""
    parser.add_argument(
        "--limit", type=int, default=50, metavar="N", help="maximum number of entries (default: 50)"
    )
    parser.add_argument(
        "--before", type=int, default=0, metavar="ID", help="only entries older than this entry"
    )
    parser.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    add_place_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print entries of the audit log.

    Raises:
        UsageError: there is no server, or a limit below one.
    """
    if args.limit < 1:
        raise UsageError(f"--limit takes a number from 1 on, not {args.limit}")
    from buildrunner.server.services.documents import shown_entry

    store = open_store(args)
    try:
        entries = store.audit.page(limit=args.limit, before_id=args.before)
    finally:
        store.close()
    if args.format == "table":
        sys.stdout.write(table(_COLUMNS, [_row(entry) for entry in entries]))
    else:
        sys.stdout.write(formatted([shown_entry(entry) for entry in entries], args.format))
    return EXIT_SUCCESS


def _row(entry: AuditEntry) -> tuple[str, ...]:
    at = entry.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        str(entry.id),
        at,
        entry.who,
        entry.action,
        entry.target,
        entry.outcome,
        entry.address or "-",
    )
