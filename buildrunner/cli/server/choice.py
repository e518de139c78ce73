"""The server that a command uses: flag, environment, or last login; none means this machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from buildrunner.cli.folder_settings import folder_settings
from buildrunner.errors import UsageError
from buildrunner.settings import server_variables

if TYPE_CHECKING:  # a command of this machine needs no client
    from buildrunner.client.client import ServerClient
    from buildrunner.client.http import ServerConnection


class ChosenServer(msgspec.Struct, frozen=True, kw_only=True):
    """The server to connect to.

    Attributes:
        url: address of the server.
        token: empty for none.
        ca_file: certificates to trust; empty for those of the system.
        project: what the login says; empty for nothing.
        origin: who chose it, for people.
    """

    url: str
    token: str = ""
    ca_file: str = ""
    project: str = ""
    origin: str

    def connect(self, project: str) -> ServerClient:
        """A client for it; opens no connection yet."""
        from buildrunner.client.client import ServerClient

        return ServerClient(self.url, token=self.token, project=project, ca_file=self.ca_file)


def add_server_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--server``, ``--local`` and ``--ca-file``."""
    parser.add_argument(
        "--server",
        default=argparse.SUPPRESS,
        metavar="URL",
        help="server to use (default: BUILDRUNNER_SERVER, or the last login)",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        default=argparse.SUPPRESS,
        help="use this machine instead of the stored server",
    )
    parser.add_argument(
        "--ca-file",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="certificates (PEM) to trust instead of the system's",
    )


def chosen_server(args: argparse.Namespace) -> ChosenServer | None:
    """The server of a command; None for this machine.

    A saved token goes to the server that it was saved for and to no other.

    Raises:
        UsageError: ``--server`` and ``--local`` at once, or an address that is none.
    """
    flag = getattr(args, "server", "")
    if getattr(args, "local", False):
        if flag:
            raise UsageError("--server and --local contradict each other", hint="leave one out")
        return None
    from buildrunner.cli.server.login_file import load_logins

    variables = server_variables()
    logins = load_logins()
    url, origin = flag, "--server"
    if not url:
        url, origin = variables.url, "BUILDRUNNER_SERVER"
    if not url:
        url, origin = logins.current, "buildrunner login"
    if not url:
        return None
    from buildrunner.client.client import checked_url

    url = checked_url(url)
    saved = logins.find(url)
    return ChosenServer(
        url=url,
        token=variables.token or (saved.token if saved else ""),
        ca_file=getattr(args, "ca_file", "")
        or variables.ca_file
        or (saved.ca_file if saved else ""),
        project=saved.project if saved else "",
        origin=origin,
    )


def add_call_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which server and which project."""
    add_server_flags(parser)
    parser.add_argument(
        "--project",
        default=argparse.SUPPRESS,
        metavar="ID",
        help="project (default: from the login or the settings)",
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
    from buildrunner.client.http import ServerConnection

    project = getattr(args, "project", "") or server.project or folder_settings().project_id
    connection = ServerConnection(server.url, server.token, server.ca_file, time.sleep)
    try:
        yield connection, f"/buildrunner/v1/projects/{segment(project)}"
    finally:
        connection.close()


def segment(text: Any) -> str:
    """Return a text quoted as one segment of a URL's path."""
    return quote(str(text), safe="")
