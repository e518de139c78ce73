"""``buildrunner schedules``: manages schedules of triggers, and other trigger settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from buildrunner.cli.server.choice import add_call_flags, called_server, segment
from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.client.http import ServerConnection
from buildrunner.errors import EXIT_SUCCESS, UsageError

Document = dict[str, Any]
_EPILOG = """\
examples:
  buildrunner schedules list
  buildrunner schedules next nightly --count 10
  buildrunner schedules settings nightly --jitter 300s --missed once --overlap skip
  buildrunner schedules settings deploy --limit 1 --policy cancel_queued --not-author
"""
_NEXT = ("TIME", "LOCAL_TIME")
_PAST = ("TIME", "STATE", "BUILD", "DETAIL")
_ALL = ("TRIGGER", "SCHEDULE", "TIME_ZONE", "NEXT", "LOCAL_TIME")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``schedules`` and their flags."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="list triggers with a schedule, and their next times")
    _add_format(listing)
    add_call_flags(listing)
    configure_next(actions.add_parser("next", help="show the next times of a trigger"))
    history = actions.add_parser("history", help="show the history of a schedule")
    history.add_argument("trigger", metavar="TRIGGER", help="name or id")
    _add_count(history, 20)
    _add_format(history)
    add_call_flags(history)
    settings = actions.add_parser(
        "settings", help="show or change the settings that Cloud Build has no fields for"
    )
    _configure_settings(settings)


def configure_next(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``next``."""
    parser.add_argument(
        "trigger", metavar="TRIGGER", nargs="?", help="name or id (default: all triggers)"
    )
    _add_count(parser, 5)
    _add_format(parser)
    add_call_flags(parser)


