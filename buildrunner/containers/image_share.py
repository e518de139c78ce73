"""The images that a Docker engine has, told to another engine that sees the same files.

An engine with the storage driver overlay2 keeps each layer in a folder of its own and what it knows
of images in small files beside them. A nested engine gets the layers' folders mounted read-only and
the small files as a tar stream, unpacked before it starts: it then has all images of the engine
that it runs on, and no byte of them was copied.

Nothing of that can change a layer. What an engine writes to a layer's folder besides its files (a
note that it has children) goes to a folder of the nested engine's own, in memory; removing an image
there removes links.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from typing import TYPE_CHECKING, Protocol

import msgspec

from buildrunner.containers.layer_origins import NOTES, Origins, decode_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DRIVER = "overlay2"

LAYERS = "/run/layers"
"""Where a nested engine has its own notes about shared layers; to be held in memory."""

IMAGES = "/var/lib/docker/image"
"""Where it keeps what it knows of images; to be held in memory."""

ORIGINS = "/run/buildrunner/origins"
"""Where it has its `NOTES`: a folder that it shares with whoever started it, to be told more."""

_HOME = f"/var/lib/docker/{DRIVER}"
_LAYER_FILES = ("cache-id", "diff", "parent", "size", "tar-split.json.gz")


class SharedImages(msgspec.Struct, frozen=True, kw_only=True):
    """Images to be shared.

    Attributes:
        holders: ``sha256:...`` of images that together have all layers: as long as the engine has
            these, no layer goes.
        layers: name of each layer's folder -> path of its files.
        diff_ids: what is in those layers.
        origins: registries that have these layers, as the engine knows it.
        notes: a tar stream, relative to the root of the nested engine's file system.
    """

    holders: tuple[str, ...] = ()
    layers: dict[str, str] = {}
    diff_ids: frozenset[str] = frozenset()
    origins: Origins = {}
    notes: bytes = b""


class _Repositories(msgspec.Struct):
    repositories: dict[str, dict[str, str]] = msgspec.field(name="Repositories", default={})


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


class StoreFiles(Protocol):
    """What an engine keeps about images: the files below ``image/overlay2`` of its data folder."""

    def read(self, path: str) -> bytes:
        """A file's content, by its path there. Raises `OSError`, `FileNotFoundError`."""
        ...


class FolderFiles:
    """`StoreFiles` of an engine whose files we may read.

    Args:
        data_root: its data folder.
    """

    def __init__(self, data_root: str) -> None:
        self._folder = os.path.join(data_root, "image", DRIVER)

    def read(self, path: str) -> bytes:
        """See `StoreFiles.read`."""
        with open(os.path.join(self._folder, path), "rb", buffering=0) as file:
            return file.readall()


def shared_images(
    files: StoreFiles, data_root: str, *, wanted: Callable[[str], bool]
) -> SharedImages:
    """What an engine has to share: its images with names.

    An image that is removed or added meanwhile is left out, if it is not there whole.

    Args:
        files: what the engine keeps about them.
        data_root: the engine's data folder.
        wanted: says of a repository whether its images are to be shared.

    Raises:
        OSError: the files can't be read.
    """
    return _Reader(files, data_root).read(wanted)


