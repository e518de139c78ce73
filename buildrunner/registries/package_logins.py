"""Who to be at a repository of packages: what the user's own tools are told already.

``~/.netrc`` counts for every kind, ``~/.pypirc`` for Python, ``~/.npmrc`` for npm. A login is used
for the repository it was made for and for no other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from buildrunner.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_NPM_KEYS = ("_authToken", "_auth", "username", "_password", "email")


class PackageLogins:
    """Reads the files when asked.

    Args:
        environ: ``HOME``, ``NETRC``, ``NPM_CONFIG_USERCONFIG``.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def login_for(self, kind: str, repository: str) -> tuple[str, str]:
        """Username and password; both empty for none.

        Raises:
            PackageError: a file with logins can't be read.
        """
        found = self._from_pypirc(repository) if kind == "python" else None
        return found or self._from_netrc(urlsplit(repository).hostname or "") or ("", "")

    def npmrc_for(self, repository: str) -> bytes:
        """The lines of an ``.npmrc`` that log in at ``repository``; empty for none.

        Raises:
            PackageError: the user's ``.npmrc`` can't be read.
        """
        place = f"//{repository.partition('://')[2].rstrip('/')}/"
        lines = []
        for line in self._text(self._environ.get("NPM_CONFIG_USERCONFIG"), ".npmrc").splitlines():
            key, _, value = line.partition("=")
            scope, _, name = key.strip().rpartition(":")
            if name in _NPM_KEYS and scope.endswith("/") and place.startswith(scope):
                lines.append(f"{key.strip()}={self._expanded(value.strip())}\n")
        if not lines:
            username, password = self.login_for("npm", repository)
            if username:
                from base64 import b64encode

                pair = b64encode(f"{username}:{password}".encode()).decode()
                lines = [f"{place}:_auth={pair}\n"]
        return "".join(lines).encode()

    def _expanded(self, value: str) -> str:
        """``${NAME}`` is a variable of the environment, as npm has it."""
        import re

        return re.sub(r"\$\{([^}]+)\}", lambda name: self._environ.get(name[1], name[0]), value)

    def _from_netrc(self, host: str) -> tuple[str, str] | None:
        from netrc import NetrcParseError, netrc

        path = self._environ.get("NETRC") or self._in_home(".netrc")
        try:
            found = netrc(path).authenticators(host) if os.path.isfile(path) else None
        except (OSError, NetrcParseError, UnicodeDecodeError):
            # The error may quote the line, and so a password.
            raise PackageError(f"{path} can't be read", hint="Correct or remove it.") from None
        return (found[0], found[2] or "") if found else None

    def _from_pypirc(self, repository: str) -> tuple[str, str] | None:
        from configparser import Error, RawConfigParser

        parser = RawConfigParser()
        try:
            parser.read_string(self._text(None, ".pypirc"))
        except Error:
            path = self._in_home(".pypirc")
            raise PackageError(f"{path} can't be read", hint="Correct or remove it.") from None
        for name in parser.sections():
            section = parser[name]
            if section.get("repository", "").rstrip("/") == repository.rstrip("/"):
                return section.get("username", ""), section.get("password", "")
        return None

    def _text(self, path: str | None, name: str) -> str:
        path = path or self._in_home(name)
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError):
            raise PackageError(f"{path} can't be read", hint="Correct or remove it.") from None

    def _in_home(self, name: str) -> str:
        return os.path.join(self._environ.get("HOME") or os.path.expanduser("~"), name)
