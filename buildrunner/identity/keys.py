"""The keys that sign identity tokens, and their rotation.

Each server signs with its own keys: RSA keys in files of mode 0600 in its data folder, or a key
of a KMS. The database has the public keys only. Every server of a database publishes the keys of
all its servers.

A new key is published before it signs, and an old one stays published after its last token, so that
relying parties with a cached key set accept every token.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

from buildrunner.containers.process_owner import file_lock
from buildrunner.errors import IdentityError
from buildrunner.identity.tokens import base64url
from buildrunner.provenance.signing import kms_signer
from buildrunner.secrets.store_key import exposed_file, write_private
from buildrunner.store.model.access import IdentityKey

FOLDER: Final = "identity-keys"
SIGNS_FOR: Final = timedelta(days=30)
OVERLAP: Final = timedelta(days=1)
"""Time for which a key is published before its first token, and after its last one."""
PUBLISHED_FOR: Final = SIGNS_FOR + 2 * OVERLAP
FRESH_FOR: Final = timedelta(minutes=1)
"""Time for which a build's process signs with a key before it checks for a rotation."""

_KMS: Final = ""  # the owner of a key of a KMS, which several servers may use
_RSA_BITS = 2048
_COORDINATE_BYTES = 32
_ALGORITHMS: Final = {"rsa-pkcs1v15-sha256": "RS256", "ecdsa-sha2-nistp256": "ES256"}


class KeyTable(Protocol):
    """The public keys of all servers of a database."""

    def all(self) -> list[IdentityKey]:
        """Return the keys, oldest first."""
        ...

    def put(self, key: IdentityKey) -> None:
        """Store a key, in place of one with its id."""
        ...

    def delete(self, key_id: str) -> None:
        """Delete a key. Idempotent."""
        ...


class SigningKey(msgspec.Struct, frozen=True):
    """Implements `TokenKey`."""

    signer: Signer
    jwk: dict[str, str]

    def sign(self, data: bytes) -> bytes:
        """See `TokenKey.sign`."""
        try:
            signature = bytes.fromhex(self.signer.sign(data).signature)
        except Exception as error:  # each KMS has errors of its own library
            raise IdentityError(f"the identity token can't be signed: {error}") from error
        if self.jwk["alg"] == "RS256":
            return signature
        parts = decode_dss_signature(signature)
        return b"".join(part.to_bytes(_COORDINATE_BYTES, "big") for part in parts)


