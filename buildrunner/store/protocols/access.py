"""The seam between the server and the database: who may do what, and who did what.

Rules as in `server_store`; contract suite: tests/contract/test_server_store.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """Who may do what, with the hash of a secret that only its bearer has.

    Attributes:
        name: unique, for people.
        hash_hex: SHA-256 of the token, in hex (a token has 256 random bits: no salt is needed).
        scopes: of ``read``, ``submit``, ``approve``, ``admin``; admin includes all.
        projects: project ids it is good for; empty for all.
        create_time: when it was made.
        revoke_time: when it was revoked; None while it is good.
    """

    name: str
    hash_hex: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...] = ()
    create_time: datetime
    revoke_time: datetime | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that signed in with a token.

    Attributes:
        hash_hex: SHA-256 of the session id, in hex (256 random bits: no salt is needed).
        token_name: the token that signed in.
        expires_at: when the session ends without a further request.
        ends_at: when it ends in any case.
    """

    hash_hex: str
    token_name: str
    expires_at: datetime
    ends_at: datetime


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to what, and what came of it.

    Attributes:
        id: rising; 0 before it is stored.
        at: when.
        who: the token's name, ``local`` without authentication, or ``server``.
        action: ``builds.create``, ``triggers.delete``, ...
        target: project and id of what it was done to.
        outcome: HTTP status, or ``ok``.
        address: where the request came from.
    """

    at: datetime
    who: str
    action: str
    target: str
    outcome: str
    address: str = ""
    id: int = 0


class AccessStore(Protocol):
    """Tokens, sessions and the audit log."""

    def create_token(self, token: AccessToken) -> None:
        """Keep a token (its hash). Raises `Conflict` on its name."""
        ...

    def find_token(self, hash_hex: str) -> AccessToken | None:
        """The token of that hash, revoked or not; None when unknown."""
        ...

    def list_tokens(self) -> list[AccessToken]:
        """All tokens, by name."""
        ...

    def revoke_token(self, name: str, *, now: datetime) -> None:
        """Revoke a token and end its sessions. Raises `NotFound`."""
        ...

    def create_session(self, session: Session, *, now: datetime) -> None:
        """Store a session, and delete those that are over."""
        ...

    def find_session(self, hash_hex: str, *, now: datetime) -> tuple[Session, AccessToken] | None:
        """The session of that hash and its token; None if it is over or the token is revoked."""
        ...

    def extend_session(self, hash_hex: str, expires_at: datetime) -> None:
        """Let a session expire later, if it still exists."""
        ...

    def delete_session(self, hash_hex: str) -> None:
        """End a session. Idempotent."""
        ...

    def form_key(self) -> bytes:
        """The key that signs the forms of pages: the same for all servers of the database."""
        ...

    def audit(self, entry: AuditEntry) -> None:
        """Append to the audit log."""
        ...

    def audit_log(self, *, limit: int = 100, before_id: int = 0) -> list[AuditEntry]:
        """The newest entries first; only those older than entry ``before_id`` when given."""
        ...

    def forget_audit(self, *, before: datetime, limit: int) -> int:
        """Delete entries from before a moment, up to ``limit``; how many."""
        ...
