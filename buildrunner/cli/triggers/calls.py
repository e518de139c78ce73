"""Requests about triggers to a server: addresses, test events, and verdicts as text."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from buildrunner.cli.server.choice import chosen_server
from buildrunner.client.client import Document, ServerClient
from buildrunner.errors import UsageError
from buildrunner.logs.console.wording import printable


def connected(args: argparse.Namespace) -> ServerClient:
    """Return a client of the server that the flags choose.

    Raises:
        UsageError: the flags choose no server.
    """
    from buildrunner.cli.trust import folder_settings

    server = chosen_server(args)
    if server is None:
        raise UsageError(
            "triggers are a server's, and no server is chosen",
            hint="`buildrunner login URL` chooses one, or --server URL",
        )
    project = getattr(args, "project", "") or server.project or folder_settings().project_id
    return server.connect(project)


def trigger_path(name: str) -> str:
    """Return the address of a trigger in the API, for `ServerClient.call`."""
    from urllib.parse import quote

    return f"/v1/{{parent}}/triggers/{quote(name, safe='')}"


def trigger_url(client: ServerClient, trigger: Document) -> str:
    """Return the path of a trigger in the API, with its id."""
    return f"/v1/projects/{client.project}/triggers/{trigger['id']}"


_MARKS = {True: "yes", False: "NO", None: "-"}


def wanted_event(args: argparse.Namespace) -> Document:
    """Return the event that the command sends to the server for a verdict.

    Raises:
        UsageError: not exactly one of ``--event`` and ``--ref`` is given, or the file is no JSON.
    """
    if bool(args.event) is bool(args.ref):
        raise UsageError("either --event FILE or --ref REF must say what happens")
    if args.event:
        return {"hook": args.hook, "event": _read(args.event), "headers": _headers(args.header)}
    requested: Document = {
        "ref": args.ref,
        "message": args.message,
        "comment": args.comment,
        "baseBranch": args.base,
        "fork": args.fork,
        "writer": not args.outsider,
    }
    if args.files is not None:
        requested["files"] = args.files
    return requested


def verdict_text(trigger: str, verdict: Document, *, past: bool = False) -> str:
    """Format a verdict, rule by rule; ``past``: in the past tense."""
    yes, no = ("fired", "did not fire") if past else ("would fire", "would not fire")
    answer = yes if verdict["fires"] else no
    if verdict.get("hold"):
        answer += ", and its build must be approved"
    about = f": {verdict['event']}" if verdict["event"] else ""
    return "\n".join([f"{trigger} {answer}{about}", *rule_lines(verdict["rules"])]) + "\n"


def rule_lines(rules: list[Document]) -> list[str]:
    """Format rules with their answers, one a line."""
    width = max((len(rule["name"]) for rule in rules), default=0)
    return [
        f"  {_MARKS[rule['passed']]:<3} {rule['name']:<{width}}  {printable(rule['text'])}"
        for rule in rules
    ]


def _read(path: str) -> Any:
    try:
        if path == "-":
            return json.load(sys.stdin)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for one in given:
        name, colon, value = one.partition(":")
        if not colon:
            raise UsageError(f"--header takes NAME:VALUE, not {one}")
        headers[name.strip()] = value.strip()
    return headers
