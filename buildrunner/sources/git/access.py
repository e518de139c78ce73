"""Which credentials the user's settings give for a repository."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources.git.credentials import GitCredentials
from buildrunner.sources.git.url import GitUrl


class GitAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings say about Git hosts.

    Keys name a host, and more when it matters: ``git.example.com``, ``git.example.com:8443``,
    ``git.example.com/team`` (all below it), ``ci@git.example.com`` (user name for https). They hold
    for https and ssh; for plain http a key must say so: ``http://localhost:8080``. The longest that
    fits wins.

    Attributes:
        tokens: where passwords or tokens for https are: ``env:NAME`` or ``file:PATH``.
        ssh_keys: paths of private keys.
        known_hosts: path of a file of host keys, in addition to the user's and the system's.
        host_keys: fingerprints of ssh host keys that are trusted, separated by spaces.
    """

    tokens: dict[str, str] = {}
    ssh_keys: dict[str, str] = {}
    known_hosts: str = ""
    host_keys: dict[str, str] = {}


def credentials_for(
    url: GitUrl, access: GitAccess, environ: Mapping[str, str]
) -> GitCredentials | None:
    """The credentials for a repository; None lets git find its own.

    Raises:
        SourceError: a token or key is not where the settings say.
    """
    if url.transport in ("https", "http"):
        key = _best(url, access.tokens)
        if key is None:
            return None
        user = key.partition("://")[2] or key
        username = user.rpartition("@")[0] if "@" in user.partition("/")[0] else ""
        return GitCredentials(username=username, password=_value(access.tokens[key], environ, key))
    if url.transport == "ssh":
        ssh_key, host_key = _best(url, access.ssh_keys), _best(url, access.host_keys)
        if ssh_key is None and host_key is None and not access.known_hosts:
            return None
        if ssh_key is not None:
            _check_readable(access.ssh_keys[ssh_key], ssh_key)
        return GitCredentials(
            ssh_key=access.ssh_keys[ssh_key] if ssh_key is not None else "",
            known_hosts=access.known_hosts,
            host_fingerprints=tuple(access.host_keys[host_key].split()) if host_key else (),
        )
    return None


def _check_readable(path: str, key: str) -> None:
    """Without a key that is not there ssh goes on, and the host's refusal misleads."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise SourceError(
            f"the ssh key for {key} can't be read from {path}: {error.strerror}",
            hint="change [git.ssh_keys] of the settings",
        ) from error


def _best(url: GitUrl, keys: Mapping[str, str]) -> str | None:
    """The longest key that stands for the repository."""
    target = f"{_place(url)}/{url.path}"
    found = [key for key in keys if _fits(_normal(key), target)]
    return max(found, key=lambda key: len(_normal(key)), default=None)


def _fits(key: str, target: str) -> bool:
    return target == key or target.startswith(f"{key}/") or target == f"{key}.git"


def _normal(key: str) -> str:
    """The key without user, and without the schemes that are meant anyway."""
    scheme, mark, rest = key.rpartition("://")
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2].lower()
    start = f"{scheme}{mark}" if scheme == "http" else ""
    return f"{start}{host}{slash}{path}".rstrip("/")


def _place(url: GitUrl) -> str:
    """Host and port as keys name them; the scheme where it is http."""
    if url.origin:
        return url.origin.removeprefix("https://")
    if "://" not in url.text:
        return url.host
    authority = url.text.partition("://")[2].partition("/")[0]
    return authority.rpartition("@")[2].lower()


def _value(source: str, environ: Mapping[str, str], key: str) -> str:
    kind, _, name = source.partition(":")
    if kind == "env":
        value = environ.get(name, "")
        if not value:
            raise SourceError(
                f"the token for {key} should be in the environment variable {name}, which is empty",
                hint="set it, or change [git.tokens] of the settings",
            )
        return value
    try:
        with open(os.path.expanduser(name), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SourceError(
            f"the token for {key} can't be read from {name}: {reason}",
            hint="change [git.tokens] of the settings",
        ) from error
