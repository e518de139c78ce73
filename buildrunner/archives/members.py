"""Members of archives, independent of the archive's format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from buildrunner.errors import SourceError

Members = Iterable[tuple["Member", Iterable[bytes]]]
"""Members with their content, which is to be read before the next member is asked for."""

SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a named pipe"}
"""Kinds of members that a workspace may hold and no source, and what they are."""


class Readable(Protocol):
    """A source of bytes: a file, a decompressor, a response."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none only at the end."""
        ...


class DamagedArchive(SourceError):
    """An archive that can't be read: it is not what was packed.

    Attributes:
        why: a part of a sentence.
    """

    def __init__(self, why: object) -> None:
        super().__init__(f"the source archive is damaged: {why}")
        self.why = str(why)


class MemberError(SourceError):
    """A member that is refused, or that can't be written.

    Attributes:
        path: of the member.
        why: a part of a sentence.
    """

    def __init__(self, problem: str, path: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{problem}: {path!r}{why}", hint=hint)
        self.path = path
        self.why = why.lstrip(": ")


def not_a_source(path: str, what: str) -> SourceError:
    """The error for a member that is no file, folder or link."""
    return SourceError(f"the source archive holds {what}, {path!r}, which can't be a source")


class Member(msgspec.Struct, frozen=True):
    """One entry of an archive, as stored and not yet checked.

    Attributes:
        path: as stored, without trailing slashes; undecodable bytes as surrogates.
        kind: a constant of `tar_stream`, or one of `SPECIAL`.
        mode: all bits as stored.
        size: bytes of content; 0 unless it is a regular file.
        mtime_ns: time of last change.
        link_target: of a link.
        owner: ids of its user and group.
    """

    path: str
    kind: bytes
    mode: int = 0o644
    size: int = 0
    mtime_ns: int = 0
    link_target: str = ""
    owner: tuple[int, int] = (0, 0)