class IdentityKeys:
    """The keys of one server. Thread-safe; several processes may use the folder.

    Args:
        folder: the server's data folder.
        owner: the name of the server in the database.
        table: the public keys of all servers.
        clock: returns the time, aware UTC.
        kms: URI of a key of a KMS; empty for keys in files.
    """

    def __init__(
        self,
        folder: str,
        owner: str,
        table: KeyTable,
        *,
        clock: Callable[[], datetime],
        kms: str = "",
    ) -> None:
        self._folder = os.path.join(folder, FOLDER)
        self._owner = owner
        self._table = table
        self._clock = clock
        self._kms = kms
        self._turn = threading.Lock()
        self._current: SigningKey | None = None
        self._read_at = datetime.min.replace(tzinfo=UTC)

    def published(self) -> list[dict[str, str]]:
        """Return the public keys of all servers, as JSON Web Keys. The first call makes a key.

        Raises:
            IdentityError: the keys can't be used.
            StoreError: the database does not answer.
        """
        found = self._table.all()
        if not any(key.owner in (self._owner, _KMS) for key in found):
            self.signing()
            found = self._table.all()
        now = self._clock()
        return [key.jwk for key in found if key.published_until > now]

    def rotate_if_used(self) -> None:
        """Rotate the keys if a server of the database has any. Cheap; for a periodic call.

        Raises:
            IdentityError: the keys can't be used.
            StoreError: the database does not answer.
        """
        if self._table.all():
            self.signing()

    def current(self) -> SigningKey:
        """Return the key that signs now, as `signing` found it `FRESH_FOR` ago or later.

        Builds call this for each token: they wait neither for the database nor for each other.
        A key whose file was deleted is not returned.

        Raises:
            IdentityError: the keys can't be used.
            StoreError: the database does not answer.
        """
        with self._turn:
            now = self._clock()
            key = self._current
            if key is None or now - self._read_at >= FRESH_FOR or not self._has(key):
                key = self._current = self.signing()
                self._read_at = now
            return key

    def _has(self, key: SigningKey) -> bool:
        return bool(self._kms) or os.path.exists(self._path(key.jwk["kid"]))

    def signing(self) -> SigningKey:
        """Return the key that signs now, after any rotation that is due.

        Raises:
            IdentityError: the keys can't be used.
            StoreError: the database does not answer.
        """
        now = self._clock()
        if self._kms:
            return self._kms_key(now)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with file_lock(os.path.join(self._folder, "lock")):
                keys = self._usable(now)
                if is_rotation_due(keys, now):
                    keys = [*keys, self._make(now)]
                return self._read(signing_key(keys, now))
        except OSError as error:
            raise IdentityError(
                f"the keys in {self._folder} can't be used: {error.strerror or error}"
            ) from error

    def _usable(self, now: datetime) -> list[IdentityKey]:
        """Return the server's keys, without those that expired or whose file was deleted."""
        names = {name.removesuffix(".pem") for name in os.listdir(self._folder) if ".pem" in name}
        usable = []
        for key in self._table.all():
            if key.published_until <= now or (key.owner == self._owner and key.id not in names):
                self._table.delete(key.id)
            elif key.owner == self._owner:
                usable.append(key)
        for name in names - {key.id for key in usable}:
            with suppress(FileNotFoundError):
                os.unlink(self._path(name))
        return usable

    def _make(self, now: datetime) -> IdentityKey:
        private = generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        jwk = public_jwk(private.public_key())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(self._path(jwk["kid"]), pem)
        return self._publish(jwk, self._owner, now)

    def _publish(self, jwk: dict[str, str], owner: str, now: datetime) -> IdentityKey:
        key = IdentityKey(
            id=jwk["kid"],
            owner=owner,
            jwk=jwk,
            created_at=now,
            published_until=now + PUBLISHED_FOR,
        )
        self._table.put(key)
        return key

    def _read(self, key: IdentityKey) -> SigningKey:
        path = self._path(key.id)
        with open(path, "rb") as file:
            exposed = exposed_file(file)
            pem = file.read()
        if exposed:
            raise IdentityError(
                f"the identity key {path} {exposed}",
                hint="delete it: the server then makes another one",
            )
        try:
            # The key is our own: the check of an RSA key takes 100 ms.
            private = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
        except (ValueError, TypeError) as error:
            raise _damaged(path) from error
        if not isinstance(private, RSAPrivateKey):
            raise _damaged(path)
        public = SSlibKey.from_crypto(private.public_key(), key.id, "rsa-pkcs1v15-sha256")
        return SigningKey(CryptoSigner(private, public), key.jwk)

    def _kms_key(self, now: datetime) -> SigningKey:
        signer = kms_signer(self._kms)
        public = signer.public_key
        if not isinstance(public, SSlibKey) or public.scheme not in _ALGORITHMS:
            raise IdentityError(
                f"{self._kms} signs by {public.scheme}, which identity tokens can't use",
                hint="use a key for RSA PKCS#1 or ECDSA P-256 signatures with SHA-256",
            )
        jwk = public_jwk(load_pem_public_key(str(public.keyval["public"]).encode()))
        known = next((key for key in self._table.all() if key.id == jwk["kid"]), None)
        if known is None or known.created_at + SIGNS_FOR <= now:
            self._publish(jwk, _KMS, now)
        return SigningKey(signer, jwk)

    def _path(self, key_id: str) -> str:
        return os.path.join(self._folder, f"{key_id}.pem")


def is_rotation_due(keys: Iterable[IdentityKey], now: datetime) -> bool:
    """Return whether a server with these keys needs a new one. Pure."""
    return all(key.created_at + SIGNS_FOR <= now for key in keys)


def signing_key(keys: Iterable[IdentityKey], now: datetime) -> IdentityKey:
    """Return the key that signs: the newest that relying parties know, else the oldest. Pure."""
    by_age = sorted(keys, key=lambda key: key.created_at)
    signs_until = SIGNS_FOR + OVERLAP
    fit = [key for key in by_age if now < key.created_at + signs_until]
    known = [key for key in fit if key.created_at + OVERLAP <= now]
    return known[-1] if known else fit[0]


def public_jwk(key: Any) -> dict[str, str]:
    """Return a public key as a JSON Web Key, whose id is its thumbprint.

    Source: RFC 7517, and RFC 7638 for the thumbprint.

    Raises:
        IdentityError: the key is neither RSA nor EC.
    """
    match key:
        case RSAPublicKey():
            rsa = key.public_numbers()
            members = {"e": _base64url_int(rsa.e), "kty": "RSA", "n": _base64url_int(rsa.n)}
            algorithm = "RS256"
        case EllipticCurvePublicKey() if key.curve.name == "secp256r1":
            point = key.public_numbers()
            x, y = (n.to_bytes(_COORDINATE_BYTES, "big") for n in (point.x, point.y))
            members = {"crv": "P-256", "kty": "EC", "x": base64url(x), "y": base64url(y)}
            algorithm = "ES256"
        case _:
            raise IdentityError("an identity key must be an RSA key or a P-256 key")
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    thumbprint = base64url(hashlib.sha256(canonical).digest())
    return {**members, "kid": thumbprint, "use": "sig", "alg": algorithm}


def _base64url_int(number: int) -> str:
    return base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _damaged(path: str) -> IdentityError:
    return IdentityError(
        f"the identity key {path} is no RSA key in PEM form",
        hint="delete it: the server then makes another one",
    )
