"""The claims of a build's identity token, and the signed token."""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from urllib.parse import quote

import msgspec

from buildrunner.errors import IdentityRefused
from buildrunner.metadata import AccessToken

LIFETIME: Final = timedelta(minutes=10)
SIGNING_LIFETIME: Final = timedelta(minutes=20)
"""Lifetime of tokens for signatures, in which an SBOM is made, too."""
AUDIENCES_FRESH_FOR: Final = timedelta(seconds=1)
"""Time for which a build keeps its trigger's audiences before it reads the database again."""


class TokenKey(Protocol):
    """A key that signs tokens."""

    @property
    def jwk(self) -> dict[str, str]:
        """The public half, as the server's key set has it."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the signature of ``data`` in the form of JSON Web Signatures.

        Raises:
            IdentityError: the key does not sign.
        """
        ...


class BuildFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a build that its tokens state. The server knows them; no config sets them.

    Attributes:
        project: its project.
        build: its id.
        trigger: id of the trigger that made it.
        trigger_name: the name of that trigger.
        repository: URL of the repository that was fetched; empty for other sources.
        ref: ``refs/heads/BRANCH`` or ``refs/tags/TAG`` of the trigger's repository; empty if the
            build has no such ref, for example a build of a fork.
        commit: the commit that was fetched.
        fork: the source comes from a fork.
    """

    project: str
    build: str
    trigger: str
    trigger_name: str = ""
    repository: str = ""
    ref: str = ""
    commit: str = ""
    fork: bool = False


def subject(facts: BuildFacts) -> str:
    """Return the ``sub`` of a build's tokens, which conditions match as a whole. Pure.

    ``:`` in a name is percent-encoded, so that no name can look like another part.
    """
    source = "fork" if facts.fork else f"ref:{_part(facts.ref)}" if facts.ref else "no-ref"
    return f"project:{_part(facts.project)}:trigger:{_part(facts.trigger)}:{source}"


def token_claims(
    facts: BuildFacts,
    *,
    issuer: str,
    audience: str,
    now: datetime,
    token_id: str,
    lifetime: timedelta = LIFETIME,
) -> dict[str, Any]:
    """Return the claims of a token. Pure."""
    issued = int(now.timestamp())
    return {
        "iss": issuer,
        "sub": subject(facts),
        "aud": audience,
        "iat": issued,
        "nbf": issued,
        "exp": issued + int(lifetime.total_seconds()),
        "jti": token_id,
        "project_id": facts.project,
        "build_id": facts.build,
        "trigger_id": facts.trigger,
        "trigger_name": facts.trigger_name,
        "repository": facts.repository,
        "ref": facts.ref,
        "commit": facts.commit,
        "source": "fork" if facts.fork else "trusted",
    }


def signed_token(claims: dict[str, Any], key: TokenKey) -> str:
    """Return a JSON Web Token.

    Raises:
        IdentityError: the key does not sign.
    """
    header = {"alg": key.jwk["alg"], "kid": key.jwk["kid"], "typ": "JWT"}
    text = ".".join(base64url(_compact(part)) for part in (header, claims))
    return f"{text}.{base64url(key.sign(text.encode('ascii')))}"


class BuildIdentity:
    """The tokens of one build, for its metadata server (`metadata.Credentials`).

    Args:
        issuer: URL of the server.
        facts: the facts about the build.
        audiences: returns the audiences that its trigger allows now.
        key: returns the key that signs now.
        clock: returns the time, aware UTC.
        reserved: audiences of tokens that the build's own process gets, and no step.
    """

    email = ""

    def __init__(
        self,
        issuer: str,
        facts: BuildFacts,
        audiences: Callable[[], tuple[str, ...]],
        key: Callable[[], TokenKey],
        clock: Callable[[], datetime],
        *,
        reserved: Collection[str] = (),
    ) -> None:
        self._reserved = reserved
        self._issuer = issuer
        self._facts = facts
        self._audiences = audiences
        self._key = key
        self._clock = clock
        self._turn = threading.Lock()
        self._allowed: tuple[str, ...] = ()
        self._allowed_at: datetime | None = None

    def access_token(self, scopes: tuple[str, ...]) -> AccessToken:  # noqa: ARG002
        """See `Credentials.access_token`: this account has none."""
        raise IdentityRefused(
            "no access token: exchange an identity token for one, as docs/how-to/keyless.md shows"
        )

    def identity_token(self, audience: str) -> str:
        """See `Credentials.identity_token`.

        Raises:
            IdentityRefused: the trigger does not allow the audience.
            IdentityError: the token can't be signed.
            StoreError: the database does not answer.
        """
        if audience in self._reserved:
            raise IdentityRefused(
                f"a step gets no token for the audience {audience!r}, since the provenance of this "
                "project is signed with such tokens: sign provenance with a key, or in no step"
            )
        if audience not in self._allowed_now():
            raise IdentityRefused(
                f"the trigger of this build does not allow tokens for the audience {audience!r}: "
                "`buildrunner schedules settings TRIGGER --audience URL` allows one"
            )
        return self._token(audience, LIFETIME)

    def signing_token(self, audience: str) -> str:
        """Return a token for the build's own process, which signs provenance with it.

        No trigger has to allow it: no step gets it.

        Raises:
            IdentityError: the token can't be signed.
            StoreError: the database does not answer.
        """
        return self._token(audience, SIGNING_LIFETIME)

    def _token(self, audience: str, lifetime: timedelta) -> str:
        claims = token_claims(
            self._facts,
            issuer=self._issuer,
            audience=audience,
            now=self._clock(),
            token_id=secrets.token_urlsafe(16),
            lifetime=lifetime,
        )
        return signed_token(claims, self._key())

    def _allowed_now(self) -> tuple[str, ...]:
        """Return the allowed audiences. Concurrent requests share one read."""
        with self._turn:
            now = self._clock()
            if self._allowed_at is None or now - self._allowed_at >= AUDIENCES_FRESH_FOR:
                self._allowed = self._audiences()
                self._allowed_at = now
            return self._allowed


def base64url(data: bytes) -> str:
    """Encode bytes as base64url without padding, as in tokens and keys."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _part(name: str) -> str:
    return quote(name, safe="/")


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
