"""Values of access: tokens, sessions, the audit log, and the public keys of identity tokens.

Rules as in `store.sql.store`; contract suite: tests/contract/test_server_store.py.
"""

from __future__ import annotations

from datetime import datetime

import msgspec


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """The scopes of a bearer, with the hash of a secret that only the bearer has.

    Attributes:
        name: unique name, for users.
        hash_hex: SHA-256 of the token, in hex (a token has 256 random bits: no salt is needed).
        scopes: of ``read``, ``submit``, ``approve``, ``admin``; admin includes all. The token of a
            worker has ``worker`` alone.
        projects: ids of the permitted projects; empty for all.
        pool: the pool whose builds a worker runs; empty for builds without a pool.
        create_time: time of its creation.
        revoke_time: time of its revocation; None while it is valid.
    """

    name: str
    hash_hex: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...] = ()
    pool: str = ""
    create_time: datetime
    revoke_time: datetime | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that signed in with a token.

    Attributes:
        hash_hex: SHA-256 of the session id, in hex (256 random bits: no salt is needed).
        token_name: name of the token that signed in.
        expires_at: end of the session without a further request.
        ends_at: latest end of the session.
    """

    hash_hex: str
    token_name: str
    expires_at: datetime
    ends_at: datetime


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An action of a caller on a resource, with its result.

    Attributes:
        id: ascending; 0 before it is stored.
        at: time of the action.
        who: name of the caller's token, ``local`` without authentication, or ``server``.
        action: ``builds.create``, ``triggers.delete``, ...
        target: project and id of the resource.
        outcome: HTTP status, or ``ok``.
        address: source address of the request.
    """

    at: datetime
    who: str
    action: str
    target: str
    outcome: str
    address: str = ""
    id: int = 0


class IdentityKey(msgspec.Struct, frozen=True, kw_only=True):
    """The public half of a key that signs identity tokens.

    Attributes:
        id: its thumbprint.
        owner: the server whose key it is; empty for a key of a KMS.
        jwk: the key as a JSON Web Key.
        created_at: time of its first publication.
        published_until: time at which all tokens that it signed have expired.
    """

    id: str
    owner: str
    jwk: dict[str, str]
    created_at: datetime
    published_until: datetime