def _configure_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trigger", metavar="TRIGGER", help="name or id")
    parser.add_argument(
        "--jitter", metavar="300s", help="maximum delay of a build after its scheduled time"
    )
    parser.add_argument(
        "--missed",
        choices=("skip", "once", "all"),
        help="treatment of scheduled times that passed while the server was down",
    )
    parser.add_argument(
        "--overlap",
        choices=("allow", "skip", "cancel"),
        help="treatment of a scheduled time while the last scheduled build still runs",
    )
    parser.add_argument("--group", metavar="NAME", help="group of triggers that share a limit")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="maximum number of running builds of the group"
    )
    parser.add_argument(
        "--policy",
        choices=("queue", "cancel_queued", "cancel_all"),
        help="effect of a new build on earlier builds of its group",
    )
    parser.add_argument(
        "--on-lost",
        choices=("fail", "rerun"),
        help="treatment of a build whose worker or node is lost after a step began",
    )
    parser.add_argument(
        "--approver",
        action="append",
        metavar="TOKEN",
        help="name of a token that may approve builds; may be repeated; '': all tokens with the"
        " scope",
    )
    parser.add_argument(
        "--not-author",
        choices=("true", "false"),
        nargs="?",
        const="true",
        help="the author of a build may not approve it",
    )
    parser.add_argument(
        "--approval-expires",
        metavar="86400s",
        help="cancel a build that has no approval after this time",
    )
    parser.add_argument(
        "--audience",
        action="append",
        metavar="URL",
        help="audience for which builds may have identity tokens; may be repeated; '': none",
    )
    parser.add_argument(
        "--identity-forks",
        choices=("true", "false"),
        nargs="?",
        const="true",
        help="builds of forks may have identity tokens, too",
    )
    parser.add_argument(
        "--public-badge",
        choices=("true", "false"),
        nargs="?",
        const="true",
        help="show the badge without a token",
    )
    parser.add_argument(
        "--clear", action="store_true", help="first delete all settings except the forge"
    )
    parser.add_argument(
        "--format",
        choices=("yaml", "json"),
        default="yaml",
        help="format of the output (default: yaml)",
    )
    add_call_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no server is chosen, or a setting is invalid.
        NotFound: the trigger does not exist, or has no schedule.
    """
    with called_server(args, "schedules") as (server, project):
        action = "list" if args.action == "next" and not args.trigger else args.action
        return _ACTIONS[action](args, server, project)


def run_next(args: argparse.Namespace) -> int:
    """Run ``next`` alone; see `configure_next`. Raises as `run`."""
    with called_server(args, "next") as (server, project):
        return (_next if args.trigger else _list)(args, server, project)


def _list(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    found: list[Document] = []
    path = f"{project.removeprefix('/buildrunner')}/triggers"
    for trigger in server.entries(path, "triggers", {"pageSize": 500}):
        if not trigger.get("cron"):
            continue
        coming = server.json("GET", f"{project}/triggers/{segment(trigger['id'])}/next")
        found.append({"trigger": trigger["name"], **coming})
    if args.format == "table":
        sys.stdout.write(table(_ALL, [_row(one) for one in found]))
        if not found:
            sys.stderr.write("Listed 0 schedules.\n")
    else:
        sys.stdout.write(formatted(found, args.format))
    return EXIT_SUCCESS


def _row(one: Document) -> tuple[str, ...]:
    first = one["times"][0] if one["times"] and not one["disabled"] else {}
    never = "disabled" if one["disabled"] else "-"
    return (
        one["trigger"],
        one["schedule"],
        one["timeZone"],
        first.get("time", never),
        first.get("local", never),
    )


def _next(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    path = f"{project}/triggers/{segment(args.trigger)}/next"
    found = server.json("GET", path, query={"count": _count(args)})
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    rows = [(one["time"], one["local"]) for one in found["times"]]
    sys.stdout.write(f"{found['schedule']}  ({found['timeZone']})\n{table(_NEXT, rows)}")
    if found.get("jitter"):
        sys.stderr.write(f"Builds begin up to {found['jitter']} later.\n")
    if found["disabled"]:
        sys.stderr.write("The trigger is disabled: it does not fire.\n")
    return EXIT_SUCCESS


def _history(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    path = f"{project}/triggers/{segment(args.trigger)}/fires"
    found = server.json("GET", path, query={"count": _count(args)})["fires"]
    if args.format == "table":
        rows = [
            (one["time"], one["state"], one.get("buildId", "-"), one.get("detail", "-"))
            for one in found
        ]
        sys.stdout.write(table(_PAST, rows))
        if not rows:
            sys.stderr.write("Listed 0 fire times.\n")
    else:
        sys.stdout.write(formatted(found, args.format))
    return EXIT_SUCCESS


def _settings(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    path = f"{project}/triggers/{segment(args.trigger)}/settings"
    before = server.json("GET", path)
    # These flags don't set the forge. Keep it: without it, the trigger names another repository.
    kept = {name: before[name] for name in ("forge",) if name in before} if args.clear else before
    after = changed_settings(kept, args)
    if after != before:
        after = server.json("PUT", path, body=after)
    sys.stdout.write(formatted(after, args.format))
    return EXIT_SUCCESS


def changed_settings(before: Document, args: argparse.Namespace) -> Document:
    """Return the settings, changed by the given flags."""
    approval = {
        "approvers": args.approver and [name for name in args.approver if name],
        "notAuthor": _truth(args.not_author),
        "expires": args.approval_expires,
    }
    identity = {
        "audiences": args.audience and [name for name in args.audience if name],
        "forks": _truth(args.identity_forks),
    }
    concurrency = {"group": args.group, "limit": args.limit, "policy": args.policy}
    plain = {
        "jitter": args.jitter,
        "missed": args.missed,
        "overlap": args.overlap,
        "onLost": args.on_lost,
        "publicBadge": _truth(args.public_badge),
    }
    after = {**before, **_given(plain)}
    parts = {"concurrency": concurrency, "approval": approval, "identity": identity}
    for name, part in parts.items():
        if _given(part):
            after[name] = {**before.get(name, {}), **_given(part)}
    return after


def _given(values: Document) -> Document:
    return {name: value for name, value in values.items() if value is not None}


def _truth(text: str | None) -> bool | None:
    return None if text is None else text == "true"


def _count(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= 1000:
        raise UsageError(f"--count takes a number from 1 to 1000, not {args.count}")
    count: int = args.count
    return count


def _add_count(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--count",
        type=int,
        default=default,
        metavar="N",
        help=f"number of times to show (default: {default})",
    )


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerConnection, str], int]] = {
    "list": _list,
    "next": _next,
    "history": _history,
    "settings": _settings,
}
