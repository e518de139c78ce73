"""The registries that have a layer, and its digest there: an engine's records of pulls and pushes.

A layer travels compressed, under the digest of its compressed form. An engine that does not know
that digest must compress the layer and send it before the registry can report that it already has
the layer. An engine that knows the digest asks the registry before it skips the layer, so a stale
record costs only one request.

Steps, as root, may have written a nested engine's records: an entry that is not exactly in the
engine's form is ignored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Annotated

import msgspec

NOTES = "distribution/v2metadata-by-diffid"
"""The folder of records, one per layer, below ``image/overlay2`` of an engine's data folder."""

_MOST_NOTED = 50  # an engine keeps no more for a layer
_MOST_BYTES = 4 << 20

# Python's $ would let a newline pass.
Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
_Repository = Annotated[
    str, msgspec.Meta(max_length=512, pattern=r"\A[A-Za-z0-9\[][A-Za-z0-9._:/\[\]-]*\Z")
]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A repository that has a layer.

    An engine also records a code of digest, repository and login (``HMAC``). It uses the code only
    for the order of repositories. The code permits guessing passwords, so it is not passed on.

    Attributes:
        digest: digest of the layer's compressed form.
        repository: the repository, with its registry.
    """

    digest: Digest = msgspec.field(name="Digest")
    repository: _Repository = msgspec.field(name="SourceRepository")


Origins = dict[str, tuple[Origin, ...]]
"""Layers by their diffID (the digest of their content), each with its origins, newest last."""

_digest = msgspec.json.Decoder(Digest)
_notes = msgspec.json.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_MOST_NOTED)])
_origin = msgspec.json.Decoder(Origin)


def decode_notes(file: bytes) -> tuple[Origin, ...]:
    """Return the origins in an engine's record, each once; none if it can't be read."""
    found: dict[Origin, None] = {}
    try:
        for one in _notes.decode(file):
            origin = _decode_origin(one)
            if origin is not None:
                found.pop(origin, None)  # the newest repository counts
                found[origin] = None
    except (ValueError, RecursionError):
        return ()
    return tuple(found)


def _decode_origin(data: msgspec.Raw) -> Origin | None:
    try:
        return _origin.decode(data)
    except (ValueError, RecursionError):
        return None


def encode_notes(origins: tuple[Origin, ...]) -> bytes:
    """Encode origins for an engine."""
    return msgspec.json.encode(origins)


def write_origins(folder: str, origins: Origins) -> None:
    """Add origins to the records in a folder, as the newest ones.

    An engine reads a layer's record whenever it pushes the layer.

    Args:
        folder: the folder that an engine has as `NOTES`, or will have.
        origins: the origins to add.

    Raises:
        OSError: a file can't be written.
    """
    for layer, places in origins.items():
        path = os.path.join(folder, layer.replace(":", "/"))
        known: tuple[Origin, ...] = ()
        with suppress(FileNotFoundError), open(path, "rb") as file:
            known = decode_notes(file.read())
        written = (*(one for one in known if one not in places), *places)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(f"{path}.new", "wb") as file:
            file.write(encode_notes(written))
        os.rename(f"{path}.new", path)


def decode_listing(listing: bytes) -> Origins:
    """Decode the output of ``grep -r '' FOLDER`` for a folder of records.

    Args:
        listing: lines ``.../HEX:NOTE``, in any order.
    """
    found: Origins = {}
    if len(listing) > _MOST_BYTES:
        return found
    for line in listing.splitlines():
        path, _, note = line.partition(b":")
        try:
            layer = _digest.decode(b'"sha256:%b"' % path.rpartition(b"/")[2])
        except ValueError:
            continue
        found[layer] = decode_notes(note)
    return found


_MOST_PROJECTS = 100
_MOST_LAYERS = 500
_MOST_ORIGINS = 8

_origins = msgspec.json.Decoder(dict[Digest, tuple[Origin, ...]])


class PushMemory:
    """The known origins of one project's builds: a file, which may be deleted at any time.

    Of two concurrent updates, one may be lost, which only slows down a push.

    Args:
        folder: folder for the files of all projects; created when needed.
        project: the project.
    """

    def __init__(self, folder: str, project: str) -> None:
        self._folder = folder
        name = hashlib.sha256(project.encode("utf-8", "surrogatepass")).hexdigest()
        self._path = os.path.join(folder, f"{name[:32]}.json")

    def recall(self) -> Origins:
        """Return layers and their origins; empty if none are known, or if they can't be read."""
        try:
            with open(self._path, "rb") as file:
                known = file.read(_MOST_BYTES + 1)
            return _origins.decode(known) if len(known) <= _MOST_BYTES else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def learn(self, listing: bytes, shared: AbstractSet[str]) -> None:
        """Store the records of a nested engine about layers that it got from the host engine.

        Args:
            listing: see `decode_listing`.
            shared: diffIDs of these layers. Records of other layers are ignored.

        Raises:
            OSError: a file can't be written.
        """
        before = self.recall()
        known = dict(before)
        for layer, origins in decode_listing(listing).items():
            if layer not in shared:
                continue
            known.pop(layer, None)
            if origins:
                known[layer] = origins[-_MOST_ORIGINS:]
        if known == before:
            return
        newest = dict(list(known.items())[-_MOST_LAYERS:])
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        fresh = f"{self._path}.{os.getpid()}.new"
        with open(fresh, "wb") as file:
            file.write(msgspec.json.encode(newest))
        os.rename(fresh, self._path)
        self._forget()

    def _forget(self) -> None:
        """Delete the files of all but the most recently updated projects."""
        with os.scandir(self._folder) as entries:
            files = [(entry.stat().st_mtime, entry.path) for entry in entries]
        for _, path in sorted(files)[:-_MOST_PROJECTS]:
            with suppress(FileNotFoundError):
                os.unlink(path)
