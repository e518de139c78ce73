"""What nested engines learned of registries while they pushed, for those of later builds.

A nested engine is gone with its build, and with it which registry has which layer. Without that,
the next one packs and sends the layers of the same base image again.

What is told to it comes from sandboxes, whose steps are root there. Hence: it is about layers of
the host's images only; a project hears of its own builds only; what is not exactly as it should be
is left out; and it is of little weight. A digest that does not belong to its layer makes an image
that no engine pulls (an engine compares each layer with the image's config), and a layer that the
registry does not have is sent.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.layer_origins import Digest, Origin, Origins, decode_listing

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_MOST_PROJECTS = 100
_MOST_LAYERS = 500
_MOST_ORIGINS = 8
_MOST_BYTES = 4 << 20

_origins = msgspec.json.Decoder(dict[Digest, tuple[Origin, ...]])


class PushMemory:
    """What one project's builds know: a file, which may be removed at any time.

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