class _Reader:
    def __init__(self, files: StoreFiles, data_root: str) -> None:
        self._files = files
        self._root = data_root
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.USTAR_FORMAT)
        self._layers: dict[str, str] = {}  # chain id -> name of the layer's folder
        self._diffs: set[str] = set()
        self._origins: Origins = {}
        self._top: dict[str, str] = {}  # highest layer -> an image that ends with it
        self._inner: set[str] = set()  # layers that others lie on

    def read(self, wanted: Callable[[str], bool]) -> SharedImages:
        known = msgspec.json.decode(self._files.read("repositories.json"), type=_Repositories)
        named = {repo: names for repo, names in known.repositories.items() if wanted(repo)}
        ids = dict.fromkeys(image for names in named.values() for image in names.values())
        shared = {image for image in ids if self._add_image(image)}
        left = {
            repo: {name: image for name, image in names.items() if image in shared}
            for repo, names in named.items()
        }
        self._add_note("repositories.json", msgspec.json.encode({"Repositories": left}))
        self._add_link(f"{IMAGES}/{DRIVER}/{NOTES}", ORIGINS)
        self._tar.close()
        folders = os.path.join(self._root, DRIVER)
        return SharedImages(
            holders=tuple(image for top, image in self._top.items() if top not in self._inner),
            layers={name: os.path.join(folders, name, "diff") for name in self._layers.values()},
            diff_ids=frozenset(self._diffs),
            origins=self._origins,
            notes=self._buffer.getvalue(),
        )

    def _add_image(self, image: str) -> bool:
        path = _path("imagedb/content", image)
        try:
            config = self._files.read(path)
            diffs = msgspec.json.decode(config, type=_Config).rootfs.diff_ids or []
            chains = chain_ids(diffs)
            below: list[str] = []
            for chain, diff in zip(chains, diffs, strict=True):
                if chain not in self._layers:
                    self._layers[chain] = self._add_layer(chain, below)
                    self._add_origins(diff)
                below.append(self._layers[chain])
        except FileNotFoundError:
            return False
        self._inner.update(chains[:-1])
        self._top.update(dict.fromkeys(chains[-1:], image))
        self._add_note(path, config)
        return True

    def _add_layer(self, chain: str, below: list[str]) -> str:
        """Tell of a layer that lies on others; the name of its folder."""
        folder = _path("layerdb", chain)
        notes = {}
        for name in _LAYER_FILES:
            try:
                notes[name] = self._files.read(f"{folder}/{name}")
            except FileNotFoundError:
                if name != "parent":  # the lowest layer has none
                    raise
        for name, data in notes.items():
            self._add_note(f"{folder}/{name}", data)
        layer = notes["cache-id"].decode()
        link = _link(layer)
        place = f"{LAYERS}/{layer}"
        self._add_file(f"{place}/link", link.encode())
        self._add_file(f"{place}/committed", b"")  # it is only ever mounted read-only
        if below:
            links = ":".join(f"l/{_link(one)}" for one in reversed(below))
            self._add_file(f"{place}/lower", links.encode())
            self._add_folder(f"{place}/work")
        self._add_link(f"{_HOME}/{layer}", place)
        # By such a path the engine finds that a layer's parent is its parent. Else it compares both
        # in full to learn what is new, and takes all of a lowest layer for new.
        self._add_link(f"{_HOME}/l/{link}", f"../{layer}/diff")
        return layer

    def _add_origins(self, diff: str) -> None:
        """Which registries have it: what is there already need not be packed for a push."""
        if diff in self._diffs:
            return
        self._diffs.add(diff)
        try:
            known = decode_notes(self._files.read(_path(NOTES, diff)))
        except FileNotFoundError:
            return
        for origin in known:  # a pull believes these: only what the engine itself noted
            self._add_note(_path("distribution/diffid-by-digest", origin.digest), diff.encode())
        if known:
            self._origins[diff] = known

    def _add_note(self, path: str, data: bytes) -> None:
        self._add_file(f"{IMAGES}/{DRIVER}/{path}", data)

    def _add_file(self, path: str, data: bytes) -> None:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size = len(data)
        entry.mode = 0o600
        self._tar.addfile(entry, io.BytesIO(data))

    def _add_link(self, path: str, target: str) -> None:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.type = tarfile.SYMTYPE
        entry.linkname = target
        self._tar.addfile(entry)

    def _add_folder(self, path: str) -> None:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.type = tarfile.DIRTYPE
        entry.mode = 0o700
        self._tar.addfile(entry)


def files_of(layer: str) -> str:
    """Where a nested engine has the files of a shared layer; to be mounted read-only.

    Args:
        layer: name of the layer's folder.
    """
    return f"{LAYERS}/{layer}/diff"


def _path(kind: str, identity: str) -> str:
    return f"{kind}/{identity.replace(':', '/')}"


def _link(layer: str) -> str:
    """The short name of a layer: mounts of many layers must fit into one page."""
    return hashlib.sha256(layer.encode()).hexdigest()[:26].upper()


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The id of each layer together with all below it.

    Source: the OCI image specification, "Layer ChainID".
    """
    chains: list[str] = []
    for diff in diff_ids:
        text = f"{chains[-1]} {diff}" if chains else ""
        chains.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else diff)
    return chains
