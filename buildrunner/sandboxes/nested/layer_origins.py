"""The registries that have a layer, and its digest there: an engine's notes of pulls and pushes.

A layer travels compressed, under the digest of its compressed form. An engine that does not know
that digest has to pack the layer anew, and to send it, before the registry can say that it has it.
It asks the registry before it leaves a layer out: a note that is out of date costs one question.

Who reads a nested engine's notes reads what steps may have written, as root: whatever is not
exactly as an engine writes it is left out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Annotated

import msgspec

NOTES = "distribution/v2metadata-by-diffid"
"""Where an engine has them, below ``image/overlay2`` of its data folder; a file per layer."""

_MOST_NOTED = 50  # an engine keeps no more of a layer
_MOST_BYTES = 4 << 20

# Python's $ would let a newline pass.
Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
_Repository = Annotated[
    str, msgspec.Meta(max_length=512, pattern=r"\A[A-Za-z0-9\[][A-Za-z0-9._:/\[\]-]*\Z")
]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A place that has a layer.

    An engine also notes a code that it makes of digest, repository and login (``HMAC``). It only
    uses it to order places, and whoever has it can try out passwords: it goes no further.

    Attributes:
        digest: of the layer's compressed form.
        repository: who has it, with the registry.
    """

    digest: Digest = msgspec.field(name="Digest")
    repository: _Repository = msgspec.field(name="SourceRepository")


Origins = dict[str, tuple[Origin, ...]]
"""Layers by their diffID (the digest of what is in them); of each, the newest origin last."""

_digest = msgspec.json.Decoder(Digest)
_notes = msgspec.json.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_MOST_NOTED)])
_origin = msgspec.json.Decoder(Origin)


def decode_notes(file: bytes) -> tuple[Origin, ...]:
    """The origins in an engine's note, each once; none when it can't be read."""
    found: dict[Origin, None] = {}
    try:
        for one in _notes.decode(file):
            origin = _decode_origin(one)
            if origin is not None:
                found.pop(origin, None)  # the newest place counts
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
    """Origins as an engine reads them."""
    return msgspec.json.encode(origins)


def tell_origins(folder: str, origins: Origins) -> None:
    """Add origins to the notes in a folder, as the newest ones.

    An engine reads a layer's note whenever it pushes the layer.

    Args:
        folder: what an engine has as `NOTES`, or will have.
        origins: what is to be told.

    Raises:
        OSError: it can't be written.
    """
    for layer, places in origins.items():
        path = os.path.join(folder, layer.replace(":", "/"))
        known: tuple[Origin, ...] = ()
        with suppress(FileNotFoundError), open(path, "rb") as file:
            known = decode_notes(file.read())
        told = (*(one for one in known if one not in places), *places)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(f"{path}.new", "wb") as file:
            file.write(encode_notes(told))
        os.rename(f"{path}.new", path)


def decode_listing(listing: bytes) -> Origins:
    """Decode the output of ``grep -r '' FOLDER`` for a folder of notes.

    Args:
        listing: lines ``.../HEX:NOTE``, in whatever order.
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
    """The notes of one project's builds: a file, which may be removed at any time.

    Of two that learn at the same moment, one may be forgotten: that costs a push its speed.

    Args:
        folder: for the files of all projects; made when there is one.
        project: whose builds.
    """

    def __init__(self, folder: str, project: str) -> None:
        self._folder = folder
        name = hashlib.sha256(project.encode("utf-8", "surrogatepass")).hexdigest()
        self._path = os.path.join(folder, f"{name[:32]}.json")

    def recall(self) -> Origins:
        """Layers and where they are; empty when nothing is known, or can be read."""
        try:
            with open(self._path, "rb") as file:
                known = file.read(_MOST_BYTES + 1)
            return _origins.decode(known) if len(known) <= _MOST_BYTES else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def learn(self, listing: bytes, shared: AbstractSet[str]) -> None:
        """Take in what a nested engine noted.

        Args:
            listing: see `decode_listing`.
            shared: diffIDs of the layers that it had from the host engine.

        Raises:
            OSError: it can't be written.
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
        """Keep the files of the projects that learned last."""
        with os.scandir(self._folder) as entries:
            files = [(entry.stat().st_mtime, entry.path) for entry in entries]
        for _, path in sorted(files)[:-_MOST_PROJECTS]:
            with suppress(FileNotFoundError):
                os.unlink(path)
