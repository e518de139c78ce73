"""Public keys that verify identity tokens."""

from __future__ import annotations

from datetime import datetime

import msgspec


class IdentityKey(msgspec.Struct, frozen=True, kw_only=True):
    """The public half of a key that signs identity tokens.

    Attributes:
        id: its thumbprint.
        owner: the server whose key it is; empty for a key of a KMS.
        jwk: the key as a JSON Web Key.
        created_at: when it was published first.
        published_until: when no token that it signed is good any more.
    """

    id: str
    owner: str
    jwk: dict[str, str]
    created_at: datetime
    published_until: datetime
