"""Who to be at a repository of packages: what the user's own tools are told already.

``~/.netrc`` counts for every kind, ``~/.pypirc`` for Python, ``~/.npmrc`` for npm. A login is used
for the repository it was made for and for no other; the ``default`` of a netrc comes last. Artifact
Registry takes an access token of Google for a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from buildrunner.errors import PackageError, SecretError

_ARTIFACT_REGISTRY = re.compile(r"[a-z0-9-]+-(?:python|npm|maven|go|generic)\.pkg\.dev")
_DEFAULT = "default"
_GOOGLE_USER = "oauth2accesstoken"
_NPM_KEYS = ("_authToken", "_auth", "username", "_password", "email")


class PackageLogins:
    """Reads the files when asked.

    Args:
        environ: ``HOME``, ``NETRC``, ``NPM_CONFIG_USERCONFIG``.
        google_token: gives an access token, or raises SecretError; asked for Artifact Registry
            only, and only where the files name no login.
    """

    def __init__(
        self, environ: Mapping[str, str], google_token: Callable[[], str] | None = None
    ) -> None:
        self._environ = environ
        self._google_token = google_token

    def login_for(self, kind: str, repository: str) -> tuple[str, str]:
        """Username and password; both empty for none.

        Raises:
            PackageError: a file with logins can't be read, or there is no token for Google.
        """
        if kind == "npm" and self._from_npmrc(repository):
            return "", ""  # npm itself knows it
        found = self._from_pypirc(repository) if kind == "python" else None
        if found:
            return found
        machines = self._machines()
        found = machines.get(urlsplit(repository).hostname or "")
        return found or self._from_google(repository) or machines.get(_DEFAULT) or ("", "")

    def _from_google(self, repository: str) -> tuple[str, str] | None:
        place = urlsplit(repository)
        host = place.hostname or ""
        if place.scheme != "https" or not _ARTIFACT_REGISTRY.fullmatch(host):
            return None
        if self._google_token is None:
            return None
        try:
            return _GOOGLE_USER, self._google_token()
        except SecretError as error:
            raise PackageError(
                f"there is no login for {host}: {str(error).rstrip('.')}",
                unauthorized=True,
                hint=f"{error.hint}; or name another repository for {repository} in "
                "[artifacts.repositories]",
            ) from error

    def npmrc_for(self, repository: str) -> bytes:
        """The lines of an ``.npmrc`` that log in at ``repository``; empty for none.

        Raises:
            PackageError: the user's ``.npmrc`` can't be read.
        """
        lines = self._from_npmrc(repository)
        if not lines:
            username, password = self.login_for("npm", repository)
            if username:
                from base64 import b64encode

                pair = b64encode(f"{username}:{password}".encode()).decode()
                lines = [f"{_npm_place(repository)}:_auth={pair}\n"]
        return "".join(lines).encode()

    def _from_npmrc(self, repository: str) -> list[str]:
        """Lines for just this address: one for all of a host is not enough for ``npm publish``."""
        place = _npm_place(repository)
        found: dict[str, list[str]] = {}
        for line in self._text(self._environ.get("NPM_CONFIG_USERCONFIG"), ".npmrc").splitlines():
            key, _, value = line.partition("=")
            scope, _, name = key.strip().rpartition(":")
            if name in _NPM_KEYS and scope.endswith("/") and place.startswith(scope):
                setting = f"{place}:{name}={self._expanded(value.strip())}\n"
                found.setdefault(scope, []).append(setting)
        return found[max(found, key=len)] if found else []

    def _expanded(self, value: str) -> str:
        """``${NAME}`` is a variable of the environment, as npm has it."""
        return re.sub(r"\$\{([^}]+)\}", lambda name: self._environ.get(name[1], name[0]), value)

    def _machines(self) -> dict[str, tuple[str, str]]:
        """Logins of the netrc by host, in small letters. Source: curl, for the letters."""
        from netrc import NetrcParseError, netrc

        path = self._environ.get("NETRC") or self._in_home(".netrc")
        try:
            hosts = netrc(path).hosts if os.path.isfile(path) else {}
        except (OSError, NetrcParseError, UnicodeDecodeError):
            # The error may quote the line, and so a password.
            raise PackageError(f"{path} can't be read", hint="Correct or remove it.") from None
        return {host.lower(): (found[0], found[2] or "") for host, found in hosts.items()}

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


def _npm_place(repository: str) -> str:
    """How an ``.npmrc`` names a repository."""
    return f"//{repository.partition('://')[2].rstrip('/')}/"
