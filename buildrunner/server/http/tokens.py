"""Access tokens: create tokens, and identify callers. Pure, except for random numbers."""

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
from buildrunner.store.model.remote import WorkerIdentity

SCOPES: Final = ("read", "submit", "approve", "admin")
WORKER: Final = "worker"
"""The scope of a worker's token. It opens the worker protocol, and nothing else."""
_PREFIX: Final = "brt_"  # so that scanners for leaked secrets recognize tokens
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
POOL_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
PROJECT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


class Caller(msgspec.Struct, frozen=True):
    """The authenticated caller of a request and its scopes.

    Attributes:
        name: name of the token; ``local`` without authentication.
        scopes: scopes from `SCOPES`; ``admin`` includes all.
        projects: the permitted projects; empty for all.
    """

    name: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...] = ()

    def may(self, scope: str, project: str = "") -> bool:
        """Return whether the caller has ``scope`` in a project; an empty one means all projects."""
        return self.can(scope) and (not self.projects or project in self.projects)

    def can(self, scope: str) -> bool:
        """Return whether the caller has ``scope`` in any project."""
        return scope in self.scopes or "admin" in self.scopes


LOCAL: Final = Caller("local", SCOPES)
PUBLIC_NAME: Final = "(public)"  # no token can have this name


def public_caller(projects: Sequence[str]) -> Caller | None:
    """Return the caller for requests without a token; None if no project is public."""
    return Caller(PUBLIC_NAME, ("read",), tuple(projects)) if projects else None


def new_token(
    name: str,
    scopes: Sequence[str],
    projects: Sequence[str] = (),
    *,
    pool: str = "",
    now: datetime,
) -> tuple[str, AccessToken]:
    """Create a token. Returns the secret text for its bearer, and the record to store.

    Raises:
        UsageError: a name, scope, project or pool is invalid.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a token: letters, digits and ._@- up to 64")
    known = f"known: {', '.join((*SCOPES, WORKER))}"
    for scope in scopes:
        if scope not in (*SCOPES, WORKER):
            raise UsageError(f"there is no scope {scope}", hint=known)
    if not scopes:
        raise UsageError("a token needs a scope", hint=known)
    if WORKER in scopes and set(scopes) != {WORKER}:
        raise UsageError("the token of a worker has no other scope", hint="create two tokens")
    if pool and WORKER not in scopes:
        raise UsageError("only the token of a worker has a pool", hint="its scope is worker")
    if pool and not POOL_NAME.fullmatch(pool):
        raise UsageError(
            f"{pool!r} is no name for a pool: up to 63 small letters, digits and -, a letter first"
        )
    for project in projects:
        if not PROJECT_ID.fullmatch(project):
            raise UsageError(f"{project!r} is no project id")
    text = _PREFIX + secrets.token_urlsafe(32)
    stored = AccessToken(
        name=name,
        hash_hex=hash_of(text),
        scopes=tuple(dict.fromkeys(scopes)),
        projects=tuple(dict.fromkeys(projects)),
        pool=pool,
        create_time=now,
    )
    return text, stored


def hash_of(token: str) -> str:
    """Return the SHA-256 sum by which a token is stored and found."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def caller_of(presented: str, found: AccessToken | None) -> Caller | None:
    """Return the bearer of the presented token; None if it is unknown, revoked or a worker's."""
    if found is None or not _is_good(presented, found) or WORKER in found.scopes:
        return None
    return Caller(found.name, found.scopes, found.projects)


def worker_of(presented: str, found: AccessToken | None) -> WorkerIdentity | None:
    """Return the worker with the presented token; None if it is unknown, revoked or no worker's."""
    if found is None or not _is_good(presented, found) or WORKER not in found.scopes:
        return None
    return WorkerIdentity(name=found.name, pool=found.pool, projects=found.projects)


def _is_good(presented: str, found: AccessToken) -> bool:
    """Return whether the token that the store found is the presented one, and is not revoked.

    The store searches by hash, so its index leaks nothing about the token itself. The hash
    is compared again in constant time.
    """
    return found.revoke_time is None and hmac.compare_digest(found.hash_hex, hash_of(presented))
