"""The part of ``buildrunner notifications`` about what went out, and what did not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.client.http import ServerConnection
from buildrunner.errors import EXIT_SUCCESS, UsageError

Document = dict[str, Any]
_COLUMNS = ("ID", "CREATED", "STATE", "TRIES", "BUILD", "TO", "REASON")
_MOST = 500


def configure(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    listing = actions.add_parser("outbox", help="list sent and waiting messages, newest first")
    listing.add_argument("--state", choices=("waiting", "delivered", "given_up"), default="")
    listing.add_argument("--build", default="", metavar="ID", help="only messages about this build")
    listing.add_argument("--limit", type=int, default=50, metavar="N")
    listing.add_argument("--format", choices=("table", "json", "yaml"), default="table")
    showing = actions.add_parser("show", help="show a message, its receiver and its result")
    showing.add_argument("--format", choices=("yaml", "json"), default="yaml")
    retrying = actions.add_parser("retry", help="send a message now, even if it was given up")
    retrying.add_argument("--all", action="store_true", help="all messages that were given up")
    dropping = actions.add_parser("drop", help="delete messages without sending them")
    showing.add_argument("message", type=int, metavar="ID")
    retrying.add_argument("messages", type=int, metavar="ID", nargs="*")
    dropping.add_argument("messages", type=int, metavar="ID", nargs="+")


def _outbox(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    query: dict[str, Any] = {"limit": min(max(args.limit, 1), _MOST)}
    query |= {
        name: value for name, value in (("state", args.state), ("buildId", args.build)) if value
    }
    found = server.json("GET", f"{project}/outbox", query=query)["messages"]
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 messages.\n")
    return EXIT_SUCCESS


def _row(one: Document) -> tuple[str, ...]:
    from buildrunner.logs.console.wording import printable

    return (
        str(one["id"]),
        str(one["createTime"])[:19],
        one["state"],
        str(one["attempts"]),
        one["buildId"][:8] or "-",
        printable(one["target"]),
        printable(one.get("reason", "-")),
    )


def _show(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    sys.stdout.write(formatted(server.json("GET", f"{project}/outbox/{args.message}"), args.format))
    return EXIT_SUCCESS


def _retry(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    if bool(args.messages) is args.all:
        raise UsageError("either IDs or --all must say which messages are meant")
    wanted = list(_given_up(server, project)) if args.all else args.messages
    for message in wanted:
        server.json("POST", f"{project}/outbox/{message}:retry")
    said = "1 message is" if len(wanted) == 1 else f"{len(wanted)} messages are"
    sys.stderr.write(f"{said} sent again.\n")
    return EXIT_SUCCESS


def _given_up(server: ServerConnection, project: str) -> Iterator[int]:
    """All that have something to send; the oldest first."""
    query: dict[str, Any] = {"state": "given_up", "limit": _MOST}
    ids: list[int] = []
    while page := server.json("GET", f"{project}/outbox", query=query)["messages"]:
        ids += [one["id"] for one in page if one["attempts"]]
        query["before"] = page[-1]["id"]
    return reversed(ids)


def _drop(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    for message in args.messages:
        server.json("DELETE", f"{project}/outbox/{message}")
    sys.stderr.write(f"{len(args.messages)} messages are forgotten.\n")
    return EXIT_SUCCESS


ACTIONS: dict[str, Callable[[argparse.Namespace, ServerConnection, str], int]] = {
    "outbox": _outbox,
    "show": _show,
    "retry": _retry,
    "drop": _drop,
}
