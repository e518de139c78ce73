"""``buildrunner deliveries``: lists the events that forges reported, and their results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from buildrunner.cli.server.choice import add_server_flags
from buildrunner.client.client import Document, ServerClient
from buildrunner.errors import EXIT_SUCCESS

_EPILOG = """\
examples:
  buildrunner deliveries list --hook github
  buildrunner deliveries show 42          the result of each trigger
  buildrunner deliveries show 42 --format json     with the payload
  buildrunner deliveries replay 42        handle it again
"""
_COLUMNS = ("NUMBER", "RECEIVED", "HOOK", "STATUS", "BUILDS", "ABOUT")
_PATH = "/buildrunner/v1/deliveries"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``deliveries`` and their flags."""
    from argparse import RawDescriptionHelpFormatter

    parser.epilog = _EPILOG
    parser.formatter_class = RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="list deliveries, newest first")
    listing.add_argument("--hook", default="", help="only deliveries of this hook: github, git/app")
    listing.add_argument(
        "--limit",
        type=int,
        default=50,
        metavar="N",
        help="maximum number of deliveries (default: 50)",
    )
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    showing = actions.add_parser("show", help="show a delivery and the result of each trigger")
    showing.add_argument(
        "--format",
        choices=("text", "json", "yaml"),
        default="text",
        help="format of the output (default: text)",
    )
    replaying = actions.add_parser("replay", help="handle a delivery again, which may start builds")
    for one in (showing, replaying):
        one.add_argument(
            "number",
            type=int,
            metavar="NUMBER",
            help="number of the delivery, as in `deliveries list`",
        )
    for one in actions.choices.values():
        add_server_flags(one)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no server is chosen.
        NotFound: the delivery does not exist.
    """
    from buildrunner.cli.triggers.calls import connected

    client = connected(args)
    try:
        return _ACTIONS[args.action](args, client)
    finally:
        client.close()


def _list(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.terminal.listing import formatted, table

    query: dict[str, Any] = {"limit": min(max(args.limit, 1), 500)}
    if args.hook:
        query["hook"] = args.hook
    found = client.call("GET", _PATH, query=query)["deliveries"]
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 deliveries.\n")
    return EXIT_SUCCESS


def _row(one: Document) -> tuple[str, ...]:
    from buildrunner.logs.console.wording import printable

    about = one["about"] or one.get("reason") or one.get("ignored") or one.get("problem") or ""
    if one.get("waitsFor"):
        about = f"{about}; waits: {one['waitsFor']}"
    received = str(one["receivedAt"])[:19]
    builds = str(len(one["builds"]))
    line = " ".join(printable(about).split())  # forced onto one line: the sender chose the text
    return str(one["number"]), received, printable(one["hook"]), one["status"], builds, line


def _show(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.terminal.listing import formatted

    found = client.call("GET", f"{_PATH}/{args.number}")
    if args.format != "text":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(shown(found))
    return EXIT_SUCCESS


def shown(found: Document) -> str:
    """Format a delivery as text: its subject, and each trigger's rules."""
    from buildrunner.logs.console.wording import printable

    lines = [
        f"Delivery {found['number']} of hook {printable(found['hook'])}: {found['status']}",
        f"  id        {printable(found['id'])}",
        f"  received  {found['receivedAt']} from {printable(found['address']) or 'this machine'}",
    ]
    outcome = found["outcome"]
    lines += [
        f"  {name:<9} {printable(str(outcome[name]))}"
        for name in ("kind", "reason", "times", "ignored", "error")
        if outcome.get(name)
    ]
    lines += _waiting(outcome)
    text = "\n".join(lines) + "\n"
    for event in outcome.get("events", ()):
        text += f"\n{printable(event['event'])}\n"
        for name in ("ignored", "problem"):
            if event.get(name):
                text += f"  {printable(event[name])}\n"
        verdicts = event.get("verdicts", ())
        text += "".join(_answer(one) for one in verdicts if not _is_of_others(one))
        text += "".join(_one_line(one) for one in verdicts if _is_of_others(one))
        if event.get("more"):
            text += f"{event['more']} more triggers of other repositories did not fire\n"
    return text


def _waiting(outcome: Document) -> list[str]:
    """Return why and when the delivery is retried."""
    from buildrunner.logs.console.wording import printable

    retry = outcome.get("retry")
    if not retry:
        return []
    tries = "once" if retry["tries"] == 1 else f"{retry['tries']} times"
    return [
        f"  waits     {printable(retry['because'])}",
        f"  retried   {retry['at'][:19]} (tried {tries} since {retry['since'][:19]})",
    ]


def _answer(verdict: Document) -> str:
    from buildrunner.cli.triggers.calls import verdict_text
    from buildrunner.logs.console.wording import printable

    shown = {**verdict, "event": f"build {verdict['build']}" if "build" in verdict else ""}
    text = verdict_text(f"{verdict['project']}/{verdict['trigger']}", shown, past=True)
    if verdict.get("problem"):
        what = "the build failed" if "build" in verdict else "no build"
        text += f"      {what}: {printable(verdict['problem'])}\n"
    return text


def _is_of_others(verdict: Document) -> bool:
    """Return whether the trigger listens to another repository. There may be hundreds of these."""
    rules = verdict["rules"]
    return bool(rules) and rules[-1]["name"] == "repository" and rules[-1]["passed"] is False


def _one_line(verdict: Document) -> str:
    from buildrunner.logs.console.wording import printable

    reason = printable(verdict["rules"][-1]["text"])
    return f"{verdict['project']}/{verdict['trigger']} did not fire: {reason}\n"


def _replay(args: argparse.Namespace, client: ServerClient) -> int:
    client.call("POST", f"{_PATH}/{args.number}:replay", once=True)
    sys.stderr.write(f"Delivery {args.number} is handled again.\n")
    return EXIT_SUCCESS


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerClient], int]] = {
    "list": _list,
    "show": _show,
    "replay": _replay,
}
