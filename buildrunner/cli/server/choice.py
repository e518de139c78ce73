"""The server that a command uses: flag, environment, or last login; none means this machine.

Logins are in a file that only the user can read, with their tokens.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from buildrunner.cli.trust import folder_settings
from buildrunner.errors import StoreError, UsageError
from buildrunner.settings import config_folder, server_variables

if TYPE_CHECKING:
    from buildrunner.client.client import ServerClient
    from buildrunner.client.http import ServerConnection


class ChosenServer(msgspec.Struct, frozen=True, kw_only=True):
    """The server to connect to.

    Attributes:
        url: address of the server.
        token: empty for none.
        ca_file: certificates to trust; empty for those of the system.
        project: the project of the login; empty for none.
        origin: the flag, variable or login that chose the server, for messages.
    """

    url: str
    token: str = ""
    ca_file: str = ""
    project: str = ""
    origin: str

    def connect(self, project: str) -> ServerClient:
        """Return a client for the server; opens no connection yet."""
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
    """Return the server of a command; None for this machine.

    A saved token goes to the server that it was saved for and to no other.

    Raises:
        UsageError: ``--server`` and ``--local`` at once, or an invalid address.
    """
    flag = getattr(args, "server", "")
    if getattr(args, "local", False):
        if flag:
            raise UsageError("--server and --local contradict each other", hint="leave one out")
        return None

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
    """Yield the server of a command, and the path of its project in the server's own API.

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


FILE_NAME = "servers.json"


class SavedServer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The stored login of one server.

    Attributes:
        url: its address, without a slash at the end.
        token: empty for one without authentication.
        ca_file: certificates to trust; empty for those of the system.
        project: project of commands that name none; empty for that of the settings.
    """

    url: str
    token: str = ""
    ca_file: str = ""
    project: str = ""


class SavedServers(msgspec.Struct, frozen=True, kw_only=True):
    """The stored logins of all servers.

    Attributes:
        current: address of the one that commands use; empty for none.
        servers: in the order of the logins, newest last.
    """

    current: str = ""
    servers: tuple[SavedServer, ...] = ()

    def find(self, url: str) -> SavedServer | None:
        """Return the login at an address; None if there is none."""
        return next((server for server in self.servers if server.url == url), None)

    def with_login(self, server: SavedServer) -> SavedServers:
        """Return these logins with another one, which becomes the current one."""
        others = tuple(one for one in self.servers if one.url != server.url)
        return SavedServers(current=server.url, servers=(*others, server))

    def without(self, url: str) -> SavedServers:
        """Return these logins without the one at an address."""
        others = tuple(one for one in self.servers if one.url != url)
        return SavedServers(current="" if self.current == url else self.current, servers=others)


def load_logins() -> SavedServers:
    """Return the saved logins.

    Raises:
        UsageError: the file is damaged, or others can read it.
    """
    path = _logins_path()
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except FileNotFoundError:
        return SavedServers()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    if mode & 0o077:
        raise UsageError(f"others can read the tokens in {path}", hint=f"chmod 600 {path}")
    try:
        return msgspec.json.decode(text, type=SavedServers)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is damaged: {error}", hint="remove it, and log in again"
        ) from error


def save_logins(logins: SavedServers) -> None:
    """Replace the saved logins.

    Raises:
        StoreError: the file can't be written.
    """
    path = _logins_path()
    text = msgspec.json.format(msgspec.json.encode(logins), indent=2) + b"\n"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
        os.replace(f"{path}.new", path)
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror}") from error


def _logins_path() -> str:
    return os.path.join(config_folder(), FILE_NAME)
