"""Commands that work on a server only, by single calls of its API."""

from __future__ import annotations

import argparse
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from buildrunner.cli.folder_settings import folder_settings
from buildrunner.cli.server_choice import add_server_flags, chosen_server
from buildrunner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.client_http import ServerConnection


def add_call_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which server and which project."""
    add_server_flags(parser)
    parser.add_argument(
        "--project",
        default=argparse.SUPPRESS,
        metavar="ID",
        help="whose (default: of the login, or of the settings)",
    )


@contextmanager
def called_server(args: argparse.Namespace, command: str) -> Iterator[tuple[ServerConnection, str]]:
    """The server of a command, and the path of its project in our own API.

    Raises:
        UsageError: no server is chosen.
    """
    server = chosen_server(args)
    if server is None:
        raise UsageError(
            f"`{command}` is for a server", hint="name one with --server URL, or log in to it"
        )
    from buildrunner.client_http import ServerConnection

    project = getattr(args, "project", "") or server.project or folder_settings().project_id
    connection = ServerConnection(server.url, server.token, server.ca_file, time.sleep)
    try:
        yield connection, f"/buildrunner/v1/projects/{segment(project)}"
    finally:
        connection.close()


def segment(text: Any) -> str:
    """One part of a path."""
    return quote(str(text), safe="")
