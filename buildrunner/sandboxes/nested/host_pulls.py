"""Images that the machine's engine pulls for builds in nested sandboxes.

They stay on the machine for later builds, so the disk limit of a sandbox does not count them.
Instead, each build has a budget for pulls. A server deletes pulled images that no build has used
for `UNUSED_S`, or for an hour if the disk is nearly full. Images of other origins are never
deleted.

The machine's images are shared with each nested engine. Images that a step's ``docker pull`` or
``FROM`` brings into a sandbox are deleted with it. So the machine's engine pulls them again for
the next build (`WantedImages`), from their registry, with the user's logins. Nothing is copied
from a sandbox, whose steps could have made any image of that name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import ContainerEngine, ImageInfo, TransferProgress
from buildrunner.errors import EngineError, ImagePullError
from buildrunner.sandboxes.nested.loopback import is_of_this_machine

UNUSED_S = 30 * 86400.0
"""The time for which an unused pulled image stays."""

FULL = 0.85
"""The used part of the engine's file system above which images unused for an hour are deleted."""

_LEAST_AGE_S = 3600.0  # a build may be about to copy the image

_logger = logging.getLogger(__name__)


class HostPulls:
    """Pulls images that the machine's engine lacks, up to a total size. Thread-safe.

    Args:
        host: the machine's engine.
        folder: folder for records of pulled images; see `delete_unused`.
        limit_bytes: the most bytes of all images that this object pulls; None sets no limit.
    """

    def __init__(self, host: ContainerEngine, folder: str, limit_bytes: int | None) -> None:
        self._host = host
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._taken = 0

    def pull(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None] = lambda _: None,
        cancel: threading.Event,
    ) -> ImageInfo:
        """Pull an image.

        The pull ends when its layers exceed the remaining budget. The size of a layer is the one
        that the engine reports before it has the layer, or else the number of received bytes. An
        image that is too large once it is unpacked is removed again. An image whose name existed
        before is never deleted as unused.

        Args:
            name: name of the image.
            on_progress: takes progress messages.
            cancel: ends the pull.

        Raises:
            ImagePullError: the pull failed, the image is too large, or ``cancel`` was set.
        """
        before = self._host.find_image(name)
        sizes: dict[str, int] = {}
        stop = _EitherEvent(cancel)

        def watch(progress: TransferProgress) -> None:
            # A layer that a registry sends without its length has an unknown size.
            size = max(progress.total_bytes, progress.current_bytes)
            grown = max(size - sizes.get(progress.layer, 0), 0)
            sizes[progress.layer] = sizes.get(progress.layer, 0) + grown
            if not self._take(grown):
                stop.set()
            on_progress(progress)

        try:
            image = self._host.pull_image(name, on_progress=watch, cancel=stop)
        except EngineError as error:
            self._take(-sum(sizes.values()))
            if stop.is_over:
                raise self._too_large(name) from error
            raise
        if not self._take(image.size_bytes - sum(sizes.values())):
            self.restore(name, before, image)
            self._take(-image.size_bytes)
            raise self._too_large(name)
        if before is None:
            self._note(name, image)
        return image

    def restore(self, name: str, before: ImageInfo | None, pulled: ImageInfo | None = None) -> None:
        """Undo a pull: restore the previous image of the name, or remove the name.

        A name that another program has meanwhile given to a third image stays. The engine cannot
        remove a name conditionally, so a program that moves it in the same instant may still lose
        it.

        Args:
            name: the pulled name.
            before: the image that the machine's engine had under the name; None for none.
            pulled: the image that the pull brought; None if the pull failed half-way.
        """
        now = self._host.find_image(name)
        if before is None:
            with suppress(OSError):
                os.unlink(self._note_path(name))
        if now is None or (before is not None and before.id == now.id):
            return
        if pulled is not None and pulled.id != now.id:
            return
        self._host.untag_image(name)  # this removes the image with its last name
        if before is not None:
            self._host.tag_image(before.id, name)

    def _take(self, size: int) -> bool:
        """Count bytes. Returns False if they exceed the budget."""
        with self._lock:
            self._taken += size
            return self._limit is None or self._taken <= self._limit

    def _note(self, name: str, image: ImageInfo) -> None:
        path = self._note_path(name)
        with suppress(OSError):  # the image then stays
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with open(path, "wb") as file:
                file.write(msgspec.json.encode(_Note(name, image.id)))

    def _note_path(self, name: str) -> str:
        return os.path.join(self._folder, hashlib.sha256(name.encode()).hexdigest()[:32])

    def _too_large(self, name: str) -> ImagePullError:
        return ImagePullError(
            f"the image {name}, with the others that this machine pulled for the build, is larger "
            f"than {(self._limit or 0) / (1 << 30):.1f} GiB, which a build may write to the disk",
            hint="the server's administrator sets the limit: serve --max-build-disk-gib",
        )


