"""The secrets of ``buildrunner secrets set``, encrypted, in one file.

``secrets.json`` holds names, versions and dates in clear and each value sealed with AES-256-GCM.
Name, version and date are bound to the value as associated data: without the key, nobody can change
them, or replace one secret's value by another's. The scopes of secrets (`secret_scope`) are stored
in clear, too, each with a seal that binds it to its name. The file is replaced atomically (written
beside, synced, renamed), so readers need no lock; writers hold ``lock``, which lets several
processes work concurrently.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import Conflict, NotFound, SecretError, UsageError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.secrets.secret_name import SecretName, names_of, parse_name
from buildrunner.secrets.secret_scope import Scope
from buildrunner.secrets.store_key import StoreKey, write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


KEY_NAME = "key"
DOCUMENT_NAME = "secrets.json"

_FORMAT = 2
_OLDER_FORMATS = (1,)  # version 1 has no scopes
_NONCE_BYTES = 12


class StoredVersion(msgspec.Struct, frozen=True, rename="camel"):
    """One version of a secret.

    Attributes:
        version: its number, from 1; never reused.
        create_time: time of `put`, RFC 3339.
        sealed: nonce and sealed value.
    """

    version: int
    create_time: str
    sealed: bytes


class StoredSecret(msgspec.Struct, frozen=True, rename="camel"):
    """One secret: ``versions`` that were not removed, ascending; ``last_version``, ever used."""

    last_version: int
    versions: tuple[StoredVersion, ...]


class _SealedScope(msgspec.Struct, frozen=True):
    scope: Scope
    seal: bytes


class _Document(msgspec.Struct, rename="camel"):
    format: int = _FORMAT
    key_id: str = ""
    secrets: dict[str, StoredSecret] = {}
    scopes: dict[str, _SealedScope] = {}


class LocalSecretStore:
    """The store in a folder.

    Args:
        folder: created by the first `put`, for the user only.
        key: the key that seals the values.
    """

    def __init__(self, folder: str, key: StoreKey) -> None:
        self._folder = folder
        self._path = os.path.join(folder, DOCUMENT_NAME)
        self._key = key

    @property
    def path(self) -> str:
        """The file, for messages."""
        return self._path

    def put(self, name: SecretName, value: str, scope: Scope | None = None) -> int:
        """Add a version: the next one, or the one in ``name``.

        Args:
            name: name of the secret.
            value: value of the version.
            scope: replaces the secret's scope; None keeps it.

        Returns:
            The version's number.

        Raises:
            Conflict: that version exists, or once existed.
            SecretError: the store or its key can't be used.
        """
        with self._changing() as document:
            key = self._key_for(document)
            old = document.secrets.get(name.secret, StoredSecret(0, ()))
            version = name.version or old.last_version + 1
            if version <= old.last_version:
                raise Conflict(
                    f"{name.secret} had a version {version} already, and versions never change",
                    hint=f"buildrunner secrets set {name.secret}",
                )
            create_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            nonce = os.urandom(_NONCE_BYTES)
            bound = _bound(name.secret, version, create_time)
            sealed = nonce + _cipher(key).encrypt(nonce, value.encode(), bound)
            entry = StoredVersion(version, create_time, sealed)
            document.secrets[name.secret] = StoredSecret(version, (*old.versions, entry))
            if scope is not None:
                self._set_scope(document, name.secret, scope)
        return version

    def set_scope(self, name: str, scope: Scope) -> None:
        """Replace the scope of a secret or key, which need not be in this store. Empty removes it.

        Raises:
            SecretError: the store or its key can't be used.
        """
        with self._changing() as document:
            self._set_scope(document, name, scope)

    def _set_scope(self, document: _Document, name: str, scope: Scope) -> None:
        if scope == Scope():
            document.scopes.pop(name, None)
            return
        nonce = os.urandom(_NONCE_BYTES)
        tag = _cipher(self._key_for(document)).encrypt(nonce, b"", _bound_scope(name, scope))
        document.scopes[name] = _SealedScope(scope, nonce + tag)

    def remove(self, name: SecretName) -> None:
        """Delete one version, or without a version the whole secret with its scope.

        A secret whose last version is deleted keeps its scope, for the version that replaces it.

        Raises:
            NotFound: there is none.
            SecretError: the store can't be used.
        """
        with self._changing() as document:
            old = self._existing(document, name)
            if name.version is None:
                del document.secrets[name.secret]
                document.scopes.pop(name.secret, None)
            else:
                kept = tuple(one for one in old.versions if one.version != name.version)
                document.secrets[name.secret] = StoredSecret(old.last_version, kept)

    def secrets(self) -> dict[str, StoredSecret]:
        """Return all secrets by name, sorted. Values stay sealed; the key is not needed.

        Raises:
            SecretError: the store can't be read.
        """
        return dict(sorted(self._load().secrets.items()))

    def scopes(self) -> dict[str, Scope]:
        """Return all scopes by name, sorted. Seals are not checked.

        Raises:
            SecretError: the store can't be read.
        """
        return {name: one.scope for name, one in sorted(self._load().scopes.items())}

    def versions(self, name: SecretName) -> tuple[int, ...]:
        """Return the versions that `remove` would delete.

        Raises:
            NotFound: there is none.
            SecretError: the store can't be read.
        """
        found = self._existing(self._load(), name).versions
        return tuple(one.version for one in found if name.version in (None, one.version))

    def snapshot(self) -> Snapshot:
        """Return the store's present content, for later decryption.

        Raises:
            SecretError: the store can't be read.
        """
        return Snapshot(self._load(), self)

    def opened(self, document: _Document, secret: str, version: StoredVersion) -> str:
        """Decrypt a sealed value of ``document``.

        Raises:
            SecretError: the key is missing or another one, or the file was changed.
        """
        from cryptography.exceptions import InvalidTag

        key = self._key_for(document)
        nonce, sealed = version.sealed[:_NONCE_BYTES], version.sealed[_NONCE_BYTES:]
        bound = _bound(secret, version.version, version.create_time)
        try:
            return _cipher(key).decrypt(nonce, sealed, bound).decode()
        except (InvalidTag, ValueError):
            raise SecretError(
                f"version {version.version} of {secret} in {self._path} is damaged",
                hint=f"set it again: buildrunner secrets set {secret}",
            ) from None

    def checked_scope(self, document: _Document, name: str) -> Scope | None:
        """Return the scope of a name in ``document``; None if there is none.

        Raises:
            SecretError: the key is missing or another one, or the file was changed.
        """
        from cryptography.exceptions import InvalidTag

        found = document.scopes.get(name)
        if found is None:
            return None
        nonce, tag = found.seal[:_NONCE_BYTES], found.seal[_NONCE_BYTES:]
        try:
            _cipher(self._key_for(document)).decrypt(nonce, tag, _bound_scope(name, found.scope))
        except (InvalidTag, ValueError):
            raise SecretError(
                f"the scope of {name} in {self._path} is damaged",
                hint=f"set it again: buildrunner secrets scope {name}",
            ) from None
        return found.scope

    def _key_for(self, document: _Document) -> bytes:
        key = self._key.read()
        if key is None and not document.key_id:
            key = self._key.make()
        elif key is None:
            raise SecretError(
                f"the key of {self._path} is missing: it should be in {self._key.place}",
                hint=f"restore it from a backup, or remove {self._path} and set the secrets again",
            )
        if not document.key_id:
            document.key_id = _key_id(key)
        if document.key_id != _key_id(key):
            raise SecretError(
                f"{self._path} was written with another key than that in {self._key.place}",
                hint=f"restore that key, or remove {self._path} and set the secrets again",
            )
        return key

    def _load(self) -> _Document:
        try:
            with open(self._path, "rb") as file:
                document = msgspec.json.decode(file.read(), type=_Document)
        except FileNotFoundError:
            return _Document(secrets={}, scopes={})
        except OSError as error:
            raise SecretError(f"{self._path} can't be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SecretError(
                f"{self._path} is damaged: it is no store of secrets",
                hint="restore it from a backup, or remove it and set the secrets again",
            ) from None
        if document.format not in (_FORMAT, *_OLDER_FORMATS):
            raise SecretError(f"{self._path} was written by a newer buildrunner")
        document.format = _FORMAT
        return document

    @contextmanager
    def _changing(self) -> Iterator[_Document]:
        """Yield the document for changes; it is written if the block ends without an error."""
        import fcntl

        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            lock = os.open(os.path.join(self._folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SecretError(f"{self._folder} can't be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = self._load()
            yield document
            self._save(document)
        finally:
            os.close(lock)

    def _save(self, document: _Document) -> None:
        temporary = f"{self._path}.{os.urandom(8).hex()}"
        try:
            write_private(temporary, msgspec.json.format(msgspec.json.encode(document)) + b"\n")
            os.replace(temporary, self._path)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise SecretError(f"{self._path} can't be written: {error.strerror}") from error

    @staticmethod
    def _existing(document: _Document, name: SecretName) -> StoredSecret:
        found = document.secrets.get(name.secret)
        known = [one.version for one in found.versions] if found else []
        if found is None or (name.version is not None and name.version not in known):
            what = f"version {name.version} of {name.secret}" if found else f"secret {name.secret}"
            raise NotFound(f"there is no {what} here", hint="`buildrunner secrets list` shows all")
        return found


class Snapshot:
    """The store's content at one moment, so that ``latest`` is fixed for a whole build."""

    def __init__(self, document: _Document, store: LocalSecretStore) -> None:
        self._document = document
        self._store = store

    def version_of(self, name: SecretName) -> StoredVersion | None:
        """Return the version in ``name``, or the latest; None if there is none."""
        secret = self._document.secrets.get(name.secret)
        if secret is None:
            return None
        if name.version is None:
            return secret.versions[-1] if secret.versions else None
        return next((one for one in secret.versions if one.version == name.version), None)

    def has(self, secret: str) -> bool:
        """Return whether the secret has a version."""
        found = self._document.secrets.get(secret)
        return found is not None and bool(found.versions)

    def scope_of(self, name: str) -> Scope | None:
        """Return the scope of a name; None if there is none. Raises SecretError."""
        return self._store.checked_scope(self._document, name)

    def open(self, secret: str, version: StoredVersion) -> str:
        """Return the value. Raises SecretError."""
        return self._store.opened(self._document, secret, version)


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _bound(secret: str, version: int, create_time: str) -> bytes:
    return f"buildrunner secret\n{secret}\n{version}\n{create_time}".encode()


