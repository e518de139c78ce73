"""Names of container images: ``[host[:port]/]path[:tag][@digest]``.

Source: the reference grammar of the container registries. Unlike the local builder, a tag together
with a digest is accepted (the digest wins), as newer tools write it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

MAX_REPOSITORY_LENGTH: Final = 255

_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_REFERENCE = re.compile(
    rf"((?:{_HOST}/)?{_PATH_PART}(?:/{_PATH_PART})*)"
    r"(?::([a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}))?"
    r"(?:@([A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)


class ImageReference(msgspec.Struct, frozen=True):
    """The parts of an image's name.

    Attributes:
        repository: host and path, as written.
        tag: empty when none is given.
        digest: ``sha256:...``; empty when none is given.
    """

    repository: str
    tag: str = ""
    digest: str = ""


@lru_cache(maxsize=1024)
def parse_image_reference(text: str) -> ImageReference | None:
    """The parts of ``text``, or None when it is no image reference."""
    match = _REFERENCE.fullmatch(text)
    if match is None or len(match.group(1)) > MAX_REPOSITORY_LENGTH:
        return None
    return ImageReference(match.group(1), match.group(2) or "", match.group(3) or "")
