"""The attestations of a build on disk: ``attestations.intoto.jsonl`` beside its log.

One DSSE envelope a line, as slsa-verifier and other tools read them. The file is written once, when
the build ends, and is deleted with the build. It stays when the log is removed for its age.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from buildrunner.errors import NotFound, StoreError

FILE_NAME: Final = "attestations.intoto.jsonl"


def store_attestations(folder: str, envelopes: Sequence[bytes]) -> None:
    """Write the attestations of a build into its folder. Without any, nothing is written.

    Raises:
        StoreError: the file cannot be written.
    """
    if not envelopes:
        return
    path = os.path.join(folder, FILE_NAME)
    fresh = f"{path}.new"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(fresh, "wb") as file:
            file.write(b"".join(envelope + b"\n" for envelope in envelopes))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise StoreError(
            f"the provenance can't be stored: {path}: {error.strerror or error}"
        ) from error


def has_attestations(folder: str) -> bool:
    """Return whether a build has attestations."""
    return os.path.exists(os.path.join(folder, FILE_NAME))


def read_attestations(folder: str, build_id: str) -> bytes:
    """Return the attestations of a build: DSSE envelopes, one a line.

    Raises:
        NotFound: the build has none.
        StoreError: the file cannot be read.
    """
    path = os.path.join(folder, FILE_NAME)
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(
            f"build {build_id} has no provenance",
            hint="only builds that succeeded and published images, files or packages have one",
        ) from None
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror or error}") from error
