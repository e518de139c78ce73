"""Members of archives, whatever the format, and the rules for members of untrusted senders."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from buildrunner.errors import SourceError

REGULAR = b"0"
HARD_LINK = b"1"
SYMBOLIC_LINK = b"2"
CHARACTER_DEVICE = b"3"
DIRECTORY = b"5"

Members = Iterable[tuple["Member", Iterable[bytes]]]
"""Members with their content. Read the content before requesting the next member."""

SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a named pipe"}
"""Kinds of members that a workspace may hold but a source may not, with their names."""


class Readable(Protocol):
    """A source of bytes: a file, a decompressor, a response."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes. An empty result means the end."""
        ...


class DamagedArchive(SourceError):
    """An archive that can't be read because it is damaged.

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


_PATH_BYTES = 4096  # of Linux
_NO_ID = 2**32 - 1  # the kernel's id for "no such user"
_GIB = 1024**3
_PACK = "pack it with names that begin in its folder: tar -C FOLDER -czf source.tgz ."


class ArchiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of an archive's content.

    Attributes:
        members: files, folders and links.
        size_bytes: content of all files.
        ratio: content of all files to bytes of the archive; text of ordinary projects stays
            below 20, and deflate can't exceed 1032.
        ratio_from_bytes: content up to this size may have any ratio.
    """

    members: int = 2_000_000
    size_bytes: int = 200 * _GIB
    ratio: float = 200.0
    ratio_from_bytes: int = 64 * 1024 * 1024


class Guard:
    """Checks each member against the rules and the members before it. Not thread-safe.

    Args:
        limits: how much may come.
        keep_owners: keep owners and set-id bits, for volumes that steps wrote to. Otherwise all
            files belong to root.

    Attributes:
        limits: how much may come.
        files: files and links so far.
        size_bytes: content of files so far, as the members say.
    """

    def __init__(self, limits: ArchiveLimits, *, keep_owners: bool = False) -> None:
        self.limits = limits
        self._keep_owners = keep_owners
        self._members = 0
        self._bytes = 0
        self.files = 0
        self.size_bytes = 0
        self._links: dict[str, str] = {}
        self._files: set[str] = set()
        self._digests: set[int] = set()  # of the paths in both

    def admit(self, member: Member) -> Member | None:
        """Return the member as it may be unpacked; None for the root, unless owners are kept.

        Raises:
            SourceError: the member breaks a rule.
        """
        self._members += 1
        if self._members > self.limits.members:
            raise SourceError(f"the source archive has more than {self.limits.members:,} members")
        if member.kind in SPECIAL:
            raise not_a_source(member.path, SPECIAL[member.kind])
        if len(os.fsencode(member.path)) > _PATH_BYTES:
            shown = msgspec.structs.replace(member, path=f"{member.path[:100]}...")
            raise refused(shown, f"has a path of more than {_PATH_BYTES:,} bytes")
        path = _inside(member.path)
        if path is None:
            raise refused(member, "lies outside the workspace", hint=_PACK)
        if path == "." and not (self._keep_owners and member.kind == DIRECTORY):
            return None
        self._check_parents(member, path)
        if member.kind == HARD_LINK:
            member = self._linked(member)
        elif member.kind == SYMBOLIC_LINK:
            _check_link(member)
        self._remember(path, member)
        self.files += member.kind != DIRECTORY
        self.size_bytes += member.size
        if not self._keep_owners:
            return msgspec.structs.replace(
                member, path=path, mode=member.mode & 0o777, owner=(0, 0)
            )
        if not all(0 <= number < _NO_ID for number in member.owner):
            raise refused(member, f"belongs to {member.owner}, which can't be")
        return msgspec.structs.replace(member, path=path)

    def _linked(self, member: Member) -> Member:
        """Return a hard link with the checked path of its target.

        A hard link to a symbolic link becomes a symbolic link with the same target.
        """
        target = _inside(member.link_target) or ""
        if target not in self._files and target not in self._links:
            raise refused(member, "is a hard link to no file of the archive before it")
        self._check_parents(member, target)
        if target in self._links:
            return msgspec.structs.replace(
                member, kind=SYMBOLIC_LINK, link_target=self._links[target]
            )
        return msgspec.structs.replace(member, link_target=target)

    def _check_parents(self, member: Member, path: str) -> None:
        folders = path.split("/")[:-1]
        for depth, digest in enumerate(_digests(folders), 1):
            if digest not in self._digests:
                continue
            parent = "/".join(folders[:depth])
            if parent in self._links:
                raise refused(member, f"would be reached through the link {parent!r}")
            if parent in self._files:
                raise refused(member, f"would lie below the file {parent!r}")

    def _remember(self, path: str, member: Member) -> None:
        self._links.pop(path, None)
        self._files.discard(path)
        if member.kind == SYMBOLIC_LINK:
            self._links[path] = member.link_target
        elif member.kind != DIRECTORY:
            self._files.add(path)
        *_, digest = _digests(path.split("/"))
        if member.kind == DIRECTORY:
            self._digests.discard(digest)
        else:
            self._digests.add(digest)

    def count(self, data: bytes, archive_bytes: int) -> None:
        """Count bytes of content. Raises SourceError when they exceed the limits."""
        self._bytes += len(data)
        limits = self.limits
        if self._bytes > limits.size_bytes:
            raise SourceError(
                f"the source archive unpacks to more than {limits.size_bytes / _GIB:.0f} GiB"
            )
        expands = self._bytes > limits.ratio * max(archive_bytes, 1)
        if expands and self._bytes > limits.ratio_from_bytes:
            raise SourceError(
                f"the source archive unpacks to more than {limits.ratio:.0f} times its size",
                hint="it looks like a decompression bomb",
            )


def _digests(names: list[str]) -> Iterator[int]:
    """Yield a digest of each leading part of a path, in linear time."""
    digest = 0
    for name in names:
        digest = hash((digest, name))
        yield digest


def _inside(path: str) -> str | None:
    """Return the path in its shortest form: ``.`` for the root, None if it leaves the workspace."""
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        return None
    return posixpath.normpath(path)


def _check_link(member: Member) -> None:
    """Check a link. Any target is allowed, since the reader never writes through a link.

    Source: GNU tar, and so the hosted service, keeps such links.
    """
    target = member.link_target
    if not target or "\0" in target or len(target) > _PATH_BYTES:
        raise refused(member, "is a link to nothing")


def refused(member: Member, why: str, *, hint: str = "") -> SourceError:
    """The error for a member that breaks a rule."""
    return MemberError("the source archive is refused", member.path, f" {why}", hint=hint)
