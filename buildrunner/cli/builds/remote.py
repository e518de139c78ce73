"""``buildrunner builds`` on a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from buildrunner.cli.builds.local import build_table, log_shower, print_provenance
from buildrunner.cli.server.choice import ChosenServer
from buildrunner.cli.terminal.listing import formatted
from buildrunner.client.client import Document, ServerClient
from buildrunner.client.stream import LogPiece, StateChange
from buildrunner.errors import EXIT_SUCCESS, NotFound
from buildrunner.logs.console.wording import printable
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.triggers.forge_host import request_name


def approval_lines(facts: Document) -> list[str]:
    """Format the facts for an approval (the server's `ApprovalFacts`) as lines of text."""
    lines = [_whose(facts)] if facts.get("pullRequest") else []
    if facts.get("commenter"):
        lines.append(f"Requested by a comment of {facts['commenter']}")
    if facts.get("url"):
        lines.append(facts["url"])
    if facts.get("state"):
        lines.append(_behind(facts))
    if facts.get("state") == "PENDING":
        trust = "the project's" if facts.get("trusted", True) else "none"
        lines.append(f"Trust: {trust}. Once it is approved:")
        lines += [f"- {sentence}" for sentence in facts.get("grants", ())]
    elif facts.get("approver"):
        said = f": {facts['comment']}" if facts.get("comment") else ""
        word = str(facts.get("state", "")).capitalize()
        lines.append(f"{word} by {facts['approver']} at {facts.get('time', '')}{said}")
    return [printable(line) for line in lines]


def _behind(facts: Document) -> str:
    others = ["and people whom the server does not know"] if facts.get("otherPeople") else []
    return "Behind it: " + ", ".join([*facts.get("people", ()), *others]).removeprefix("and ")


def _whose(facts: Document) -> str:
    name = request_name(facts.get("forge", ""), facts["pullRequest"])
    text = f"Of a fork's {name}" if facts.get("fork") else f"Of {name}"
    if facts.get("author"):
        text += f" by {facts['author']}"
    head = facts.get("headRepository") or "its own repository"
    branch = f", branch {facts['headBranch']}" if facts.get("headBranch") else ""
    base = f" into {facts['baseRepository']}" if facts.get("baseRepository") else ""
    return f"{text}, from {head}{branch}{base}"


# Source: what `gcloud builds list --ongoing` sends.
_ONGOING = '(status="WORKING" OR status="QUEUED" OR status="PENDING")'


def run_remote(server: ChosenServer, project: str, args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        NotFound: no build has that id.
        Conflict: the id is ambiguous, or the build is in another state.
        FilterError: the filter is wrong.
        ServerUnavailable: the server does not answer.
    """
    client = server.connect(project)
    try:
        return _ACTIONS[args.action](args, client)
    finally:
        client.close()


def _list(args: argparse.Namespace, client: ServerClient) -> int:
    wanted = args.filter
    if args.ongoing:
        wanted = f"({wanted}) AND {_ONGOING}" if wanted else _ONGOING
    found = list(
        client.list_builds(
            filter=wanted, limit=args.limit, location=args.region, page_size=args.page_size
        )
    )
    if args.format == "table":
        sys.stdout.write(build_table(found))
        if not found:
            sys.stderr.write("Listed 0 builds.\n")
    else:
        sys.stdout.write(formatted(found, args.format))
    return EXIT_SUCCESS


def _describe(args: argparse.Namespace, client: ServerClient) -> int:
    build = client.find_build(args.id)
    if args.format == "table":
        sys.stdout.write(build_table([build]))
    else:
        sys.stdout.write(formatted(build, args.format))
    if build["status"] in ("QUEUED", "PENDING"):
        waiting = client.why_waiting(build["id"])
        if waiting:
            sys.stderr.write(f"Waiting: {printable(waiting['text'])}\n")
    if "approval" in build:
        _tell(client, build["id"])
    return EXIT_SUCCESS


def _provenance(args: argparse.Namespace, client: ServerClient) -> int:
    if args.public_key:
        sys.stdout.write(client.provenance_key().decode())
        return EXIT_SUCCESS
    envelopes = client.read_provenance(client.find_build(args.id)["id"])
    return print_provenance(envelopes, statement=args.statement)


def _log(args: argparse.Namespace, client: ServerClient) -> int:
    build = client.find_build(args.id)
    show = log_shower()
    ended = build["status"] in FINAL_STATUSES
    if not args.follow or ended:
        is_empty = True
        for block in client.read_log(build["id"]):
            is_empty = False
            show(block)
        if is_empty and ended and "startTime" not in build:
            why = printable(build.get("statusDetail", ""))
            raise NotFound(f"build {build['id']} has no log", hint=f"it never started: {why}")
        return EXIT_SUCCESS
    said = ""
    for item in client.follow(
        build["id"], on_lost=lambda error: _say(f"{error}; trying again ...")
    ):
        match item:
            case LogPiece():
                show(item.data)
            case StateChange() if item.waiting and item.waiting["text"] != said:
                said = item.waiting["text"]
                _say(f"Waiting: {printable(said)}")
            case _:
                pass
    return EXIT_SUCCESS


def _cancel(args: argparse.Namespace, client: ServerClient) -> int:
    # All ids are looked up first: a typo in one must not leave half of the builds cancelled.
    for build in [client.find_build(one) for one in args.ids]:
        client.cancel_build(build["id"])
        _say(f"Cancelled [{client.build_url(build['id'])}].")
    return EXIT_SUCCESS


def _delete(args: argparse.Namespace, client: ServerClient) -> int:
    for build in [client.find_build(one) for one in args.ids]:
        client.delete_build(build["id"])
        _say(f"Deleted [{build['id']}].")
    return EXIT_SUCCESS


def _retry(args: argparse.Namespace, client: ServerClient) -> int:
    new = client.retry_build(client.find_build(args.id)["id"], from_step=args.from_step)
    _say(f"Created [{client.build_url(new['id'])}].")
    sys.stdout.write(f"{new['id']}\n")
    return EXIT_SUCCESS


def _decide(args: argparse.Namespace, client: ServerClient) -> int:
    build = client.find_build(args.id)
    approved = args.action == "approve"
    decided: Document = client.decide_build(
        build["id"], approved=approved, comment=args.comment, url=args.url
    )
    word = "Approved" if approved else "Rejected"
    _say(f"{word} [{client.build_url(decided['id'])}].")
    _tell(client, decided["id"])
    return EXIT_SUCCESS


def _tell(client: ServerClient, build_id: str) -> None:
    for line in approval_lines(client.approval_of(build_id)):
        _say(line)


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerClient], int]] = {
    "list": _list,
    "describe": _describe,
    "log": _log,
    "provenance": _provenance,
    "cancel": _cancel,
    "delete": _delete,
    "retry": _retry,
    "approve": _decide,
    "reject": _decide,
}


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
