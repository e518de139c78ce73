"""Where the workspaces of failed builds are kept.

A folder holds what is kept of all builds, a folder below it each build's own. All together stay
below a limit: the oldest make room.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from buildrunner.spec.decode import decode_message
from buildrunner.spec.encode import encode_message
from buildrunner.spec.model_results import SourceProvenance

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARCHIVE = "workspace.tar"
_VOLUME = "volume-"
_PROVENANCE = "provenance.json"
_PIECE_BYTES = 1 << 20


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """Where workspaces are kept, and how much of them.

    Attributes:
        folder: of all of them.
        limit_bytes: what they may take together, one of them half of it; 0 keeps none.
    """

    folder: str
    limit_bytes: int

    def of(self, build_id: str) -> str:
        """The folder of one build."""
        return os.path.join(self.folder, build_id)

    def has(self, build_id: str) -> bool:
        """Whether the workspace of a build is kept."""
        return os.path.isfile(KeptFolder(self.of(build_id)).archive)

    def make_room(self, needed_bytes: int, spared: str) -> None:
        """Remove what was kept first until the rest leaves that much, one folder aside."""
        kept = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.path != spared and entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        kept.append((entry.stat().st_mtime, _size_of(entry.path), entry.path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.limit_bytes - needed_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= size


class KeptFolder:
    """What is kept of one build: archives of ``/workspace`` and of its named volumes.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def archive(self) -> str:
        """Path of the archive of ``/workspace``."""
        return os.path.join(self.path, _ARCHIVE)

    def volume_archive(self, name: str) -> str:
        """Path of the archive of a named volume."""
        return os.path.join(self.path, f"{_VOLUME}{name}.tar")

    def volumes(self) -> list[str]:
        """Names of the volumes that are kept."""
        names = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        return [
            name.removeprefix(_VOLUME).removesuffix(".tar")
            for name in names
            if name.startswith(_VOLUME)
        ]

    def write_provenance(self, provenance: SourceProvenance) -> None:
        """Note of what the workspace was made."""
        with open(os.path.join(self.path, _PROVENANCE), "wb") as file:
            file.write(msgspec.json.encode(encode_message(provenance)))

    def provenance(self) -> SourceProvenance | None:
        """Of what the workspace was made, where that is known."""
        try:
            with open(os.path.join(self.path, _PROVENANCE), "rb") as file:
                return decode_message(SourceProvenance, msgspec.json.decode(file.read())).value
        except FileNotFoundError:
            return None


def pieces(path: str) -> Iterator[bytes]:
    """A file, piece by piece."""
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _size_of(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)
