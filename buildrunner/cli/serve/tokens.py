"""``buildrunner tokens``: creates, lists and revokes the tokens of this machine's server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from buildrunner.cli.serve.place import add_place_flags, note_in_audit_log, open_store
from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.store.model.access import AccessToken

if TYPE_CHECKING:
    from buildrunner.store.sql.store import ServerStore

_EPILOG = """\
Scopes: read (read builds and logs), submit (build, cancel, run triggers), approve, and admin, which
includes all others and the rights to change triggers and tokens. The token of a worker (--worker)
opens the builds that the worker claims, and nothing else.

examples:
  buildrunner tokens create ci --scope read --scope submit --project my-project
  buildrunner tokens create builder-1 --worker --pool arm > token
  buildrunner tokens revoke ci
"""
_COLUMNS = ("NAME", "SCOPES", "PROJECTS", "POOL", "CREATE_TIME", "REVOKED")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``tokens`` and their flags."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    creating = actions.add_parser("create", help="create a token and print it once")
    creating.add_argument("name", metavar="NAME", help="name of the user or program: ci, alice")
    creating.add_argument(
        "--scope",
        action="append",
        metavar="SCOPE",
        choices=("read", "submit", "approve", "admin"),
        help="right of the token: read, submit, approve or admin; may be repeated (default: read,"
        " submit)",
    )
    creating.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="ID",
        help="the token is valid for this project only; may be repeated (default: all projects)",
    )
    creating.add_argument(
        "--worker", action="store_true", help="for a worker on another host, in place of --scope"
    )
    creating.add_argument(
        "--pool",
        default="",
        metavar="NAME",
        help="with --worker: it runs the builds whose options.pool.name is NAME, and no others",
    )
    listing = actions.add_parser("list", help="list names, scopes and projects, without the tokens")
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    revoking = actions.add_parser("revoke", help="revoke a token at once")
    revoking.add_argument("name", metavar="NAME", help="name of the token")
    for action in (creating, listing, revoking):
        add_place_flags(action)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands, on the database of the server.

    Raises:
        UsageError: there is no server, or a scope is unknown.
        Conflict: the name is taken.
        NotFound: the token does not exist.
    """
    store = open_store(args)
    try:
        return _ACTIONS[args.action](args, store)
    finally:
        store.close()


def _create(args: argparse.Namespace, store: ServerStore) -> int:
    from buildrunner.server.http.tokens import new_token

    now = datetime.now(UTC)
    if args.worker and args.scope:
        raise UsageError("--worker and --scope exclude each other", hint="create two tokens")
    scopes = ["worker"] if args.worker else args.scope or ["read", "submit"]
    text, token = new_token(args.name, scopes, args.project, pool=args.pool, now=now)
    store.tokens.create(token)
    note_in_audit_log(store, "tokens.create", args.name)
    sys.stdout.write(f"{text}\n")
    sys.stderr.write("This is the only time the token is shown: keep it well.\n")
    return EXIT_SUCCESS


def _list(args: argparse.Namespace, store: ServerStore) -> int:
    from buildrunner.server.services.documents import shown_token

    tokens = store.tokens.all()
    if args.format == "table":
        sys.stdout.write(table(_COLUMNS, [_row(token) for token in tokens]))
    else:
        sys.stdout.write(formatted([shown_token(token) for token in tokens], args.format))
    return EXIT_SUCCESS


def _row(token: AccessToken) -> tuple[str, ...]:
    return (
        token.name,
        ",".join(token.scopes),
        ",".join(token.projects) or "all",
        token.pool or "-",
        token.create_time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        token.revoke_time.strftime("%Y-%m-%dT%H:%M:%SZ") if token.revoke_time else "-",
    )


def _revoke(args: argparse.Namespace, store: ServerStore) -> int:
    store.tokens.revoke(args.name, now=datetime.now(UTC))
    note_in_audit_log(store, "tokens.revoke", args.name)
    sys.stderr.write(f"Revoked {args.name}.\n")
    return EXIT_SUCCESS


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerStore], int]] = {
    "create": _create,
    "list": _list,
    "revoke": _revoke,
}
