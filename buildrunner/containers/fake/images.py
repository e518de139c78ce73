"""Images of the engine in memory, and its registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.types import ImageInfo, PushedImage, RegistryLogin, TransferProgress
from buildrunner.errors import ImagePullError, ImagePushError


class FakeImages:
    """The `Images` part of `FakeEngine`. Thread-safe.

    Attributes:
        calls: ``(method, what)`` of each call that changes something.
        registry: images that can be pulled, by name with tag; `offer_image` and pushes add to it.
        pull_errors: errors for the next pulls of a name, one a try.
        push_errors: the same for pushes.
        push_logins: name and login of every push.
        private: names that a pull without a login does not find.
        stalled: names whose pull or push hangs until it is cancelled.
    """

    def __init__(self, images: Iterable[str]) -> None:
        self.calls: list[tuple[str, str]] = []
        self.registry: dict[str, ImageInfo] = {}
        self.pull_errors: dict[str, list[ImagePullError]] = {}
        self.push_errors: dict[str, list[ImagePushError]] = {}
        self.push_logins: list[tuple[str, RegistryLogin | None]] = []
        self.private: set[str] = set()
        self.stalled: set[str] = set()
        self._images: dict[str, ImageInfo] = {}
        self._lock = threading.RLock()
        for name in images:
            self.add_image(name)

    def add_image(self, name: str, *, digest: str = "", entrypoint: Sequence[str] = ()) -> None:
        """The engine has this image from now on (as if built, or pulled when it has a digest)."""
        with self._lock:
            self._images[_tagged(name)] = _image(name, digest, entrypoint)

    def offer_image(self, name: str, *, entrypoint: Sequence[str] = ()) -> None:
        """The registry has this image from now on, and a pull finds it."""
        with self._lock:
            digest = _fake_digest(f"manifest {name}")
            self.registry[_tagged(name)] = _image(name, digest, entrypoint)

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`."""
        with self._lock:
            asked = ImageName.parse(name)
            if asked.digest:
                return next(
                    (one for one in self._images.values() if one.digest == asked.digest), None
                )
            by_id = next((one for one in self._images.values() if one.id == name), None)
            return self._images.get(_tagged(name)) or by_id

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """See `Images.tags_of`."""
        with self._lock:
            names = [ImageName.parse(name) for name in self._images]
            return tuple(sorted(one.tag for one in names if one.familiar == repository))

    def tag_image(self, image: str, name: str) -> bool:
        """See `Images.tag_image`."""
        with self._lock:
            found = next((one for one in self._images.values() if one.id == image), None)
            if found is not None:
                self.calls.append(("tag_image", name))
                self._images[_tagged(name)] = msgspec.structs.replace(found, digest="")
            return found is not None

    def untag_image(self, name: str) -> None:
        """See `Images.untag_image`."""
        with self._lock:
            self._images.pop(_tagged(name), None)

    def import_image(
        self,
        name: str,
        tar: Iterable[bytes],
        *,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        env: Sequence[str] = (),  # noqa: ARG002  (nothing runs in the fake)
        labels: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> str:
        """See `Images.import_image`."""
        content = b"".join(tar)
        with self._lock:
            self.calls.append(("import_image", name))
            self._images[_tagged(name)] = ImageInfo(
                id=_fake_digest(f"import {name}"),
                size_bytes=len(content),
                entrypoint=tuple(entrypoint),
                cmd=tuple(cmd),
            )
            return self._images[_tagged(name)].id

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`."""
        with self._lock:
            self.calls.append(("pull_image", name))
            errors = self.pull_errors.get(name)
            error = errors.pop(0) if errors else None
        on_progress(TransferProgress(image=name, status="Pulling from registry"))
        if name in self.stalled:
            cancel.wait()
        if cancel.is_set():
            raise ImagePullError(f"the pull of {name} was cancelled")
        if error is not None:
            raise error
        with self._lock:
            image = self.registry.get(_tagged(name))
            if image is None or (anonymous and name in self.private):
                raise ImagePullError(f"the image {name} can't be pulled: not found")
            self._images[_tagged(name)] = image
        on_progress(
            TransferProgress(
                image=name, layer="layer", status="Downloading", current_bytes=1, total_bytes=1
            )
        )
        return image

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`; ``push_logins`` remembers who pushed."""
        tagged = _tagged(name)
        with self._lock:
            self.calls.append(("push_image", name))
            self.push_logins.append((name, login))
            image = self._images.get(tagged)
            errors = self.push_errors.get(name)
            error = errors.pop(0) if errors else None
        if image is None:
            raise ImagePushError(f"the engine has no image {name} to push")
        on_progress(TransferProgress(image=name, layer="layer", status="Pushing"))
        if name in self.stalled:
            cancel.wait()
        if cancel.is_set():
            raise ImagePushError(f"the push of {name} was cancelled")
        if error is not None:
            raise error
        digest = _fake_digest(f"manifest {image.id}")
        with self._lock:
            reused = tagged in self.registry
            self.registry[tagged] = msgspec.structs.replace(image, digest=digest)
            self._images[tagged] = self.registry[tagged]
        tag = ImageName.parse(tagged).tag
        return PushedImage(
            name=tagged,
            digest=digest,
            size_bytes=image.size_bytes,
            layers_pushed=0 if reused else 1,
            layers_reused=1 if reused else 0,
            log=(f"The push refers to repository [{name}]", f"{tag}: digest: {digest} size: 100"),
        )


def _image(name: str, digest: str, entrypoint: Sequence[str]) -> ImageInfo:
    return ImageInfo(
        id=_fake_digest(f"image {name}"),
        digest=digest,
        size_bytes=1_000_000,
        entrypoint=tuple(entrypoint),
        cmd=("sh",),
        layers=(_fake_digest(f"layer {name}"),),
    )


def _tagged(name: str) -> str:
    asked = ImageName.parse(name)
    return f"{asked.familiar}:{asked.tag or 'latest'}"


def _fake_digest(text: str) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
