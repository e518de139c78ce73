"""``buildrunner hooks``: binds webhooks of forges to the repositories they may report on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from buildrunner.cli.server.choice import add_server_flags, called_server, segment
from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.client.client import Document
from buildrunner.client.http import ServerConnection
from buildrunner.errors import EXIT_SUCCESS, UsageError

_EPILOG = """\
A hook is the address /hooks/NAME of the server. NAME is github, gitlab, gitea, forgejo, bitbucket
or bitbucket-server, alone or with a name of your own (github/acme), git/REPOSITORY or pubsub/TOPIC.
Everyone with a hook's secret can sign any payload. The binding limits what that payload can fire.

examples:
  buildrunner hooks set github --owner acme
  buildrunner hooks set gitea --host https://git.example.com --owner platform --owner tools/ci
  buildrunner hooks set gitlab/web --host gitlab.example.com --for-project web
  buildrunner hooks set pubsub/deploy --topic projects/p/topics/deploy
  buildrunner hooks list
"""
_COLUMNS = ("NAME", "BOUND_TO", "FOR_PROJECTS", "LAST_DELIVERY", "SECRET")
_PATH = "/buildrunner/v1/hooks"
_FIELDS = {
    "host": "host",
    "owner": "owners",
    "for_project": "projects",
    "repository": "repository",
    "topic": "topic",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``hooks`` and their flags."""
    from argparse import RawDescriptionHelpFormatter

    parser.epilog = _EPILOG
    parser.formatter_class = RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="list all hooks and their bindings")
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    setting = actions.add_parser("set", help="bind a hook; fields without a flag do not change")
    setting.add_argument(
        "--host", metavar="URL", help="address of the forge (default: the public one)"
    )
    setting.add_argument(
        "--owner",
        action="append",
        metavar="OWNER",
        help="owner, group or repository whose events count; may be repeated; *: all of the host",
    )
    setting.add_argument(
        "--for-project",
        action="append",
        metavar="ID",
        help="fire triggers of this project only; may be repeated; '': of all projects",
    )
    setting.add_argument(
        "--repository",
        metavar="URL",
        help="of git/NAME: URL from which the server fetches the repository",
    )
    setting.add_argument(
        "--topic",
        metavar="TOPIC",
        help="of pubsub/NAME: full name of the topic, projects/P/topics/T",
    )
    setting.add_argument(
        "--format",
        choices=("yaml", "json"),
        default="yaml",
        help="format of the output (default: yaml)",
    )
    deleting = actions.add_parser(
        "delete", help="delete the binding of a hook, which then fires no trigger"
    )
    for one in (setting, deleting):
        one.add_argument(
            "hook",
            metavar="NAME",
            help="name of the hook: github, gitea/team, git/app, pubsub/topic",
        )
    for one in actions.choices.values():
        add_server_flags(one)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no server is chosen, or the binding is wrong.
        NotFound: the hook is bound to nothing.
    """
    with called_server(args, "hooks") as (server, _):
        return _ACTIONS[args.action](args, server)


def _list(args: argparse.Namespace, server: ServerConnection) -> int:
    found = server.json("GET", _PATH)["hooks"]
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 hooks.\n")
    return EXIT_SUCCESS


def _row(hook: Document) -> tuple[str, ...]:
    owners = ", ".join(hook.get("owners", ()))
    where = hook.get("host") or hook.get("repository") or hook.get("topic") or ""
    return (
        hook["name"],
        f"{where} {owners}".strip() if hook["bound"] else "nothing: it fires nothing",
        ", ".join(hook.get("projects", ())) or "all",
        str(hook.get("lastDelivery", "-"))[:19],
        hook["secret"],
    )


def _set(args: argparse.Namespace, server: ServerConnection) -> int:
    given = {
        field: value
        for flag, field in _FIELDS.items()
        if (value := getattr(args, flag)) is not None
    }
    if not given:
        raise UsageError("nothing to bind the hook to", hint="--host, --owner, --for-project, ...")
    for field in ("owners", "projects"):
        if field in given:
            given[field] = [name for name in given[field] if name]
    listed = server.json("GET", _PATH)["hooks"]
    before: Document = next((one for one in listed if one["name"] == args.hook), {})
    kept = {field: before[field] for field in _FIELDS.values() if field in before}
    bound = server.json("PUT", _path(args.hook), body={**kept, **given})
    sys.stdout.write(formatted(bound, args.format))
    secret = bound["secret"]
    sys.stderr.write(
        f"The forge sends to {server.url}/hooks/{args.hook}, and signs with the secret {secret}:"
        f" `buildrunner secrets set {secret}` on the server's machine.\n"
    )
    return EXIT_SUCCESS


def _delete(args: argparse.Namespace, server: ServerConnection) -> int:
    server.json("DELETE", _path(args.hook))
    sys.stderr.write(f"Deleted the binding of [{args.hook}]: it fires nothing.\n")
    return EXIT_SUCCESS


def _path(hook: str) -> str:
    kind, _, name = hook.partition("/")
    return f"{_PATH}/{segment(kind)}" + (f"/{segment(name)}" if name else "")


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerConnection], int]] = {
    "list": _list,
    "set": _set,
    "delete": _delete,
}
