"""The key of the local secret store: in a file that only the user can read, or in the OS keyring.

A key is created once, at the first `buildrunner secrets set`, and never replaced.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from typing import Any, BinaryIO, Protocol

from buildrunner.errors import SecretError

KEY_BYTES = 32

_KEYRING_SERVICE = "buildrunner"


class StoreKey(Protocol):
    """The place of the key."""

    def read(self) -> bytes | None:
        """Return the key; None if there is none yet.

        Raises:
            SecretError: the key exists but can't be used. The message has the remedy.
        """
        ...

    def make(self) -> bytes:
        """Create and store a key. Only called if `read` found none, under the store's lock.

        Raises:
            SecretError: the key can't be stored.
        """
        ...

    @property
    def place(self) -> str:
        """Return the place, for messages."""
        ...


class KeyFile:
    """A key in a file of mode 0600.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def place(self) -> str:
        """See `StoreKey.place`."""
        return self._path

    def read(self) -> bytes | None:
        """See `StoreKey.read`. A file that others may read is refused."""
        try:
            with open(self._path, "rb") as file:
                exposed = exposed_file(file)
                text = file.read(1024)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SecretError(f"the key {self._path} can't be read: {error.strerror}") from error
        if exposed:
            raise SecretError(
                f"the key {self._path} {exposed}",
                hint=f"chmod 600 {self._path}; if others may have read it, set your secrets anew "
                "with a new key",
            )
        return _decoded(text, self._path)

    def make(self) -> bytes:
        """See `StoreKey.make`. The file is complete and private from the start."""
        key = os.urandom(KEY_BYTES)
        try:
            write_private(self._path, base64.b64encode(key) + b"\n")
        except OSError as error:
            raise SecretError(f"the key {self._path} can't be written: {error.strerror}") from error
        return key


class KeyringKey:
    """A key in the OS keyring (Secret Service, macOS Keychain, ...), by the package ``keyring``.

    Args:
        account: name of the entry: the store's folder, so that each store has its own key.
    """

    def __init__(self, account: str) -> None:
        self._account = account

    @property
    def place(self) -> str:
        """See `StoreKey.place`."""
        return "the OS keyring"

    def read(self) -> bytes | None:
        """See `StoreKey.read`."""
        keyring = _keyring()
        try:
            text = keyring.get_password(_KEYRING_SERVICE, self._account)
        except keyring.errors.KeyringError as error:
            raise SecretError(
                f"the OS keyring does not give the key: {error}", hint="unlock it and try again"
            ) from error
        return None if text is None else _decoded(text.encode(), self.place)

    def make(self) -> bytes:
        """See `StoreKey.make`."""
        keyring = _keyring()
        key = os.urandom(KEY_BYTES)
        text = base64.b64encode(key).decode()
        try:
            keyring.set_password(_KEYRING_SERVICE, self._account, text)
        except keyring.errors.KeyringError as error:
            raise SecretError(
                f"the OS keyring does not take the key: {error}",
                hint='unlock it, or set key = "file" below [secret_sources]',
            ) from error
        return key


def exposed_file(file: BinaryIO) -> str:
    """Return how others can use a private file, as the end of a sentence; empty if they can't."""
    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    return f"can be read or changed by others (its mode is {mode:04o})" if mode & 0o077 else ""


def write_private(path: str, data: bytes) -> None:
    """Write a new file that only its owner can read, regardless of the umask, and sync it.

    The file appears complete. Of two concurrent writers, one succeeds.

    Raises:
        FileExistsError: the file exists.
        OSError: the file can't be written.
    """
    temporary = f"{path}.{os.urandom(8).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # a umask may have removed even the owner's rights
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)  # unlike a rename, a link never replaces a file
    finally:
        os.unlink(temporary)


def _decoded(text: bytes, place: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SecretError(
            f"{place} holds no key of buildrunner",
            hint="restore it from a backup; without it the stored secrets can't be read",
        )
    return key


def _keyring() -> Any:
    try:  # an optional package
        import keyring
        import keyring.errors
    except ImportError as error:
        raise SecretError(
            "the settings want the key in the OS keyring, and the package keyring is not installed",
            hint='pip install keyring, or set key = "file" below [secret_sources]',
        ) from error
    return keyring
