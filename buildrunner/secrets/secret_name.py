"""Names of secrets and of their versions, as Secret Manager writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from buildrunner.errors import UsageError

if TYPE_CHECKING:
    from buildrunner.plan.build_plan import SecretReference

LATEST = "latest"
SERVER_PREFIXES = ("hooks-", "status-")
"""How the ids begin of what a server itself signs and logs in with: ``hooks-github``."""

# Source: resource names and id rules of Secret Manager v1.
_ID = "[A-Za-z0-9_-]{1,255}"
_NAME = re.compile(
    rf"(?P<secret>(?:projects/[^/\s]+/(?:locations/{_ID}/)?secrets/)?{_ID})"
    rf"(?:/versions/(?P<version>{LATEST}|[1-9][0-9]{{0,8}}))?"
)


class SecretName(NamedTuple):
    """A secret, and which version of it.

    Attributes:
        secret: ``projects/P/secrets/S`` or the bare ``S``.
        version: a number from 1 on; None for the latest.
    """

    secret: str
    version: int | None = None

    @property
    def bare(self) -> str:
        """The secret's id alone."""
        return self.secret.rpartition("/")[2]


def parse_name(text: str) -> SecretName:
    """What ``text`` names: ``S`` or ``projects/P/secrets/S``, perhaps with ``/versions/V``.

    Raises:
        UsageError: it is no such name. The message does not repeat it: it may be a value that
            somebody put in the wrong place.
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


def names_of(reference: SecretReference) -> tuple[str, ...]:
    """The names under which the user may know a secret here, most exact first.

    The version name as the config has it, the same without the version, the secret's id, and the
    variable that the step gets it in.
    """
    if reference.kind == "kms":
        # One key encrypts many values: its name says nothing about which.
        return (reference.env,)
    secret = reference.name.partition("/versions/")[0]
    return (reference.name, secret, secret.rpartition("/")[2], reference.env)


def is_servers_own(name: str) -> bool:
    """Whether a name under which a secret is kept says that it is the server's own.

    Builds of a server don't get those: else whoever may push could have the tokens of its forges.
    What is kept under a whole name (``projects/P/secrets/status-page``) is a build's.
    """
    return "/" not in name and name.startswith(SERVER_PREFIXES)


def suggested_name(reference: SecretReference) -> str:
    """The short name to offer the user in a command."""
    names = names_of(reference)
    return names[0] if len(names) == 1 else names[2]
