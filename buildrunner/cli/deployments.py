"""``buildrunner deployments``: lists deployments here or on a server, and rolls back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from buildrunner import wiring
from buildrunner.cli.server.choice import add_server_flags, chosen_server
from buildrunner.cli.terminal.listing import add_format, formatted, table
from buildrunner.cli.trust import folder_settings
from buildrunner.client.client import Document, ServerClient
from buildrunner.engine.deployments import with_short_digest
from buildrunner.errors import EXIT_SUCCESS, Conflict, NotFound, UsageError
from buildrunner.logs.console.wording import printable
from buildrunner.settings import data_folder
from buildrunner.store.build_store import BuildStore

_EPILOG = """\
examples:
  buildrunner deployments list --latest              what runs where
  buildrunner deployments list --target run://p/europe-west1/web
  buildrunner deployments describe ID
  buildrunner deployments rollback Deployment/web    to what ran before
  buildrunner deployments rollback Deployment/web --to ID
"""
_COLUMNS = ("ID", "TIME", "TARGET", "IMAGES", "BUILD", "STEP")
_PATH = "/buildrunner/v1/{parent}/deployments"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``deployments`` and their flags."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="list deployments, newest first")
    listing.add_argument("--target", default="", metavar="TARGET", help="only to this target")
    listing.add_argument("--build", default="", metavar="ID", help="only of this build")
    listing.add_argument("--latest", action="store_true", help="only the latest of each target")
    listing.add_argument(
        "--limit",
        type=int,
        default=50,
        metavar="N",
        help="maximum number of deployments (default: 50)",
    )
    add_format(listing, ("table", "json", "yaml"))
    describe = actions.add_parser("describe", help="print all details of a deployment")
    describe.add_argument("id", metavar="ID", help="id of the deployment")
    add_format(describe, ("yaml", "json"))
    rollback = actions.add_parser(
        "rollback",
        help="on a server: deploy again what ran before",
        description="Retry the step that made an earlier deployment, with the digests that it"
        " deployed, on the workspace of its build. Nothing else of that build runs.",
    )
    rollback.add_argument("target", metavar="TARGET", help="a target, or its unique last part")
    rollback.add_argument(
        "--to",
        default="",
        metavar="ID",
        help="the deployment to go back to (default: the last one with other images, of a build"
        " that succeeded)",
    )
    for part in (parser, listing, describe, rollback):
        add_server_flags(part)
        part.add_argument(
            "--project",
            default=argparse.SUPPRESS,
            metavar="ID",
            help="on a server: project of the builds (default: from the login or the settings)",
        )


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        NotFound: no such deployment, target or build.
        Conflict: an id or a target is ambiguous, or the build can't be retried.
        UsageError: the command needs a server, and none is chosen.
    """
    if args.action == "list" and args.limit < 1:
        raise UsageError(f"--limit takes a number from 1 on, not {args.limit}")
    server = chosen_server(args)
    if server is not None:
        project = getattr(args, "project", "") or server.project or folder_settings().project_id
        client = server.connect(project)
        try:
            return _run_remote(args, client)
        finally:
            client.close()
    if args.action == "rollback":
        raise UsageError(
            "`deployments rollback` is for builds on a server",
            hint="name one with --server URL, or log in to it",
        )
    store = wiring.build_store(data_folder())
    try:
        return _run_local(args, store)
    finally:
        store.close()


def _run_local(args: argparse.Namespace, store: BuildStore) -> int:
    if args.action == "list":
        build = store.get(args.build)["id"] if args.build else ""
        found = store.deployments(
            target=args.target, build_id=build, latest=args.latest, limit=args.limit
        )
        return _print_list([one.document() for one in found], args.format)
    matching = [one for one in store.deployments(limit=2**31) if one.id.startswith(args.id)]
    sys.stdout.write(formatted(_only(matching, args.id).document(), args.format))
    return EXIT_SUCCESS


def _run_remote(args: argparse.Namespace, client: ServerClient) -> int:
    match args.action:
        case "list" if args.build:
            build = client.find_build(args.build)["id"]
            made = _pages(client, f"/buildrunner/v1/{{parent}}/builds/{build}/deployments", {})
            found = [one for one in made if args.target in ("", one["target"])]
            return _print_list(found[::-1][: args.limit], args.format)
        case "list":
            listed = _deployments(client, target=args.target, latest=args.latest)
            return _print_list(list(islice(listed, args.limit)), args.format)
        case "describe":
            sys.stdout.write(formatted(_find(client, args.id), args.format))
            return EXIT_SUCCESS
        case _:
            return _roll_back(args, client)


