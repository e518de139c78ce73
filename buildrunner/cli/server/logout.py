"""``buildrunner logout``: deletes a saved server and its token."""

from __future__ import annotations

import argparse
import sys

from buildrunner.cli.server.choice import load_logins, save_logins
from buildrunner.errors import EXIT_SUCCESS, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``logout``."""
    parser.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        default="",
        help="server to forget (default: the last login)",
    )


def run(args: argparse.Namespace) -> int:
    """Delete the login. The token stays valid: `buildrunner tokens revoke` ends it.

    Raises:
        UsageError: no such login is saved.
    """
    logins = load_logins()
    url = args.url.rstrip("/") or logins.current
    if logins.find(url) is None:
        known = ", ".join(server.url for server in logins.servers)
        raise UsageError(
            f"there is no login at {url}" if url else "you are not logged in",
            hint=f"known: {known}" if known else "",
        )
    save_logins(logins.without(url))
    sys.stderr.write(f"Logged out of [{url}].\n")
    return EXIT_SUCCESS
