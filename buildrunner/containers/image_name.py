"""Names of images, taken apart as Docker does it."""

from __future__ import annotations

import msgspec

_HEX = frozenset("0123456789abcdef")


class ImageName(msgspec.Struct, frozen=True):
    """An image's name in parts; ``str`` puts it together again.

    Attributes:
        repository: everything before tag and digest, a registry's ``host:port`` included.
        tag: without the colon; empty when there is none.
        digest: ``sha256:...``; empty when there is none.
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
        """Host (and port) of the registry; ``docker.io`` when the name has none."""
        first, slash, _ = self.repository.partition("/")
        is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
        return first if is_host else "docker.io"

    @property
    def reference(self) -> str:
        """What to ask the engine for: by digest when there is one (the tag is only a remark)."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag}" if self.tag else self.repository

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_image_id(name: str) -> bool:
    """Whether ``name`` can only be an image's id (``sha256:`` and hexadecimal digits)."""
    digits = name.removeprefix("sha256:")
    return digits != name and bool(digits) and _HEX.issuperset(digits)
