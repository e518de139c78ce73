"""Logins for package repositories, from the configuration of the user's own tools.

``~/.netrc`` counts for every kind, ``~/.pypirc`` for Python, ``~/.npmrc`` for npm. The author of a
build chooses the repository. So a login goes to the host and port that it was made for, and without
TLS only to this machine and to a repository of the settings. Artifact Registry accepts an access
token of Google as the password.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from buildrunner.errors import PackageError, SecretError
from buildrunner.registries.registry_transport import is_loopback

_ARTIFACT_REGISTRY = re.compile(r"[a-z0-9-]+-(?:python|npm|maven|go|generic)\.pkg\.dev")
_GOOGLE_USER = "oauth2accesstoken"
_NPM_KEYS = ("_authToken", "_auth", "username", "_password")


class PackageLogin(msgspec.Struct, frozen=True):
    """A username with a password, or a token; all empty for no login."""

    username: str = ""
    password: str = ""
    token: str = ""

    @property
    def found(self) -> bool:
        """Return whether this is a login at all."""
        return bool(self.username or self.token)


def where_to_log_in(repository: str, file: str) -> str:
    """Return advice on where to configure the login for a repository.

    Args:
        repository: its address.
        file: the file of the user for its kind, e.g. ``~/.npmrc``.
    """
    place = _split(repository)
    host = place.hostname or ""
    named = f"name {repository} in [artifacts.repositories] of the settings"
    if place.scheme != "https" and not is_loopback(host):
        return f"{named}: without TLS a login goes nowhere else"
    if place.port not in (None, 443):
        host = f"{host}:{place.port}"
    return f"put one for the machine {host} into {file}"


def _split(repository: str) -> SplitResult:
    """Return the parts of an address.

    Raises:
        PackageError: the port is invalid, or the path has ``.`` or ``..``, so that a login for one
            folder would go to another.
    """
    place = urlsplit(repository)
    try:
        fits = place.port != 0
    except ValueError:
        fits = False
    steps = {unquote(part) for part in place.path.split("/")}
    if not fits or steps & {".", ".."}:
        raise PackageError(
            f"{repository} is no address of a repository",
            hint="Write its port as a number up to 65535, and its path without . and .. in it.",
        )
    return place


class PackageLogins:
    """Finds logins. Reads the files on each request.

    Args:
        environ: ``HOME``, ``NETRC``, ``NPM_CONFIG_USERCONFIG``.
        google_token: returns an access token, or raises SecretError; called for Artifact Registry
            only, and only if the files have no login.
        named: repositories of the settings. Addresses below them also count.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        google_token: Callable[[], str] | None = None,
        named: Iterable[str] = (),
    ) -> None:
        self._environ = environ
        self._google_token = google_token
        self._named = tuple(f"{url.rstrip('/')}/" for url in named)

    def login_for(self, kind: str, repository: str) -> PackageLogin:
        """Return the login for a repository; an empty one if there is none.

        Raises:
            PackageError: a file with logins can't be read, or Google's token is unavailable.
        """
        place = _split(repository)
        is_named = f"{repository}/".startswith(self._named)
        if place.scheme != "https" and not is_named and not is_loopback(place.hostname or ""):
            return PackageLogin()
        found = None
        if kind == "npm":
            found = self._from_npmrc(repository)
        elif kind == "python":
            found = self._from_pypirc(repository)
        return found or self._from_netrc(place, is_named) or self._from_google(repository)

    def _from_netrc(self, place: SplitResult, is_named: bool) -> PackageLogin | None:
        """Return the login of ``host:port``; or of the host, for port 443 or a known repository."""
        machines = self._machines()
        host = place.hostname or ""
        found = machines.get(f"{host}:{place.port}") if place.port else None
        if found is None and (is_named or place.port in (None, 443)):
            found = machines.get(host)
        return found

    def _from_google(self, repository: str) -> PackageLogin:
        place = urlsplit(repository)
        host = place.hostname or ""
        if place.scheme != "https" or not _ARTIFACT_REGISTRY.fullmatch(host):
            return PackageLogin()
        if self._google_token is None:
            return PackageLogin()
        try:
            return PackageLogin(_GOOGLE_USER, self._google_token())
        except SecretError as error:
            raise PackageError(
                f"there is no login for {host}: {str(error).rstrip('.')}",
                unauthorized=True,
                hint=f"{error.hint}; or name another repository for {repository} in "
                "[artifacts.repositories]",
            ) from error

    def _from_npmrc(self, repository: str) -> PackageLogin | None:
        """Return the login in the lines for the longest prefix of the address."""
        place = f"//{repository.partition('://')[2].rstrip('/')}/"
        path = self._environ.get("NPM_CONFIG_USERCONFIG")
        found: dict[str, dict[str, str]] = {}
        for line in self._text(path, ".npmrc").splitlines():
            key, _, value = line.partition("=")
            scope, _, name = key.strip().rpartition(":")
            if name in _NPM_KEYS and scope.endswith("/") and place.startswith(scope):
                found.setdefault(scope, {})[name] = self._expanded(value.strip().strip('"'))
        if not found:
            return None
        lines = found[max(found, key=len)]
        if "_authToken" in lines:
            return PackageLogin(token=lines["_authToken"])
        try:
            if "_auth" in lines:
                username, _, password = b64decode(lines["_auth"]).decode().partition(":")
            else:
                username = lines.get("username", "")
                password = b64decode(lines.get("_password", "")).decode()
        except ValueError:
            raise self._unreadable(path or self._in_home(".npmrc")) from None
        return PackageLogin(username, password) if username else None

    def _expanded(self, value: str) -> str:
        """Expand ``${NAME}`` from the environment, as npm does."""
        return re.sub(r"\$\{([^}]+)\}", lambda name: self._environ.get(name[1], name[0]), value)

    def _machines(self) -> dict[str, PackageLogin]:
        """Return the logins of the netrc by host, in lower case. Source: curl, for the case."""
        from netrc import NetrcParseError, netrc

        path = self._environ.get("NETRC") or self._in_home(".netrc")
        try:
            hosts = netrc(path).hosts if os.path.isfile(path) else {}
        except (OSError, NetrcParseError, UnicodeDecodeError):
            raise self._unreadable(path) from None
        return {
            host.lower(): PackageLogin(found[0], found[2] or "") for host, found in hosts.items()
        }

    def _from_pypirc(self, repository: str) -> PackageLogin | None:
        from configparser import Error, RawConfigParser

        parser = RawConfigParser()
        try:
            parser.read_string(self._text(None, ".pypirc"))
        except Error:
            raise self._unreadable(self._in_home(".pypirc")) from None
        for name in parser.sections():
            section = parser[name]
            if section.get("repository", "").rstrip("/") == repository.rstrip("/"):
                return PackageLogin(section.get("username", ""), section.get("password", ""))
        return None

    def _text(self, path: str | None, name: str) -> str:
        path = path or self._in_home(name)
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError):
            raise self._unreadable(path) from None

    @staticmethod
    def _unreadable(path: str) -> PackageError:
        """Return the error for a file with logins. It quotes no line, which may hold a password."""
        return PackageError(f"{path} can't be read", hint="Correct or remove it.")

    def _in_home(self, name: str) -> str:
        return os.path.join(self._environ.get("HOME") or os.path.expanduser("~"), name)
