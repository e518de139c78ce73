"""Access tokens: how they are made, and who a caller is. Pure, but for the randomness."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from buildrunner.errors import UsageError
from buildrunner.store.model.access import AccessToken

SCOPES: Final = ("read", "submit", "approve", "admin")
_PREFIX: Final = "brt_"  # so that scanners for leaked secrets know one when they see it
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
PROJECT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


class Caller(msgspec.Struct, frozen=True):
    """The authenticated caller of a request and its scopes.

    Attributes:
        name: of his token; ``local`` without authentication.
        scopes: of `SCOPES`; admin includes all.
        projects: where; empty for everywhere.
    """

    name: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...] = ()

    def may(self, scope: str, project: str = "") -> bool:
        """Whether he may do what needs ``scope`` in a project; for the whole server when empty."""
        return self.can(scope) and (not self.projects or project in self.projects)

    def can(self, scope: str) -> bool:
        """Whether he may do what needs ``scope`` anywhere at all."""
        return scope in self.scopes or "admin" in self.scopes


LOCAL: Final = Caller("local", SCOPES)
PUBLIC_NAME: Final = "(public)"  # no token can be called that


def public_caller(projects: Sequence[str]) -> Caller | None:
    """Return the caller for requests without a token; None if no project is public."""
    return Caller(PUBLIC_NAME, ("read",), tuple(projects)) if projects else None


def new_token(
    name: str, scopes: Sequence[str], projects: Sequence[str] = (), *, now: datetime
) -> tuple[str, AccessToken]:
    """A fresh token: what its bearer gets, once, and what is stored.

    Raises:
        UsageError: a name, scope or project that can't be.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a token: letters, digits and ._@- up to 64")
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageError(f"there is no scope {scope}", hint=f"known: {', '.join(SCOPES)}")
    if not scopes:
        raise UsageError("a token needs a scope", hint=f"known: {', '.join(SCOPES)}")
    for project in projects:
        if not PROJECT_ID.fullmatch(project):
            raise UsageError(f"{project!r} is no project id")
    text = _PREFIX + secrets.token_urlsafe(32)
    stored = AccessToken(
        name=name,
        hash_hex=hash_of(text),
        scopes=tuple(dict.fromkeys(scopes)),
        projects=tuple(dict.fromkeys(projects)),
        create_time=now,
    )
    return text, stored


def hash_of(token: str) -> str:
    """The SHA-256 sum by which a token is stored and found."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def caller_of(presented: str, found: AccessToken | None) -> Caller | None:
    """Return the bearer of the presented token; None if the token is unknown, revoked or expired.

    The store finds by the hash, so that its index leaks nothing of the token itself; that the hash
    is the same is checked once more in constant time.
    """
    if found is None or found.revoke_time is not None:
        return None
    if not hmac.compare_digest(found.hash_hex, hash_of(presented)):
        return None
    return Caller(found.name, found.scopes, found.projects)