def _find(client: ServerClient, deployment_id: str, target: str = "") -> Document:
    matching = (
        one for one in _deployments(client, target=target) if one["id"].startswith(deployment_id)
    )
    found: Document = _only(list(islice(matching, 2)), deployment_id)
    return found


def _only(matching: Sequence[Any], deployment_id: str) -> Any:
    if not matching:
        raise NotFound(
            f'there is no deployment "{deployment_id}"',
            hint="`buildrunner deployments list` shows all",
        )
    if len(matching) > 1:
        raise Conflict(
            f'several deployments begin with "{deployment_id}"',
            hint="give more characters of the id",
        )
    return matching[0]


def _deployments(
    client: ServerClient, *, target: str = "", latest: bool = False
) -> Iterator[Document]:
    return _pages(client, _PATH, {"target": target, "latest": str(latest).lower()})


def _pages(client: ServerClient, path: str, query: dict[str, str]) -> Iterator[Document]:
    query = {**query, "pageSize": "500"}
    while True:
        answer = client.call("GET", path, query=query)
        yield from answer["deployments"]
        if not answer.get("nextPageToken"):
            return
        query["pageToken"] = answer["nextPageToken"]


def _roll_back(args: argparse.Namespace, client: ServerClient) -> int:
    target = _target(client, args.target)
    if args.to:
        chosen = _find(client, args.to, target)
    else:
        history = _deployments(client, target=target)
        chosen = earlier(target, history, lambda build: _succeeded(client, build))
    images = ", ".join(map(with_short_digest, chosen["images"])) or "what it deployed"
    sys.stderr.write(f"Rolling back {target} to {images} of build {chosen['buildId']}.\n")
    made = client.retry_build(chosen["buildId"], deployment=chosen["id"])
    if not any("@" in image for image in chosen["images"]):
        sys.stderr.write(
            "warning: no digest of that deployment is known: the step runs as it did, and may"
            " deploy another image of the same name\n"
        )
    sys.stderr.write(f"Created [{client.build_url(made['id'])}].\n")
    sys.stdout.write(f"{made['id']}\n")
    return EXIT_SUCCESS


def _target(client: ServerClient, text: str) -> str:
    """Return the only target that is, or ends in, a text."""
    known: list[str] = [one["target"] for one in _deployments(client, latest=True)]
    if text in known:
        return text
    ending = [target for target in known if target.endswith(f"/{text}")]
    if not ending:
        raise NotFound(
            f"nothing was deployed to {text}",
            hint="`buildrunner deployments list --latest` shows the targets",
        )
    if len(ending) > 1:
        raise Conflict(f"several targets end in {text}: {', '.join(ending)}", hint="name one whole")
    return ending[0]


def earlier(target: str, history: Iterator[Document], succeeded: Callable[[str], bool]) -> Document:
    """Return the last good deployment of a target with other images than its latest one.

    A deployment was good if its build succeeded, and deployed nothing else there afterwards: a
    build whose check fails may deploy the images before by itself.

    Args:
        target: the target.
        history: its deployments, newest first.
        succeeded: returns whether a build succeeded.

    Raises:
        NotFound: no such deployment is recorded.
    """
    latest = next(history, None)
    replaced = {latest["buildId"]} if latest is not None else set()
    for one in history:
        build = one["buildId"]
        differs = latest is not None and _facts(one) != _facts(latest)
        if differs and build not in replaced and succeeded(build):
            return one
        replaced.add(build)
    raise NotFound(
        f"no earlier deployment to {target} with other images, of a build that succeeded, is "
        "recorded",
        hint="--to ID names any deployment of `buildrunner deployments list`",
    )


def _succeeded(client: ServerClient, build: str) -> bool:
    return bool(client.get_build(build)["status"] == "SUCCESS")


def _facts(deployment: Document) -> tuple[object, ...]:
    """Return the deployed images; for a deployment without images, the build that made it."""
    return tuple(deployment["images"]) or (deployment["buildId"],)


def _print_list(found: list[Document], form: str) -> int:
    if form != "table":
        sys.stdout.write(formatted(found, form))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 deployments.\n")
    return EXIT_SUCCESS


def _row(one: Document) -> tuple[str, ...]:
    images = [with_short_digest(image) for image in one["images"]] or ["-"]
    more = f" (+{len(images) - 1} more)" if len(images) > 1 else ""
    guess = "" if one["reported"] else " (suggested)"
    step = one["stepId"] or f"#{one['step']}"
    return (
        one["id"],
        f"{one['time'][:19]}+00:00",
        one["target"],
        f"{images[0]}{more}{guess}",
        one["buildId"].partition("-")[0],
        printable(step),
    )
