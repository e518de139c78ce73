"""Servers that the user logged in to, with their tokens, in a file that only he can read."""

from __future__ import annotations

import os

import msgspec

from buildrunner.errors import StoreError, UsageError
from buildrunner.settings import config_folder

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
        """The login at an address; None when there is none."""
        return next((server for server in self.servers if server.url == url), None)

    def with_login(self, server: SavedServer) -> SavedServers:
        """With this one as the current one."""
        others = tuple(one for one in self.servers if one.url != server.url)
        return SavedServers(current=server.url, servers=(*others, server))

    def without(self, url: str) -> SavedServers:
        """Without the login at an address."""
        others = tuple(one for one in self.servers if one.url != url)
        return SavedServers(current="" if self.current == url else self.current, servers=others)


def load_logins() -> SavedServers:
    """Return the saved logins.

    Raises:
        UsageError: the file is damaged, or others can read it.
    """
    path = _path()
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
    """Replace what is saved.

    Raises:
        StoreError: the file can't be written.
    """
    path = _path()
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


def _path() -> str:
    return os.path.join(config_folder(), FILE_NAME)
