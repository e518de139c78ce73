"""Which server a command uses: flag, environment, or the last login; none means this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import UsageError
from buildrunner.settings import server_variables

if TYPE_CHECKING:
    from buildrunner.client import ServerClient


class ChosenServer(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect.

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
        from buildrunner.client import ServerClient

        return ServerClient(self.url, token=self.token, project=project, ca_file=self.ca_file)


def add_server_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--server``, ``--local`` and ``--ca-file``."""
    parser.add_argument(
        "--server",
        default=argparse.SUPPRESS,
        metavar="URL",
        help="a server to use (default: BUILDRUNNER_SERVER, or where you logged in)",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        default=argparse.SUPPRESS,
        help="use this machine, not the server where you logged in",
    )
    parser.add_argument(
        "--ca-file",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="certificates (PEM) to trust in place of the system's",
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
    from buildrunner.cli.login_file import load_logins

    variables = server_variables()
    logins = load_logins()
    url, origin = flag, "--server"
    if not url:
        url, origin = variables.url, "BUILDRUNNER_SERVER"
    if not url:
        url, origin = logins.current, "buildrunner login"
    if not url:
        return None
    from buildrunner.client import checked_url

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
