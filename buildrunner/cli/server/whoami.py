"""``buildrunner whoami``: prints the chosen server and the owner of its token."""

from __future__ import annotations

import argparse
import sys

from buildrunner.cli.server.choice import add_server_flags, chosen_server
from buildrunner.cli.terminal.listing import formatted
from buildrunner.errors import EXIT_SUCCESS, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``whoami``."""
    add_server_flags(parser)
    parser.add_argument(
        "--format",
        choices=("yaml", "json"),
        default="yaml",
        help="format of the output (default: yaml)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the server and the owner of its token.

    Raises:
        UsageError: no server is chosen.
        AuthError: the server refuses the token.
    """
    server = chosen_server(args)
    if server is None:
        raise UsageError(
            "no server is used: builds run on this machine",
            hint="`buildrunner login URL` chooses one",
        )
    client = server.connect(server.project)
    try:
        who = client.whoami()
    finally:
        client.close()
    facts = {"url": server.url, "chosenBy": server.origin, **who}
    sys.stdout.write(formatted(facts, args.format))
    return EXIT_SUCCESS
