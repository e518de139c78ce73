"""Writes a tar stream (POSIX pax format).

`tarfile` takes 3 times as long for small files, and needs a file object to write to; a stream of
chunks is what an HTTP request needs.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping

from buildrunner.archives.members import (
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    Members,
)

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)

_PAX = b"x"

_CHUNK_BYTES = 256 * 1024
_NAME_BYTES = 100
_PREFIX_BYTES = 155
_LARGEST_OCTAL = 8**11 - 1
_LARGEST_ID = 8**7 - 1
_NANOSECONDS = 1_000_000_000
_CHECKSUM = slice(148, 156)
# name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, user, group, devices,
# prefix; zeros to the end of the block
_LAYOUT = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")


def pack(members: Members, *, below: str = "") -> Iterator[bytes]:
    """Yield a tar stream in pieces that are large enough to send.

    Args:
        members: the entries; the path ``.`` is the folder of ``below`` itself.
        below: all names start with it, a folder with a slash at the end.
    """
    buffer = bytearray()
    files: dict[str, tuple[int, int]] = {}
    for member, content in members:
        target, mode, mtime_ns = member.link_target, member.mode, member.mtime_ns
        if member.kind == HARD_LINK:
            # Its own mode and time mean nothing, but engines may set them on the file that it is.
            mode, mtime_ns = files.get(target, (mode, mtime_ns))
            target = f"{below}{target}"
        if member.kind in (REGULAR, HARD_LINK):
            files[member.path] = mode, mtime_ns
        buffer += header(
            f"{below}{member.path}" if member.path != "." else below.rstrip("/") or ".",
            member.kind,
            mode=mode,
            size=member.size,
            mtime_ns=mtime_ns,
            link_target=target,
            owner=member.owner,
        )
        for data in content:
            buffer += data
            if len(buffer) >= _CHUNK_BYTES:
                yield bytes(buffer)
                buffer.clear()
        buffer += padding(member.size)
        if len(buffer) >= _CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer + END_OF_ARCHIVE)


def padding(size: int) -> bytes:
    """Return the zeros that fill up the last block of ``size`` bytes."""
    return bytes(-size % BLOCK)


def header(
    path: str,
    kind: bytes,
    *,
    mode: int = 0o755,
    size: int = 0,
    mtime_ns: int = 0,
    link_target: str = "",
    owner: tuple[int, int] = (0, 0),
) -> bytes:
    """Return the header block(s) of one member.

    Names of any bytes and any length, times to the nanosecond and sizes of any number survive.

    Args:
        path: relative; undecodable bytes as surrogates.
        kind: one of this module's constants.
        mode: permission bits (and set-id and sticky bits).
        size: of the content that follows, in bytes.
        mtime_ns: time of last change in nanoseconds since the epoch.
        link_target: target of a link.
        owner: ids of its user and group.

    Source: gcloud packs every member with uid and gid 0, user and group ``root``.
    """
    name = os.fsencode(path)
    if kind == DIRECTORY:
        name += b"/"
    target = os.fsencode(link_target)
    seconds, fraction = divmod(mtime_ns, _NANOSECONDS)
    records: dict[bytes, bytes] = {}
    prefix, short_name = _split(name)
    if not short_name:
        records[b"path"] = name
        short_name = name[:_NAME_BYTES]
    if len(target) > _NAME_BYTES:
        records[b"linkpath"] = target
    if size > _LARGEST_OCTAL:
        records[b"size"] = b"%d" % size
    if fraction or not 0 <= seconds <= _LARGEST_OCTAL:
        records[b"mtime"] = _exact_time(mtime_ns)
    for key, number in zip((b"uid", b"gid"), owner, strict=True):
        if number > _LARGEST_ID:
            records[key] = b"%d" % number
    block = _block(
        short_name,
        prefix,
        kind,
        (stat.S_IMODE(mode), min(owner[0], _LARGEST_ID), min(owner[1], _LARGEST_ID)),
        size if size <= _LARGEST_OCTAL else 0,
        min(max(seconds, 0), _LARGEST_OCTAL),
        target[:_NAME_BYTES],
    )
    return _pax_block(records) + block if records else block


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Return prefix and name of a header; an empty name if the path does not fit."""
    if len(name) <= _NAME_BYTES:
        return b"", name
    cut = name.find(b"/", len(name) - _NAME_BYTES - 1, len(name) - 1)
    if 0 < cut <= _PREFIX_BYTES:
        return name[:cut], name[cut + 1 :]
    return b"", b""


def _exact_time(time_ns: int) -> bytes:
    sign = b"-" if time_ns < 0 else b""
    seconds, fraction = divmod(abs(time_ns), _NANOSECONDS)
    return b"%s%d.%09d" % (sign, seconds, fraction)


def _pax_block(records: Mapping[bytes, bytes]) -> bytes:
    content = b"".join(_record(key, value) for key, value in records.items())
    block = _block(b"./PaxHeaders/x", b"", _PAX, (0o644, 0, 0), len(content), 0, b"")
    return block + content + padding(len(content))


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE`` and a newline, where LENGTH counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes,
    prefix: bytes,
    kind: bytes,
    rights: tuple[int, int, int],
    size: int,
    seconds: int,
    target: bytes,
) -> bytes:
    block = bytearray(
        _LAYOUT.pack(
            name,
            *(b"%07o" % number for number in rights),
            b"%011o" % size,
            b"%011o" % seconds,
            b" " * 8,
            kind,
            target,
            b"ustar\x0000",
            b"root",
            b"root",
            b"0000000",
            b"0000000",
            prefix,
        )
    )
    block[_CHECKSUM] = b"%06o\x00 " % sum(block)
    return bytes(block)
