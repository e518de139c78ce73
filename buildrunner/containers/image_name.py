"""Parses image names as Docker does, and gives private names to images of pre-started steps."""

from __future__ import annotations

import re
import threading
from typing import Final

import msgspec

from buildrunner.containers.protocol import ContainerEngine

DOCKER_HUB: Final = ("docker.io", "index.docker.io")
"""The names of Docker Hub as a registry. An engine may have a mirror in its place."""

_ZEROS = re.compile(":0+(?=[0-9])")
_HEX = frozenset("0123456789abcdef")


class ImageName(msgspec.Struct, frozen=True):
    """An image's name in parts; ``str`` joins them.

    Attributes:
        repository: everything before tag and digest, a registry's ``host:port`` included.
        tag: without the colon; empty if there is none.
        digest: ``sha256:...``; empty if there is none.
    """

    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, name: str) -> ImageName:
        """Split ``name``. The tag is what follows the last colon after the last slash."""
        rest, _, digest = name.partition("@")
        slash = rest.rfind("/")
        colon = rest.find(":", slash + 1)
        if colon < 0:
            return cls(rest, "", digest)
        return cls(rest[:colon], rest[colon + 1 :], digest)

    @property
    def familiar(self) -> str:
        """The repository as the engine shows it: without ``docker.io/`` and ``library/``."""
        for prefix in ("docker.io/", "index.docker.io/"):
            if self.repository.startswith(prefix):
                return self.repository[len(prefix) :].removeprefix("library/")
        if self.repository.startswith("library/"):
            return self.repository.removeprefix("library/")
        return self.repository

    @property
    def registry(self) -> str:
        """Host (and port) of the registry; ``docker.io`` if the name has none.

        Source: distribution/reference, for capitals: ``ACME/app`` is an image of the host ACME.
        """
        first, slash, _ = self.repository.partition("/")
        is_written_as_host = "." in first or ":" in first or first != first.lower()
        is_host = bool(slash) and (is_written_as_host or first == "localhost")
        return first if is_host else "docker.io"

    @property
    def with_plain_host(self) -> ImageName:
        """The name with the usual spelling of its registry: small letters, no zeros before the
        port, and no ``:443``.
        """
        host, slash, path = self.repository.partition("/")
        if not slash or host != self.registry:
            return self
        plain = _ZEROS.sub(":", host.lower()).removesuffix(":443")
        plain = DOCKER_HUB[0] if plain in DOCKER_HUB else plain
        return msgspec.structs.replace(self, repository=f"{plain}/{path}")

    @property
    def reference(self) -> str:
        """Return the reference for the engine: by digest if there is one, else by tag."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag}" if self.tag else self.repository

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_image_id(name: str) -> bool:
    """Return whether ``name`` can only be an image's id (``sha256:`` and hexadecimal digits)."""
    digits = name.removeprefix("sha256:")
    return digits != name and bool(digits) and _HEX.issuperset(digits)


REPOSITORY = "buildrunner.ahead"


class PrivateNames:
    """The private names of one build. Thread-safe.

    Args:
        engine: where the images are.
        build_id: the build; part of the names.
    """

    def __init__(self, engine: ContainerEngine, build_id: str) -> None:
        self._engine = engine
        self._build_id = build_id
        self._named: set[str] = set()
        self._lock = threading.Lock()

    def give(self, image: str) -> None:
        """Give an image, by id, its private name, unless it has the name or no longer exists.

        Raises:
            EngineError: the engine refused.
        """
        with self._lock:
            if image in self._named:
                return
            tag = f"{self._build_id}-{image.removeprefix('sha256:')[:12]}"
            if self._engine.tag_image(image, f"{REPOSITORY}:{tag}"):
                self._named.add(image)

    def take_away(self) -> None:
        """Remove all names. The engine then deletes images that steps have deleted.

        Raises:
            EngineError: the engine refused.
        """
        if self._named:
            take_away(self._engine, self._build_id)


def take_away(engine: ContainerEngine, build_id: str) -> None:
    """Remove the private names of a build, also those that a dead process gave.

    Raises:
        EngineError: the engine refused.
    """
    for tag in engine.tags_of(REPOSITORY):
        if tag.startswith(build_id):
            engine.untag_image(f"{REPOSITORY}:{tag}")
