"""Names of secrets and of their versions, in the form of Secret Manager."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from buildrunner.errors import UsageError
from buildrunner.plan.build_plan import SecretReference

LATEST = "latest"
FORGE_PREFIX = "forge-"
OLD_FORGE_PREFIX = "status-"
"""Prefix of the names of forges' tokens in earlier versions. Such names are no longer used, since
two hosts could have the same name; builds still don't get secrets with such names."""
SERVER_PREFIXES = ("hooks-", FORGE_PREFIX, OLD_FORGE_PREFIX)
"""Prefixes of ids of the server's own secrets: ``hooks-github``."""
_API_HOSTS = {"api.github.com": "github.com", "api.bitbucket.org": "bitbucket.org"}

# Source: resource names and id rules of Secret Manager v1.
_ID = "[A-Za-z0-9_-]{1,255}"
_NAME = re.compile(
    rf"(?P<secret>(?:projects/[^/\s]+/(?:locations/{_ID}/)?secrets/)?{_ID})"
    rf"(?:/versions/(?P<version>{LATEST}|[1-9][0-9]{{0,8}}))?"
)

_KEY = re.compile(rf"projects/[^/\s]+/locations/{_ID}/keyRings/{_ID}/cryptoKeys/{_ID}")

_NUMBERED = re.compile("projects/[0-9]+/")

_VERSION = re.compile("/(?:versions|cryptoKeyVersions)/")


class SecretName(NamedTuple):
    """A secret, and one of its versions.

    Attributes:
        secret: ``projects/P/secrets/S`` or the bare ``S``.
        version: a number from 1; None for the latest.
    """

    secret: str
    version: int | None = None

    @property
    def bare(self) -> str:
        """The secret's id alone."""
        return self.secret.rpartition("/")[2]


def parse_name(text: str) -> SecretName:
    """Parse ``S`` or ``projects/P/secrets/S``, optionally with ``/versions/V``.

    Raises:
        UsageError: the name is invalid. The message does not repeat it, since it may be a value in
            the wrong place.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UsageError(
            "that is not the name of a secret",
            hint="names are like api-key (letters, digits, - and _) or "
            "projects/P/secrets/api-key, both with or without /versions/N",
        )
    version = match["version"]
    return SecretName(match["secret"], int(version) if version and version != LATEST else None)


def is_key_name(text: str) -> bool:
    """Return whether ``text`` is the name of a key of Cloud KMS."""
    return _KEY.fullmatch(text) is not None


def has_project_number(name: str) -> bool:
    """Return whether a name has the number of a project instead of its id."""
    return _NUMBERED.match(name) is not None


def without_version(name: str) -> str:
    """Return the secret or key of a name, which has the scope of all of its versions."""
    return _VERSION.split(name, maxsplit=1)[0]


def names_of(reference: SecretReference) -> tuple[str, ...]:
    """Return the names under which the user may have a secret here, most specific first.

    These are the version name in the config, the same without the version, the secret's id, and the
    step's variable.
    """
    if reference.kind == "kms":
        # One key encrypts many values, so its name does not identify one.
        return (reference.env,)
    secret = without_version(reference.name)
    return (reference.name, secret, secret.rpartition("/")[2], reference.env)


def is_servers_own(name: str) -> bool:
    """Return whether a stored name marks a secret as the server's own.

    Builds never get these secrets: otherwise any user who may push could read the tokens of the
    server's forges. A secret with a full name (``projects/P/secrets/status-page``) is for builds.
    """
    return "/" not in name and name.startswith(SERVER_PREFIXES)


def forge_host(url: str) -> str:
    """Return a forge's host from its URL or its API's: lower case, with the port unless it is 443.

    Empty for a URL without a host.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return ""
    host = _API_HOSTS.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if host and port not in (None, 443) else shown


def forge_token_name(host: str) -> str:
    """Return the name of a forge's token, such as ``forge-git_example_com``.

    Two hosts never get the same name: a dot becomes ``_``, and any other character that a secret's
    name can't have becomes ``__`` and its code, as in ``forge-git_example_com__3a8443``.

    Args:
        host: see `forge_host`.
    """
    return FORGE_PREFIX + re.sub(r"[^a-z0-9-]", _escaped, host)


def _escaped(found: re.Match[str]) -> str:
    # Two dots in a row are in no host name; they would look like the beginning of a code.
    is_dot = found[0] == "." and not found.string[: found.start()].endswith(".")
    return "_" if is_dot else "".join(f"__{byte:02x}" for byte in found[0].encode())


def suggested_name(reference: SecretReference) -> str:
    """Return the short name to suggest to the user in a command."""
    names = names_of(reference)
    return names[0] if len(names) == 1 else names[2]
