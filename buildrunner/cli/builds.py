"""``buildrunner builds``: what ran here: list, describe, log, cancel."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from buildrunner import wiring
from buildrunner.cli.listing import formatted, table
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.settings import data_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from buildrunner.store.build_store import BuildStore, Document

_ONGOING = ("QUEUED", "WORKING")
_COLUMNS = ("ID", "CREATE_TIME", "DURATION", "SOURCE", "IMAGES", "STATUS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``builds`` and their flags."""
    parser.epilog = "An id may be shortened to its first characters, as long as they are unique."
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="the newest builds first")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (50)")
    listing.add_argument("--ongoing", action="store_true", help="only those that run")
    listing.add_argument("--filter", default="", metavar="status=S", help="e.g. status=FAILURE")
    _add_format(listing, ("table", "json", "yaml"))
    describe = actions.add_parser("describe", help="everything that is known of a build")
    describe.add_argument("id", metavar="ID")
    _add_format(describe, ("yaml", "json", "table"))
    log = actions.add_parser("log", help="the log of a build")
    log.add_argument("id", metavar="ID")
    log.add_argument(
        "--follow", "--stream", "-f", action="store_true", help="go on until the build ends"
    )
    cancel = actions.add_parser("cancel", help="stop running builds, wait until they are gone")
    cancel.add_argument("ids", metavar="ID", nargs="+")


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        NotFound: no build of that id.
        Conflict: the id is ambiguous, or the build has ended.
    """
    store = wiring.build_store(data_folder())
    try:
        return _ACTIONS[args.action](args, store)
    finally:
        store.close()


def _add_format(parser: argparse.ArgumentParser, forms: Sequence[str]) -> None:
    parser.add_argument("--format", choices=forms, default=forms[0], help=f"default: {forms[0]}")


def _list(args: argparse.Namespace, store: BuildStore) -> int:
    if args.limit < 1:
        raise UsageError(f"--limit takes a number from 1 on, not {args.limit}")
    documents = store.find(statuses=_statuses(args), limit=args.limit)
    if args.format == "table":
        sys.stdout.write(table(_COLUMNS, [_row(document) for document in documents]))
    else:
        sys.stdout.write(formatted(documents, args.format))
    if not documents and args.format == "table":
        sys.stderr.write("Listed 0 builds.\n")
    return EXIT_SUCCESS


def _statuses(args: argparse.Namespace) -> tuple[str, ...]:
    if args.ongoing:
        return _ONGOING
    if not args.filter:
        return ()
    key, equals, value = args.filter.replace('"', "").partition("=")
    if key.strip() != "status" or not equals or not value:
        raise UsageError(
            f"--filter takes status=S here, not {args.filter}", hint="e.g. --filter status=FAILURE"
        )
    return tuple(status.strip().upper() for status in value.split(","))


def _describe(args: argparse.Namespace, store: BuildStore) -> int:
    document = store.get(args.id)
    if args.format == "table":
        sys.stdout.write(table(_COLUMNS, [_row(document)]))
    else:
        sys.stdout.write(formatted(document, args.format))
    return EXIT_SUCCESS


def _log(args: argparse.Namespace, store: BuildStore) -> int:
    from buildrunner.cli.build_log import show_log

    return show_log(store, data_folder(), args.id, follow=args.follow)


def _cancel(args: argparse.Namespace, store: BuildStore) -> int:
    from buildrunner.cli.build_cancel import cancel_build

    # All ids are looked up first: a typing error in one must not leave half of them cancelled.
    for document in [store.get(build_id) for build_id in args.ids]:
        cancel_build(store, document)
        sys.stderr.write(f"Cancelled [{document['id']}].\n")
    return EXIT_SUCCESS


_ACTIONS: dict[str, Callable[[argparse.Namespace, BuildStore], int]] = {
    "list": _list,
    "describe": _describe,
    "log": _log,
    "cancel": _cancel,
}


def _row(document: Document) -> tuple[str, ...]:
    return (
        document["id"],
        _instant(document.get("createTime", "")),
        _duration(document),
        _source(document.get("source", {})),
        _images(document.get("results", {}).get("images", ())),
        document["status"],
    )


def _instant(text: str) -> str:
    return f"{text[:19]}+00:00" if text else "-"


def _duration(document: Document) -> str:
    start, finish = document.get("startTime"), document.get("finishTime")
    if not start or not finish:
        return "-"
    from datetime import datetime

    elapsed = datetime.fromisoformat(finish) - datetime.fromisoformat(start)
    whole = int(elapsed.total_seconds())
    hours, minutes, left = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}H{minutes}M{left}S"
    return f"{minutes}M{left}S" if minutes else f"{left}S"


def _source(source: Document) -> str:
    if storage := source.get("storageSource"):
        return f"gs://{storage.get('bucket', '')}/{storage.get('object', '')}"
    if repo := source.get("repoSource"):
        revision = repo.get("branchName") or repo.get("tagName") or repo.get("commitSha", "")
        return f"{repo.get('repoName', '')}@{revision}"
    if git := source.get("gitSource"):
        return f"{git.get('url', '')}@{git.get('revision', '')}".rstrip("@")
    return "-"


def _images(images: Sequence[Document]) -> str:
    if not images:
        return "-"
    first: str = images[0].get("name", "")
    return f"{first} (+{len(images) - 1} more)" if len(images) > 1 else first
