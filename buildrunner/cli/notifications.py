"""``buildrunner notifications``: manages the notifiers of a server and their messages."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.cli.server.choice import add_call_flags, called_server, segment
from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.client.client import Document
from buildrunner.client.http import ServerConnection
from buildrunner.errors import EXIT_SUCCESS, ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.settings.folder_trust import file_inside

_MOST_BYTES = 1 << 20


def read_notifiers(path: str, buckets: Collection[str] = ()) -> list[Document]:
    """Return the notifiers of a file; ``-`` is standard input.

    Args:
        path: the file.
        buckets: the templates in buckets that the user named, as ``gs://BUCKET/OBJECT``.

    Raises:
        UsageError: the file can't be read, holds no notifier, or names another template in a
            bucket.
        ConfigError: a notifier is invalid.
        StorageError: a template can't be read.
    """
    from buildrunner.spec.reading.nodes import compose_all

    file = "standard input" if path == "-" else path
    roots, problem = compose_all(_text(path))
    if problem is not None:
        raise ConfigError([_in_file(problem, file, None)])
    if not roots:
        raise UsageError(f"{file} holds no notifier")
    folder = "." if path == "-" else os.path.dirname(path) or "."
    return [_read(root, file, folder, buckets) for root in roots]


def _text(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


def _read(root: Node, file: str, folder: str, buckets: Collection[str]) -> Document:
    from buildrunner.server.notifications.notifier import read_notifier

    try:
        document = _plain(root)
    except ConfigError as error:
        raise ConfigError([_in_file(one, file, None) for one in error.problems]) from error
    template = _template(document)
    if template.get("uri") and not template.get("content"):
        template["content"] = _template_text(str(template.pop("uri")), folder, buckets)
    try:
        # The server checks the filter: its release may know newer fields of builds.
        read_notifier(document, with_filter=False)
    except ConfigError as error:
        raise ConfigError([_in_file(one, file, root) for one in error.problems]) from error
    found: Document = document
    return found


def _template(document: Any) -> dict[str, Any]:
    for name in ("spec", "notification", "template"):
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def _in_file(problem: Problem, file: str, root: Node | None) -> Problem:
    from msgspec.structs import replace

    from buildrunner.spec.reading.findings import locate

    if root is None:
        return replace(problem, file=file)
    line, column = locate(root, problem.path)
    return replace(problem, file=file, line=line, column=column)


def _plain(node: Node) -> Any:
    from buildrunner.spec.reading.scalars import BOOLEAN, INTEGER, NULL, kind_of

    if isinstance(node, MappingNode):
        return dict(_pairs(node))
    if isinstance(node, SequenceNode):
        return [_plain(one) for one in node.value]
    assert isinstance(node, ScalarNode)  # noqa: S101  (there is nothing else)
    text: str = node.value
    kind = kind_of(node)
    if kind == NULL:
        return None
    if kind == BOOLEAN:
        return text.lower() == "true"
    return int(text) if kind == INTEGER and text.isdecimal() else text


def _pairs(node: MappingNode) -> Iterator[tuple[str, Any]]:
    from buildrunner.spec.reading.nodes import position

    seen = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            line, column = position(key)
            message = f"{name} is there twice"
            raise ConfigError([Problem(message, line=line, column=column, rule="yaml-syntax")])
        seen.add(name)
        yield name, _plain(value)


def _template_text(uri: str, folder: str, buckets: Collection[str]) -> str:
    """Return the template at ``gs://BUCKET/OBJECT``, or in a file beside the config."""
    if uri.startswith("gs://"):
        if uri not in buckets:
            raise UsageError(
                f"the template {uri} is read with your own login, and uploaded",
                hint=f"if the config is yours, add: --bucket-template {shlex.quote(uri)}",
            )
        return _from_bucket(uri)
    path = file_inside(folder, uri.removeprefix("file://"))
    if not path:
        raise UsageError(
            f"the template {uri} is not in the folder of the config",
            hint="copy it there: a config of somebody else could read any file of yours",
        )
    try:
        with open(path, encoding="utf-8") as opened:
            return opened.read(_MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", "") or "it is no text"
        raise UsageError(f"the template {uri} can't be read: {said}") from error


def _from_bucket(uri: str) -> str:
    import threading

    from buildrunner import wiring
    from buildrunner.settings import own_settings

    cancel = threading.Event()
    store, place = wiring.stores(own_settings()).place(uri)
    found = store.find(place.bucket, place.name, place.generation)
    content = b"".join(store.read(found, 0, cancel))
    return content[:_MOST_BYTES].decode("utf-8", "replace")


_EPILOG = """\
examples:
  buildrunner notifications import slack.yaml     accepts configs of Cloud Build's notifiers
  buildrunner notifications test slack            shows the message for the newest build
  buildrunner notifications test -f slack.yaml --build ID --status FAILURE
  buildrunner notifications send slack            sends that message as a test
  buildrunner notifications outbox --state given_up
  buildrunner notifications retry --all
"""
_COLUMNS = ("NAME", "KIND", "ON", "FILTER")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``notifications`` and their flags."""
    from argparse import RawDescriptionHelpFormatter

    parser.epilog = _EPILOG
    parser.formatter_class = RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    importing = actions.add_parser("import", help="create or replace the notifiers of a file")
    importing.add_argument(
        "file", metavar="FILE", help="file of notifiers (YAML); -: standard input"
    )
    listing = actions.add_parser("list", help="list notifiers")
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    describing = actions.add_parser("describe", help="print a notifier in the form for `import`")
    describing.add_argument(
        "--format",
        choices=("yaml", "json"),
        default="yaml",
        help="format of the output (default: yaml)",
    )
    deleting = actions.add_parser("delete", help="delete a notifier")
    testing = actions.add_parser(
        "test", help="test a notifier: the result of each rule, and the message"
    )
    testing.add_argument(
        "notifier", metavar="NAME", nargs="?", default="", help="name of the notifier"
    )
    testing.add_argument(
        "-f", "--file", metavar="FILE", help="test the notifier of this file instead"
    )
    for one in (importing, testing):
        one.add_argument(
            "--bucket-template",
            action="append",
            default=[],
            metavar="gs://BUCKET/OBJECT",
            help="read this template from its bucket, with your own login; may be repeated",
        )
    sending = actions.add_parser("send", help="send a notifier's message about a build, as a test")
    for one in (describing, deleting, sending):
        one.add_argument("notifier", metavar="NAME", help="name of the notifier")
    for one in (testing, sending):
        one.add_argument(
            "--build",
            default="",
            metavar="ID",
            help="build that the message is about (default: the newest)",
        )
        one.add_argument("--status", default="", help="as if the build had this status: FAILURE")
    testing.add_argument(
        "--format",
        choices=("text", "json", "yaml"),
        default="text",
        help="format of the output (default: text)",
    )
    _add_outbox_commands(actions)
    for one in actions.choices.values():
        add_call_flags(one)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no server is chosen, or a notifier is refused.
        ConfigError: a file is invalid.
        NotFound: the notifier, build or message does not exist.
    """
    action = _ACTIONS[args.action]
    with called_server(args, "notifications") as (server, project):
        return action(args, server, project)


def _import(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    found = read_notifiers(args.file, args.bucket_template)
    for document in found:
        name = document["metadata"]["name"]
        server.json("PUT", f"{project}/notifiers/{segment(name)}", body=document)
        sys.stdout.write(f"Imported notifier {name}.\n")
    return EXIT_SUCCESS


def _list(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    found = server.json("GET", f"{project}/notifiers")["notifiers"]
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 notifiers.\n")
    return EXIT_SUCCESS


def _row(one: Document) -> tuple[str, ...]:
    notification = one["spec"]["notification"]
    filter_ = " ".join(notification.get("filter", "").split())
    return one["metadata"]["name"], one["kind"], notification.get("on", "status"), filter_ or "-"


def _describe(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    found = server.json("GET", f"{project}/notifiers/{segment(args.notifier)}")
    sys.stdout.write(formatted(found, args.format))
    return EXIT_SUCCESS


def _delete(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    server.json("DELETE", f"{project}/notifiers/{segment(args.notifier)}")
    sys.stderr.write(f"Deleted notifier {args.notifier}.\n")
    return EXIT_SUCCESS


def _test(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    if bool(args.notifier) is bool(args.file):
        raise UsageError("either NAME or --file FILE must say which notifier is meant")
    requested = _asked(args)
    path = f"{project}/notifiers:test"
    if args.file:
        documents = read_notifiers(args.file, args.bucket_template)
        if len(documents) > 1:
            raise UsageError(f"{args.file} holds {len(documents)} notifiers: test one at a time")
        requested["notifier"] = documents[0]
    else:
        path = f"{project}/notifiers/{segment(args.notifier)}:test"
    found = server.json("POST", path, body=requested)
    text = tried_text(found) if args.format == "text" else formatted(found, args.format)
    sys.stdout.write(text)
    return EXIT_SUCCESS


def _asked(args: argparse.Namespace) -> Document:
    return {
        name: value for name, value in (("buildId", args.build), ("status", args.status)) if value
    }


def tried_text(found: Document) -> str:
    """Format the result of a notifier's test for people."""
    from buildrunner.cli.triggers.calls import rule_lines
    from buildrunner.logs.console.wording import printable

    answer = "would get a message" if found["notifies"] else "would get no message"
    change = f" ({found['change']})" if found["change"] else ""
    lines = [
        f"{found['target']}",
        f"{answer} about build {found['buildId']}: {found['status']}{change}",
        *rule_lines(found["rules"]),
    ]
    if found["problem"]:
        lines.append(f"  NO  {printable(found['problem'])}")
    message = found["message"]
    names = ("url", "server", "sender", "recipients", "subject", "content_type")
    shown = {name: message[name] for name in names if message.get(name)}
    lines += [
        f"{name.replace('_', ' ')}: {', '.join(one) if isinstance(one, list) else printable(one)}"
        for name, one in shown.items()
    ]
    if message.get("body"):
        body = "\n".join(printable(line) for line in message["body"].splitlines())
        lines += ["", body]
    return "\n".join(lines) + "\n"


def _send(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    path = f"{project}/notifiers/{segment(args.notifier)}:send"
    made = server.json("POST", path, body=_asked(args), tries=1)
    sys.stderr.write(
        f"Queued message {made['id']}; `buildrunner notifications show {made['id']}` shows its "
        "result.\n"
    )
    return EXIT_SUCCESS


_MESSAGE_COLUMNS = ("ID", "CREATED", "STATE", "TRIES", "BUILD", "TO", "REASON")
_MOST = 500


def _add_outbox_commands(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    listing = actions.add_parser("outbox", help="list sent and waiting messages, newest first")
    listing.add_argument(
        "--state",
        choices=("waiting", "delivered", "given_up"),
        default="",
        help="only messages in this state",
    )
    listing.add_argument("--build", default="", metavar="ID", help="only messages about this build")
    listing.add_argument(
        "--limit",
        type=int,
        default=50,
        metavar="N",
        help="maximum number of messages (default: 50)",
    )
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    showing = actions.add_parser("show", help="show a message, its receiver and its result")
    showing.add_argument(
        "--format",
        choices=("yaml", "json"),
        default="yaml",
        help="format of the output (default: yaml)",
    )
    retrying = actions.add_parser("retry", help="send a message now, even if it was given up")
    retrying.add_argument("--all", action="store_true", help="send all messages that were given up")
    dropping = actions.add_parser("drop", help="delete messages without sending them")
    showing.add_argument(
        "message", type=int, metavar="ID", help="id of the message, as in `outbox`"
    )
    retrying.add_argument("messages", type=int, metavar="ID", nargs="*", help="id of a message")
    dropping.add_argument("messages", type=int, metavar="ID", nargs="+", help="id of a message")


def _outbox(args: argparse.Namespace, server: ServerConnection, project: str) -> int:
    query: dict[str, Any] = {"limit": min(max(args.limit, 1), _MOST)}
    query |= {
        name: value for name, value in (("state", args.state), ("buildId", args.build)) if value
    }
    found = server.json("GET", f"{project}/outbox", query=query)["messages"]
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_MESSAGE_COLUMNS, [_message_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 messages.\n")
    return EXIT_SUCCESS


def _message_row(one: Document) -> tuple[str, ...]:
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
    """Return the ids of messages that were given up after an attempt, the oldest first."""
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


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerConnection, str], int]] = {
    "import": _import,
    "list": _list,
    "describe": _describe,
    "delete": _delete,
    "test": _test,
    "send": _send,
    "outbox": _outbox,
    "show": _show,
    "retry": _retry,
    "drop": _drop,
}
