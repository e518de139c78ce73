"""The images in the image cache, and the files that show them to a nested engine.

A Docker engine with the storage driver overlay2 keeps each layer in a folder of its own, and its
data about images in small files beside them. The image cache is the data folder of such an engine,
which runs from our own image: its format does not depend on the engine of the machine.

A nested engine mounts the cache read-only and unpacks the small files from a tar stream before it
starts. It then has the images without a copy of any layer. Files that a nested engine writes
beside a layer's files go to a folder in memory. `docker rmi` in it removes links.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.sandboxes.nested.layer_origins import NOTES

DRIVER = "overlay2"

CACHE = "/run/images"
"""Path of the image cache in a nested engine, mounted read-only."""

LAYERS = "/run/layers"
"""Folder of a nested engine's own records about cached layers, in memory."""

IMAGES = "/var/lib/docker/image"
"""Folder of a nested engine's data about images, in memory."""

ORIGINS = "/run/buildrunner/origins"
"""Folder of a nested engine's `NOTES`, which it shares with the process that started it,
so that the process can add to them."""

MOUNTS = f"{LAYERS}/mounts"
"""List of the layers to mount, for `mount --fstab`."""

STORE_FILES = ("repositories.json", "imagedb/content", "layerdb/sha256")
"""The files in ``image/overlay2`` of the cache engine's data folder that `read_catalog` needs."""

LARGE_FILE = "tar-split.json.gz"
"""A file of each layer that `read_catalog` does not need: a nested engine gets a link to it."""

CACHED = "cached"
"""Repository of the names in the cache. An image's tag is its id on the host engine."""

_HOME = f"/var/lib/docker/{DRIVER}"


class CachedLayer(msgspec.Struct, frozen=True):
    """A layer in the cache.

    Attributes:
        folder: name of its folder below ``overlay2``.
        diff: diffID, the digest of its content.
        size: bytes of its content, in digits.
        parent: chainID of the layer below; empty for the lowest.
    """

    folder: str
    diff: str
    size: str
    parent: str = ""


class CachedImage(msgspec.Struct, frozen=True):
    """An image in the cache.

    Attributes:
        id: ``sha256:...`` of its config: its id in every nested engine. The host engine may use
            another one for the same image.
        config: its config, byte for byte.
        chains: chainIDs of its layers, lowest first.
    """

    id: str
    config: bytes
    chains: tuple[str, ...]


class Catalog(msgspec.Struct, kw_only=True):
    """The content of the image cache.

    Attributes:
        volume: identity of the cache's volume, which distinguishes volumes of one name.
        images: images by the id that the host engine uses.
        layers: layers by chainID.
        retired: images that no new nested engine gets, and since when (in seconds since boot).
    """

    volume: str = ""
    images: dict[str, CachedImage] = {}
    layers: dict[str, CachedLayer] = {}
    retired: dict[str, float] = {}


class SharedImages(msgspec.Struct, frozen=True, kw_only=True):
    """Images that a nested engine has from its start.

    Attributes:
        ids: id on the host engine -> id in the nested engine.
        names: name -> id in the nested engine.
        diff_ids: diffIDs of their layers.
        aging: name -> id on the host engine, of images that are removed if no build uses them
            in the next weeks.
        files: a tar stream, relative to the root of the nested engine's file system.
    """

    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    diff_ids: frozenset[str] = frozenset()
    aging: dict[str, str] = {}
    files: bytes = b""


class _Repositories(msgspec.Struct):
    repositories: dict[str, dict[str, str]] = msgspec.field(name="Repositories", default={})


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


def read_catalog(store: bytes, volume: str) -> Catalog:
    """Return the catalog of a cache engine.

    Args:
        store: a tar stream of `STORE_FILES`.
        volume: see `Catalog`.

    Raises:
        ValueError: the stream is invalid.
        KeyError: a file that an engine always writes is missing.
    """
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(store), mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()
    catalog = Catalog(volume=volume)
    known = msgspec.json.decode(files.get("repositories.json", b"{}"), type=_Repositories)
    for name, image in known.repositories.get(CACHED, {}).items():
        config = files[_path("imagedb/content", image)]
        diffs = msgspec.json.decode(config, type=_Config).rootfs.diff_ids or []
        chains = tuple(chain_ids(diffs))
        catalog.images[f"sha256:{name.rpartition(':')[2]}"] = CachedImage(image, config, chains)
        for chain in chains:
            if chain not in catalog.layers:
                catalog.layers[chain] = _read_layer(files, chain)
    return catalog


