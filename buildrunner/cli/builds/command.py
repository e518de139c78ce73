"""``buildrunner builds``: lists, describes, cancels and retries builds, here or on a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from buildrunner import wiring
from buildrunner.cli.builds.local import build_table
from buildrunner.cli.server.choice import add_server_flags, chosen_server
from buildrunner.cli.terminal.listing import add_format, formatted
from buildrunner.cli.trust import folder_settings
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.settings import data_folder, own_settings
from buildrunner.store.build_store import BuildStore

_ONGOING = ("QUEUED", "WORKING")
_ALL = 2**31


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``builds`` and their flags."""
    parser.epilog = "An id may be shortened to its first characters, as long as they are unique."
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="list builds, newest first")
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="maximum number of builds (default: 50)"
    )
    listing.add_argument("--ongoing", action="store_true", help="only builds that have not ended")
    listing.add_argument(
        "--filter",
        default="",
        metavar="EXPR",
        help="""Cloud Build's filter language, e.g. 'status="FAILURE" tags="nightly"'""",
    )
    listing.add_argument(
        "--region", default="", metavar="REGION", help="only builds of this region, such as global"
    )
    listing.add_argument(
        "--page-size",
        type=int,
        default=500,
        metavar="N",
        help="number of builds for each request to a server (default: 500)",
    )
    add_format(listing, ("table", "json", "yaml"))
    describe = actions.add_parser("describe", help="print all details of a build")
    describe.add_argument("id", metavar="ID", help="id of the build")
    add_format(describe, ("yaml", "json", "table"))
    log = actions.add_parser("log", help="print the log of a build")
    log.add_argument("id", metavar="ID", help="id of the build")
    log.add_argument(
        "--follow",
        "--stream",
        "-f",
        action="store_true",
        help="follow the log until the build ends",
    )
    provenance = actions.add_parser(
        "provenance",
        help="print the signed provenance of what a build published",
        description="Print the provenance of a build as DSSE envelopes, one a line. Its statements"
        " name what the build published, and the source, config and images that it was made from."
        " `buildrunner verify` checks them.",
    )
    subject = provenance.add_mutually_exclusive_group(required=True)
    subject.add_argument("id", metavar="ID", nargs="?", help="id of the build")
    subject.add_argument(
        "--public-key",
        action="store_true",
        help="print the public key that verifies the signatures, as PEM",
    )
    provenance.add_argument(
        "--statement",
        action="store_true",
        help="print the statements without signatures, as indented JSON to read",
    )
    cancel = actions.add_parser("cancel", help="cancel running builds and wait for their end")
    cancel.add_argument("ids", metavar="ID", nargs="+", help="id of a build")
    delete = actions.add_parser("delete", help="delete finished builds and their logs")
    delete.add_argument("ids", metavar="ID", nargs="+", help="id of a build")
    retry = actions.add_parser("retry", help="on a server: queue the same build again")
    retry.add_argument("id", metavar="ID", help="id of the build")
    retry.add_argument(
        "--from",
        dest="from_step",
        default="",
        metavar="STEP",
        help="resume from this step (id or index), with the workspace of the failed build",
    )
    approve = actions.add_parser(
        "approve", help="on a server: approve a build that waits for an approval"
    )
    reject = actions.add_parser(
        "reject", help="on a server: reject a build that waits for an approval"
    )
    for decide in (approve, reject):
        decide.add_argument("id", metavar="ID", help="id of the build")
        decide.add_argument("--comment", default="", metavar="TEXT", help="reason of the decision")
        decide.add_argument("--url", default="", metavar="URL", help="link to more information")
    reading = (parser, listing, describe, log, provenance)
    for part in (*reading, cancel, delete, retry, approve, reject):
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
        NotFound: no build has that id.
        FilterError: the filter is wrong.
        Conflict: the id is ambiguous, or the build has ended.
        UsageError: the command needs a server, and none is chosen.
    """
    if args.action == "list":
        for flag, number in (("--limit", args.limit), ("--page-size", args.page_size)):
            if number < 1:
                raise UsageError(f"{flag} takes a number from 1 on, not {number}")
    server = chosen_server(args)
    if server is not None:
        from buildrunner.cli.builds.remote import run_remote

        project = getattr(args, "project", "") or server.project or folder_settings().project_id
        return run_remote(server, project, args)
    if args.action not in _ACTIONS:
        raise UsageError(
            f"`builds {args.action}` is for builds on a server",
            hint="name one with --server URL, or log in to it",
        )
    store = wiring.build_store(data_folder())
    try:
        return _ACTIONS[args.action](args, store)
    finally:
        store.close()


def _list(args: argparse.Namespace, store: BuildStore) -> int:
    statuses = _ONGOING if args.ongoing else ()
    if args.filter or args.region:
        from buildrunner.store.list_filter import matches, parse_filter

        wanted = parse_filter(args.filter)
        region = f"/locations/{args.region}/" if args.region else ""
        found = store.find(statuses=statuses, limit=_ALL)
        documents = [one for one in found if region in one["name"] and matches(wanted, one)]
        documents = documents[: args.limit]
    else:
        documents = store.find(statuses=statuses, limit=args.limit)
    if args.format == "table":
        sys.stdout.write(build_table(documents))
    else:
        sys.stdout.write(formatted(documents, args.format))
    if not documents and args.format == "table":
        sys.stderr.write("Listed 0 builds.\n")
    return EXIT_SUCCESS


def _describe(args: argparse.Namespace, store: BuildStore) -> int:
    document = store.get(args.id)
    if args.format == "table":
        sys.stdout.write(build_table([document]))
    else:
        sys.stdout.write(formatted(document, args.format))
    return EXIT_SUCCESS


def _log(args: argparse.Namespace, store: BuildStore) -> int:
    from buildrunner.cli.builds.local import show_log

    return show_log(store, data_folder(), args.id, follow=args.follow)


def _provenance(args: argparse.Namespace, store: BuildStore) -> int:
    from buildrunner.cli.builds.local import print_provenance
    from buildrunner.logs.files.log_file import log_folder
    from buildrunner.provenance.stored import read_attestations, sbom_failures

    if args.public_key:
        sys.stdout.write(wiring.public_key(own_settings()))
        return EXIT_SUCCESS
    build_id = store.get(args.id)["id"]
    folder = log_folder(data_folder(), build_id)
    envelopes = read_attestations(folder, build_id)
    for failure in sbom_failures(folder):
        sys.stderr.write(f"warning: no SBOM of {failure}\n")
    return print_provenance(envelopes, statement=args.statement)


def _cancel(args: argparse.Namespace, store: BuildStore) -> int:
    from buildrunner.cli.builds.local import cancel_build

    # All ids are looked up first: a typo in one must not leave half of the builds cancelled.
    for document in [store.get(build_id) for build_id in args.ids]:
        cancel_build(store, document)
        sys.stderr.write(f"Cancelled [{document['id']}].\n")
    return EXIT_SUCCESS


def _delete(args: argparse.Namespace, store: BuildStore) -> int:
    for document in [store.get(build_id) for build_id in args.ids]:
        store.delete(document["id"])
        sys.stderr.write(f"Deleted [{document['id']}].\n")
    return EXIT_SUCCESS


_ACTIONS: dict[str, Callable[[argparse.Namespace, BuildStore], int]] = {
    "list": _list,
    "describe": _describe,
    "log": _log,
    "provenance": _provenance,
    "cancel": _cancel,
    "delete": _delete,
}
