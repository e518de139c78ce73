"""The attestations of a build on disk, beside its log: provenance, and SBOMs in another file.

One DSSE envelope a line, as slsa-verifier and other tools read them. Each file is written once, and
is deleted with the build. The files stay when the log is deleted for its age.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from buildrunner.errors import NotFound, StoreError

FILE_NAME: Final = "attestations.intoto.jsonl"
SBOM_NAME: Final = "sbom.intoto.jsonl"
SBOM_FAILED_NAME: Final = "sbom.failed"
"""File with a line for each image that has no SBOM, or none yet. The line gives the reason."""


def store_attestations(folder: str, envelopes: Sequence[bytes]) -> None:
    """Write the attestations of a build into its folder. Writes no file if there are none.

    Raises:
        StoreError: the file cannot be written.
    """
    write_lines(folder, FILE_NAME, envelopes)


def write_lines(folder: str, name: str, lines: Sequence[bytes]) -> None:
    """Write a whole file of lines into the folder of a build. Writes no file if there are none.

    Raises:
        StoreError: the file cannot be written.
    """
    if not lines:
        return
    path = os.path.join(folder, name)
    fresh = f"{path}.new"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(fresh, "wb") as file:
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise StoreError(
            f"the provenance can't be stored: {path}: {error.strerror or error}"
        ) from error


def remove_lines(folder: str, name: str) -> None:
    """Remove a file of `write_lines`, if it is there."""
    with suppress(FileNotFoundError):
        os.remove(os.path.join(folder, name))


def has_attestations(folder: str) -> bool:
    """Return whether a build has attestations."""
    return os.path.exists(os.path.join(folder, FILE_NAME))


def read_attestations(folder: str, build_id: str) -> bytes:
    """Return the attestations of a build: DSSE envelopes, one a line, provenance first.

    Raises:
        NotFound: the build has none.
        StoreError: a file cannot be read.
    """
    found = _read(folder, FILE_NAME) + _read(folder, SBOM_NAME)
    if not found:
        raise NotFound(
            f"build {build_id} has no provenance",
            hint="only builds that succeeded and published images, files or packages have one",
        )
    return found


def sbom_failures(folder: str) -> list[str]:
    """Return why images of a build have no SBOM; empty if all have one, or none should."""
    return _read(folder, SBOM_FAILED_NAME).decode("utf-8", "replace").splitlines()


def _read(folder: str, name: str) -> bytes:
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror or error}") from error