def _read_layer(files: Mapping[str, bytes], chain: str) -> CachedLayer:
    folder = _path("layerdb", chain)
    return CachedLayer(
        folder=files[f"{folder}/cache-id"].decode(),
        diff=files[f"{folder}/diff"].decode(),
        size=files[f"{folder}/size"].decode(),
        parent=files.get(f"{folder}/parent", b"").decode(),
    )


def shared_images(catalog: Catalog, names: Mapping[str, str]) -> SharedImages:
    """Return the images for a nested engine: the cached ones, under their names.

    Args:
        catalog: the catalog of the cache.
        names: name (in Docker's form, with a tag or a digest) -> id on the host engine.
    """
    writer = _StoreWriter(catalog)
    inside: dict[str, str] = {}
    ids: dict[str, str] = {}
    for name, host_id in names.items():
        image = catalog.images.get(host_id)
        if image is None or host_id in catalog.retired:
            continue
        if host_id not in ids:
            writer.add_image(image)
        ids[host_id] = image.id
        inside[name] = image.id
    return SharedImages(
        ids=ids,
        names=inside,
        diff_ids=frozenset(writer.diff_ids),
        files=writer.finish(inside),
    )


class _StoreWriter:
    """Writes the files of an engine that has some images of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.GNU_FORMAT)
        self._folders: dict[str, str] = {}  # chainID -> name of the layer's folder
        self.diff_ids: set[str] = set()

    def add_image(self, image: CachedImage) -> None:
        self._add_note(_path("imagedb/content", image.id), image.config)
        for number, chain in enumerate(image.chains):
            if chain not in self._folders:
                self._add_layer(chain, image.chains[:number])

    def _add_layer(self, chain: str, below: Iterable[str]) -> None:
        layer = self._catalog.layers[chain]
        folder = _path("layerdb", chain)
        self._add_note(f"{folder}/cache-id", layer.folder.encode())
        self._add_note(f"{folder}/diff", layer.diff.encode())
        self._add_note(f"{folder}/size", layer.size.encode())
        if layer.parent:
            self._add_note(f"{folder}/parent", layer.parent.encode())
        place = f"{folder}/{LARGE_FILE}"
        self._add_link(f"{IMAGES}/{DRIVER}/{place}", f"{CACHE}/image/{DRIVER}/{place}")
        link = _short_name(layer.folder)
        place = f"{LAYERS}/{layer.folder}"
        self._add_file(f"{place}/link", link.encode())
        self._add_file(f"{place}/committed", b"")  # it is only ever mounted read-only
        # The files are mounted here. With a link instead, the engine would not recognize a layer's
        # parent by its path, and would compare both in full to find the differences.
        self._add_folder(f"{place}/diff")
        lower = [f"l/{_short_name(self._folders[one])}" for one in below]
        if lower:
            self._add_file(f"{place}/lower", ":".join(reversed(lower)).encode())
            self._add_folder(f"{place}/work")
        self._add_link(f"{_HOME}/{layer.folder}", place)
        self._add_link(f"{_HOME}/l/{link}", f"../{layer.folder}/diff")
        self._folders[chain] = layer.folder
        self.diff_ids.add(layer.diff)

    def finish(self, names: Mapping[str, str]) -> bytes:
        repositories: dict[str, dict[str, str]] = {}
        for name, image in names.items():
            repositories.setdefault(ImageName.parse(name).repository, {})[name] = image
        self._add_note("repositories.json", msgspec.json.encode({"Repositories": repositories}))
        self._add_link(f"{IMAGES}/{DRIVER}/{NOTES}", ORIGINS)
        mounts = [
            f"{CACHE}/{DRIVER}/{folder}/diff {LAYERS}/{folder}/diff none bind 0 0\n"
            for folder in self._folders.values()
        ]
        self._add_file(MOUNTS, "".join(mounts).encode())
        self._tar.close()
        return self._buffer.getvalue()

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


def _path(kind: str, identity: str) -> str:
    return f"{kind}/{identity.replace(':', '/')}"


def _short_name(layer: str) -> str:
    """Return the short name of a layer, since mounts of many layers must fit into one page."""
    return hashlib.sha256(layer.encode()).hexdigest()[:26].upper()


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the chainID of each layer, which identifies the layer with all layers below it.

    Source: the OCI image specification, "Layer ChainID".
    """
    chains: list[str] = []
    for diff in diff_ids:
        text = f"{chains[-1]} {diff}" if chains else ""
        chains.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else diff)
    return chains
