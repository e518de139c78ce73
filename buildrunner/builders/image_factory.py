"""The seam between `Installer` and the engine that makes its images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that the engine has.

    Attributes:
        id: ``sha256:...``, of its config or (containerd's image store) of its manifest.
        labels: its labels.
        size_bytes: unpacked.
        layers: digests of its unpacked layers: the same on every engine.
    """

    id: str
    labels: dict[str, str]
    size_bytes: int
    layers: tuple[str, ...] = ()


class ImageBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A Dockerfile to build.

    Attributes:
        image: name and tag of the result.
        context: the build context, an uncompressed tar with a ``Dockerfile``.
        target: stage to build; empty for the last one.
        arguments: build arguments. They reach an image's history, save the proxy variables.
        labels: labels of the result.
        use_cache: layers that were built before may be used again.
    """

    image: str
    context: bytes
    target: str
    arguments: dict[str, str]
    labels: dict[str, str]
    use_cache: bool = True


class ImageFactory(Protocol):
    """Makes images. Any method may be called from any thread; failures are `EngineError`."""

    def find(self, image: str) -> StoredImage | None:
        """Return the engine's image of that name, or None."""
        ...

    def pull(self, image: str) -> StoredImage:
        """Pull the image. Raises ImagePullError."""
        ...

    def build(self, build: ImageBuild, on_line: Callable[[str], None]) -> StoredImage:
        """Build an image; ``on_line`` gets the build's output line by line.

        Raises:
            EngineError: a step of the Dockerfile failed; the message has the last line that it
                printed, and the engine's.
        """
        ...

    def import_root(
        self, image: str, archive: Iterable[bytes], labels: Mapping[str, str]
    ) -> StoredImage:
        """Make an image of one layer from the tar of a root file system."""
        ...

    def add_files(self, image: str, parent: str, archive: Iterable[bytes]) -> StoredImage:
        """Make an image of the parent's layers and one more with the files of a tar archive."""
        ...

    def run(self, image: str, program: str, arguments: Sequence[str]) -> tuple[int, str]:
        """Run a container to its end, without a network.

        Args:
            image: the image to run.
            program: runs instead of the image's entrypoint; empty for the entrypoint.
            arguments: for the program.

        Returns:
            The exit code and the output. A command that can't be started has exit code 127.
        """
        ...

    def tag(self, image: str, name: str) -> None:
        """Give the image a further name. Another image with that name loses it."""
        ...

    def discard(self, image: str) -> None:
        """Remove an unused image (id or name). An image that is in use stays."""
        ...

    def oldest_api_version(self) -> str:
        """Return the oldest API version that the engine still supports, e.g. ``1.24``."""
        ...