def _bound_scope(name: str, scope: Scope) -> bytes:
    return f"buildrunner scope\n{name}\n".encode() + msgspec.json.encode(scope)


def _key_id(key: bytes) -> str:
    """Return an id of the key that reveals nothing about it."""
    return hashlib.sha256(b"buildrunner key id\n" + key).hexdigest()[:16]


class StoredSecrets:
    """`NamedSecrets` of the local store.

    A secret is looked up by its full name ``projects/P/secrets/S``, then by its id, then by the
    name of the variable. The version is the one in the config.

    Args:
        store: the store.
    """

    def __init__(self, store: LocalSecretStore) -> None:
        self._store = store
        self._snapshot: Snapshot | None = None

    @property
    def snapshot(self) -> Snapshot:
        """Return the store's content at its first use.

        Raises:
            SecretError: the store can't be read.
        """
        if self._snapshot is None:
            self._snapshot = self._store.snapshot()
        return self._snapshot

    def find(
        self, reference: SecretReference, misses: list[str], names: Sequence[str] | None = None
    ) -> str | None:
        """See `NamedSecrets.find`. A damaged or unreadable store is an error."""
        snapshot = self.snapshot
        miss = "the local store does not have it"
        for name in _stored_names(reference, names_of(reference) if names is None else names):
            version = snapshot.version_of(name)
            if version is not None:
                return snapshot.open(name.secret, version)
            if snapshot.has(name.secret):
                miss = f"the local store has only other versions of {name.secret}"
        misses.append(miss)
        return None


def _stored_names(reference: SecretReference, names: Sequence[str]) -> list[SecretName]:
    """Return the names to look up, each once. A version alias exists only in the cloud."""
    version: int | None = None
    if reference.kind != "kms":
        try:
            version = parse_name(reference.name).version
        except UsageError:
            return []
    whole = (name.partition("/versions/")[0] for name in names)
    return [SecretName(name, version) for name in dict.fromkeys(whole)]
