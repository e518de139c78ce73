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
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DRIVER = "overlay2"

LAYERS = "/run/layers"
"""Where a nested engine has its own notes about shared layers; to be held in memory."""

SHARED = "/run/shared"
"""Where it has the files of each shared layer, read-only, by the name of the layer's folder."""

IMAGES = "/var/lib/docker/image"
"""Where it keeps what it knows of images; to be held in memory."""

_LAYER_FILES = ("cache-id", "diff", "parent", "size", "tar-split.json.gz")


class SharedImages(msgspec.Struct, frozen=True, kw_only=True):
    """Images to be shared.

    Attributes:
        holders: ``sha256:...`` of images that together have all layers: as long as the engine has
            these, no layer goes.
        layers: name of each layer's folder -> path of its files.
        notes: a tar stream, relative to the root of the nested engine's file system.
    """

    holders: tuple[str, ...] = ()
    layers: dict[str, str] = {}
    notes: bytes = b""


class _Repositories(msgspec.Struct):
    repositories: dict[str, dict[str, str]] = msgspec.field(name="Repositories", default={})


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


class _Source(msgspec.Struct):
    digest: str = msgspec.field(name="Digest", default="")


def shared_images(data_root: str, *, wanted: Callable[[str], bool]) -> SharedImages:
    """What the engine with this data folder has to share: its images with names.

    An image that is removed or added meanwhile is left out, if it is not there whole.

    Args:
        data_root: the engine's data folder.
        wanted: says of a repository whether its images are to be shared.

    Raises:
        OSError: the files are not there, or not for us to read.
    """
    return _Reader(data_root).read(wanted)


class _Reader:
    def __init__(self, data_root: str) -> None:
        self._root = data_root
        self._store = os.path.join(data_root, "image", DRIVER)
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.USTAR_FORMAT)
        self._layers: dict[str, str] = {}
        self._chains: set[str] = set()
        self._top: dict[str, str] = {}  # highest layer -> an image that ends with it
        self._inner: set[str] = set()  # layers that others lie on

    def read(self, wanted: Callable[[str], bool]) -> SharedImages:
        raw = self._bytes(os.path.join(self._store, "repositories.json"))
        known = msgspec.json.decode(raw, type=_Repositories).repositories
        named = {repo: names for repo, names in known.items() if wanted(repo)}
        ids = dict.fromkeys(image for names in named.values() for image in names.values())
        shared = [image for image in ids if self._add_image(image)]
        left = {
            repo: {name: image for name, image in names.items() if image in shared}
            for repo, names in named.items()
        }
        text = msgspec.json.encode({"Repositories": left})
        self._add_file(f"{IMAGES}/{DRIVER}/repositories.json", text)
        self._tar.close()
        return SharedImages(
            holders=tuple(image for top, image in self._top.items() if top not in self._inner),
            layers=self._layers,
            notes=self._buffer.getvalue(),
        )

    def _add_image(self, image: str) -> bool:
        try:
            config = self._bytes(self._path("imagedb/content", image))
            diffs = msgspec.json.decode(config, type=_Config).rootfs.diff_ids or []
            chains = chain_ids(diffs)
            for chain, diff in zip(chains, diffs, strict=True):
                if chain not in self._chains:
                    self._add_layer(chain)
                    self._add_origin(diff)
                    self._chains.add(chain)
        except FileNotFoundError:
            return False
        self._inner.update(chains[:-1])
        self._top.update(dict.fromkeys(chains[-1:], image))
        self._add_file(self._target("imagedb/content", image), config)
        return True

    def _add_layer(self, chain: str) -> None:
        folder = self._path("layerdb", chain)
        files = {}
        for name in _LAYER_FILES:
            try:
                files[name] = self._bytes(os.path.join(folder, name))
            except FileNotFoundError:
                if name != "parent":  # the lowest layer has none
                    raise
        cache = files["cache-id"].decode()
        place = os.path.join(self._root, DRIVER, cache)
        link = self._bytes(os.path.join(place, "link"))
        os.stat(os.path.join(place, "diff"))
        for name, data in files.items():
            self._add_file(f"{self._target('layerdb', chain)}/{name}", data)
        self._add_file(f"{LAYERS}/{cache}/link", link)
        self._add_file(f"{LAYERS}/{cache}/committed", b"")  # it is only ever mounted read-only
        self._add_link(f"{LAYERS}/{cache}/diff", f"{SHARED}/{cache}")
        try:
            lower = self._bytes(os.path.join(place, "lower"))
        except FileNotFoundError:
            pass
        else:
            self._add_file(f"{LAYERS}/{cache}/lower", lower)
            self._add_folder(f"{LAYERS}/{cache}/work")
        home = f"{os.path.dirname(IMAGES)}/{DRIVER}"
        self._add_link(f"{home}/{cache}", f"{LAYERS}/{cache}")
        self._add_link(f"{home}/l/{link.decode()}", f"{SHARED}/{cache}")
        self._layers[cache] = os.path.join(place, "diff")

    def _add_origin(self, diff: str) -> None:
        """From which registry it came: what is there already need not be pushed again."""
        try:
            known = self._bytes(self._path("distribution/v2metadata-by-diffid", diff))
        except FileNotFoundError:
            return
        self._add_file(self._target("distribution/v2metadata-by-diffid", diff), known)
        for source in msgspec.json.decode(known, type=list[_Source]):
            target = self._target("distribution/diffid-by-digest", source.digest)
            self._add_file(target, diff.encode())

    def _path(self, kind: str, identity: str) -> str:
        return os.path.join(self._store, kind, *identity.split(":"))

    def _target(self, kind: str, identity: str) -> str:
        return f"{IMAGES}/{DRIVER}/{kind}/{identity.replace(':', '/')}"

    def _bytes(self, path: str) -> bytes:
        with open(path, "rb", buffering=0) as file:
            return file.readall()

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


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The id of each layer together with all below it.

    Source: the OCI image specification, "Layer ChainID".
    """
    chains: list[str] = []
    for diff in diff_ids:
        text = f"{chains[-1]} {diff}" if chains else ""
        chains.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else diff)
    return chains
