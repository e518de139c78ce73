"""The image cache: host images in a volume that every nested engine mounts.

Engines store images in many ways (overlay2, containerd's image store, Podman's storage), and their
files are private. So each image is exported once from the host engine, by its API, into a store
with a format of our choice: the data folder of a Docker engine that runs from our own image. This
*cache engine* runs only while images are added or removed. Nested engines read its files.

On the host engine there are:

* the volume ``buildrunner-images-ID``, one for each user of this machine (two, if some of the
  user's sandboxes have a user namespace and some have none);
* the container of the same name, while the cache changes.

A folder of this machine has a catalog for each volume (a copy of the volume's own data, which
is read again if the catalog is missing), and a file for each image that a build has used, with the
time of that use.

An image is added if a build has used it and the host engine still has it. It is removed if the
host engine has no name for it any more, or if no build used it for `UNUSED_S`; but not while a
nested engine may read it. A label of each nested engine's container has the time at which the
engine began to read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from threading import Event

import msgspec

from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.errors import Refusal
from buildrunner.containers.docker.images import load_image, name_image
from buildrunner.containers.process_owner import file_lock
from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.sandboxes.nested.container import (
    DATA,
    LABEL_CACHE,
    LABEL_CACHE_ID,
    MODES,
    SOCKET_NAME,
    CacheSpec,
)
from buildrunner.sandboxes.nested.daemon import HostImage, NestedDaemons
from buildrunner.sandboxes.nested.image_catalog import (
    CACHED,
    DRIVER,
    LARGE_FILE,
    STORE_FILES,
    Catalog,
    SharedImages,
    read_catalog,
    shared_images,
)

UNUSED_S = 30 * 86400.0
"""The time for which an unused image stays."""

_START_S = 60.0
_PAUSE_S = 0.01

# Removes unfinished folders of layers, left by a cache engine that was killed.
_DROP_UNFINISHED = f"""
cd {DATA}
grep -hs . image/{DRIVER}/layerdb/sha256/*/cache-id | sort > /tmp/finished
cd {DRIVER}
ls | grep -vx l | sort | comm -23 - /tmp/finished | xargs -r rm -rf --
"""


class ImageCache:
    """The image cache; see the module. Thread-safe; any number of processes may use it.

    Args:
        daemons: containers of the host engine, and its images. Not closed.
        host: address of the host engine.
        folder: folder for the catalog, locks and records; only this user may use it.
        image: image of the cache engine.
    """

    def __init__(self, daemons: NestedDaemons, host: Endpoint, folder: str, image: str) -> None:
        self._daemons = daemons
        self._host = host
        self._folder = folder
        self._image = image
        self.mode = MODES[0]
        """The mode of the nested engines that read the cache: set before one is started."""

    @property
    def volume(self) -> str:
        """Return the name of the volume, and of the cache engine's container."""
        kind = "" if self.mode == "user-namespace" else " trusted"
        return (
            f"buildrunner-images-{hashlib.sha256((self._folder + kind).encode()).hexdigest()[:12]}"
        )

    # -- for nested engines ------------------------------------------------------------------------

    def offered(self, host_images: Iterable[HostImage]) -> SharedImages:
        """Return the cached images of the host, under their present names.

        Call it within `reading`. An empty cache offers files without images.

        Raises:
            EngineError: the host engine refused.
        """
        catalog = self._catalog() or self._found_again()
        names = {name: image.id for image in host_images for name in image.names}
        offered = shared_images(catalog, names)
        half = time.time() - UNUSED_S / 2
        old = {one for one, at in self.last_uses().items() if at < half}
        aging = {name: names[name] for name in offered.names if names[name] in old}
        return msgspec.structs.replace(offered, aging=aging)

    @contextlib.contextmanager
    def reading(self) -> Iterator[float]:
        """Keep all offered images in the cache while the container of a nested engine is created.

        Yields:
            The present time in seconds since boot, for the container's label `LABEL_READS`.
        """
        with self._lock("start.lock", shared=True):
            yield _now()

    def note_use(self, host_ids: Iterable[str]) -> None:
        """Record that a build uses images of the host engine, so that they are cached, and stay."""
        with contextlib.suppress(OSError):  # a failure costs only speed
            for host_id in host_ids:
                path = self._path("used", host_id.removeprefix("sha256:"))
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                with open(path, "ab"):
                    os.utime(path)

    # -- changes of the cache ----------------------------------------------------------------------

    def update(self) -> None:
        """Add the images that builds used, and remove unused ones.

        Waits while another process does so. Takes some milliseconds if there is nothing to do,
        and otherwise as long as the copies.

        Raises:
            EngineError: an image can't be added or removed, or the host engine refused.
            OSError: the folder can't be written.
        """
        with self._lock("update.lock"):
            catalog = self._catalog()
            if catalog is None and not self._daemons.cache_identity(self.volume):
                if not self.last_uses():
                    return
                catalog = Catalog()
            if catalog is None:
                catalog = self._read_again()
            self._update(catalog)

    def _update(self, catalog: Catalog) -> None:
        on_host = {image.id for image in self._daemons.host_images()}
        used = self.last_uses()
        oldest = time.time() - UNUSED_S
        wanted = {one for one, at in used.items() if at > oldest and one in on_host}
        for host_id in used.keys() - wanted:
            self._forget_use(host_id)
        unwanted = catalog.images.keys() - wanted
        retired = {one: min(catalog.retired.get(one, _now()), _now()) for one in unwanted}
        if retired != catalog.retired:
            catalog.retired = retired
            self._write(catalog)
        gone = self._unread(retired)
        missing = wanted - catalog.images.keys()
        if not gone and not missing:
            return
        problems = []
        with self._engine() as api:
            for host_id in sorted(gone):
                _remove(api, host_id)
            for host_id in sorted(missing):
                try:
                    self._add(api, host_id)
                except EngineError as error:
                    self._forget_use(host_id)  # the next build that uses the image retries
                    if host_id in {image.id for image in self._daemons.host_images()}:
                        problems.append(str(error))  # otherwise the image was removed meanwhile
            changed = self._read()
        changed.retired = {one: at for one, at in retired.items() if one in changed.images}
        self._write(changed)
        if problems:
            raise EngineError("; ".join(problems))

    def _unread(self, retired: Mapping[str, float]) -> set[str]:
        """Return the retired images that no nested engine can use, since all engines are newer."""
        if not retired:
            return set()
        with self._lock("start.lock"):
            since = self._daemons.readers_since(self.volume)
        return {one for one, at in retired.items() if all(start > at for start in since)}

    def _add(self, api: DockerApi, host_id: str) -> None:
        image = load_image(host_id, self._host, api, Event())
        name_image(api, image, CACHED, host_id.removeprefix("sha256:"))

    # -- the cache engine --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _engine(self) -> Iterator[DockerApi]:
        """Run the cache engine."""
        self._stop()  # a dead process may have left one
        folder = self._path("engine")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        socket = os.path.join(folder, SOCKET_NAME)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)
        spec = CacheSpec(
            name=self.volume,
            image=self._image,
            folder=folder,
            volume=self.volume,
            labels={LABEL_CACHE: self._folder, LABEL_CACHE_ID: secrets.token_hex(8)},
            group=os.getegid(),
            mode=self.mode,
        )
        endpoint = Endpoint(address=f"unix://{socket}", origin="the image cache")
        api = DockerApi(endpoint)
        try:
            self._daemons.start(self._daemons.create_cache_engine(spec))
            self._await(api)
            self._daemons.execute(self.volume, ("sh", "-c", _DROP_UNFINISHED))
            with contextlib.suppress(Refusal), api.client() as client:
                client.prune_images({"dangling": True})
            yield api
        finally:
            api.close()
            self._stop()

    def _stop(self) -> None:
        self._daemons.remove(self.volume)

    def _await(self, api: DockerApi) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                api.ping()
            except EngineUnavailable:
                if time.monotonic() > deadline or not self._daemons.is_running(self.volume):
                    last = self._daemons.last_error(self.volume)
                    raise EngineError(
                        f"the engine of the image cache does not start{': ' if last else ''}{last}"
                    ) from None
                time.sleep(_PAUSE_S)
            else:
                return

    def _read(self) -> Catalog:
        """Return the catalog of the cache engine.

        Raises:
            EngineError: the files are damaged, as after a loss of power.
        """
        argv = ("tar", "-c", "-C", f"{DATA}/image/{DRIVER}", f"--exclude={LARGE_FILE}")
        store = self._daemons.execute(self.volume, (*argv, *STORE_FILES))
        try:
            return read_catalog(store, self._daemons.cache_identity(self.volume))
        except (ValueError, RecursionError, KeyError) as error:
            raise EngineError(f"the image cache can't be read: {error}") from error

    # -- the catalog on this machine ---------------------------------------------------------------

    def _catalog(self) -> Catalog | None:
        """Return the catalog; None if it is missing, or belongs to an earlier volume."""
        try:
            with open(self._catalog_path, "rb") as file:
                catalog = msgspec.msgpack.decode(file.read(), type=Catalog)
        except (OSError, msgspec.DecodeError):
            return None
        return catalog if catalog.volume == self._daemons.cache_identity(self.volume) else None

    def _found_again(self) -> Catalog:
        """Read the catalog of an existing volume again, as after a restart of the machine."""
        if not self._daemons.cache_identity(self.volume):
            return Catalog()
        try:
            with self._lock("update.lock", wait=False):
                return self._read_again()
        except BlockingIOError:  # the first images are being added
            return Catalog()

    def _read_again(self) -> Catalog:
        try:
            with self._engine():
                catalog = self._read()
        except EngineError:
            self._daemons.remove_volume(self.volume)
            return Catalog()
        # otherwise a restart of the machine would make all images unused
        self.note_use(catalog.images)
        self._write(catalog)
        return catalog

    def _write(self, catalog: Catalog) -> None:
        path = self._catalog_path
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.msgpack.encode(catalog))
        os.rename(f"{path}.new", path)

    @property
    def _catalog_path(self) -> str:
        return self._path(f"{self.volume}.catalog")

    def last_uses(self) -> dict[str, float]:
        """Return the time of the last use of each image of the host engine, by id."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._path("used")) as entries:
            for entry in entries:
                found[f"sha256:{entry.name}"] = entry.stat().st_mtime
        return found

    def _forget_use(self, host_id: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path("used", host_id.removeprefix("sha256:")))

    def _path(self, *names: str) -> str:
        return os.path.join(self._folder, *names)

    def _lock(self, name: str, **options: bool) -> contextlib.AbstractContextManager[None]:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        return file_lock(self._path(name), **options)


def _now() -> float:
    """Return the seconds since boot, a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _remove(api: DockerApi, host_id: str) -> None:
    name = f"{CACHED}:{host_id.removeprefix('sha256:')}"
    try:
        with api.client() as client:
            client.remove_image(name)
    except Refusal as refusal:
        if refusal.status != 404:
            raise refusal.as_error("an image in the cache can't be removed") from refusal