class _EitherEvent(threading.Event):
    """An event that also counts as set if another event is set."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()

    @property
    def is_over(self) -> bool:
        return super().is_set()


class _Note(msgspec.Struct, frozen=True):
    """A record of a pulled image.

    Attributes:
        name: the pulled name.
        image: its id on the machine's engine.
    """

    name: str
    image: str


def delete_unused(
    host: ContainerEngine,
    folder: str,
    used: Mapping[str, float],
    *,
    now: float,
    is_full: Callable[[], bool],
) -> None:
    """Delete unused images that `HostPulls` pulled, the longest unused one first.

    An image is deleted after `UNUSED_S` without use, or after an hour if the disk is nearly full.

    Args:
        host: the machine's engine.
        folder: the folder of `HostPulls`.
        used: time of the last use of each image, by id.
        now: the time.
        is_full: returns whether the engine's disk is nearly full.

    Raises:
        EngineError: the engine refused.
        OSError: the folder can't be read.
    """
    notes = [
        (max(pulled_at, used.get(note.image, 0.0)), path, note)
        for path, pulled_at, note in _notes(folder)
    ]
    for last_use, path, note in sorted(notes, key=lambda one: one[0]):
        unused_s = now - last_use
        if unused_s < _LEAST_AGE_S or (unused_s < UNUSED_S and not is_full()):
            return
        found = host.find_image(note.name)
        if found is not None and found.id == note.image:
            host.untag_image(note.name)
            if host.find_image(note.name) is not None:
                continue  # a container needs it
            _logger.info("deleted the image %s, unused for %.0f h", note.name, unused_s / 3600)
        os.unlink(path)


def _notes(folder: str) -> Iterator[tuple[str, float, _Note]]:
    """Yield path, time and content of each record."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError, msgspec.DecodeError), open(entry.path, "rb") as file:
                note = msgspec.json.decode(file.read(), type=_Note)
                yield entry.path, entry.stat().st_mtime, note


def is_nearly_full(folder: str) -> bool:
    """Return whether the used part of a folder's file system exceeds `FULL`.

    A folder that this user can't read counts as on the file system of its parent.
    """
    try:
        found = os.statvfs(folder)
    except PermissionError:
        return is_nearly_full(os.path.dirname(folder))
    except OSError:
        return False
    used = found.f_blocks - found.f_bfree
    return used > FULL * (used + found.f_bavail)


_MOST = 100  # the most records: a config with endless pulls must not fill the machine


class WantedImages:
    """Images to pull for later builds: one file per name, and a thread that pulls them.

    Any number of processes may share the folder: two concurrent pulls of the same image are
    one pull to the engine.

    Args:
        folder: folder for the files; created when needed.
        host: the host engine.
        note_use: called with the images (by id) that the host has.
        own: pulls the images that this build recorded.
        left: pulls the images that earlier builds recorded.
    """

    def __init__(
        self,
        folder: str,
        host: ContainerEngine,
        note_use: Callable[[Iterable[str]], None],
        *,
        own: HostPulls,
        left: HostPulls,
    ) -> None:
        self._own = own
        self._left = left
        self._own_names: set[str] = set()
        self._folder = folder
        self._host = host
        self._note_use = note_use
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def note(self, name: str) -> None:
        """Record that a nested engine has pulled ``name``. The host then pulls it soon.

        Names with a loopback address are ignored: the sandbox may have its own registry there,
        which is not the machine's registry at this address.
        """
        if is_of_this_machine(ImageName.parse(name).registry):
            return
        with suppress(OSError, EngineError):  # a failure costs only speed
            if (image := self._host.find_image(name)) is not None:
                self._note_use((image.id,))
                return
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if len(os.listdir(self._folder)) >= _MOST:
                return
            self._own_names.add(name)
            with open(self._path(name), "w", encoding="utf-8") as file:
                file.write(name)
            self.work()

    def work(self) -> None:
        """Pull the recorded images, in the background."""
        with self._lock:
            self._news.set()
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop. Another build will pull the rest. Idempotent."""
        self._stop.set()
        self._news.set()
        with self._lock:  # no further pull starts from now on
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            for name in self._noted():
                if self._stop.is_set():
                    return
                self._pull(name)
            self._news.wait()

    def _noted(self) -> list[str]:
        names = []
        with suppress(OSError):
            for entry in sorted(os.listdir(self._folder)):
                with open(os.path.join(self._folder, entry), encoding="utf-8") as file:
                    names.append(file.read())
        return list(filter(None, names))  # a file that is being written is empty

    def _pull(self, name: str) -> None:
        try:
            pulls = self._own if name in self._own_names else self._left
            image = self._host.find_image(name) or pulls.pull(name, cancel=self._stop)
            self._note_use((image.id,))
        except ImagePullError as error:
            if error.transient or self._stop.is_set():
                return  # the next build retries
        except EngineError:
            return
        with suppress(OSError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, hashlib.sha256(name.encode()).hexdigest()[:32])
