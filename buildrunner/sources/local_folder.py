"""A folder of this machine as the source of a build."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader

import msgspec

from buildrunner.archives import tar_writer as tar_stream
from buildrunner.archives.members import (
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    SYMBOLIC_LINK,
    ArchiveLimits,
    Guard,
    Members,
)
from buildrunner.archives.reader import safe_members
from buildrunner.errors import SourceError, UsageError
from buildrunner.sources.fetched_files import FetchedFiles, FetchReport
from buildrunner.sources.ignore_rules import IgnoreRules, load_ignore_rules
from buildrunner.spec.model.results import FileHashes, Hash, HashType, SourceProvenance

_CHUNK_BYTES = 256 * 1024
_SHOWN_LARGEST = 10
_SHOWN_WARNINGS = 10
_LARGE_BYTES = 1024 * 1024
_VANISHED = (FileNotFoundError, NotADirectoryError)


class FolderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one pass over the folder.

    Attributes:
        files: regular files and symbolic links that belong to the source.
        directories: directories that belong to it, without the root.
        size_bytes: content of the regular files.
        largest: size and path of the ten largest files, largest first.
        left_out: files and folders that do not belong to the source, in order, without the content
            of folders.
        owners: every (uid, gid) in the source, including the root's.
        hard_links: a file has two names in the source.
    """

    files: int
    directories: int
    size_bytes: int
    largest: tuple[tuple[int, str], ...]
    left_out: tuple[LeftOut, ...]
    owners: frozenset[tuple[int, int]]
    hard_links: bool


class LocalFolder:
    """The source in a folder. The constructor reads the rules; only the methods read the folder.

    Attributes:
        root: absolute path of the folder.
        rules: the folder's ignore rules.
        warnings: one sentence for each file that changed while `pack` read it; grows during `pack`.
    """

    def __init__(
        self,
        root: str,
        *,
        ignore_file: str = "",
        ignore_enabled: bool = True,
        broken_links: bool = False,
    ) -> None:
        """Find the folder and its rules.

        Args:
            root: the folder; a relative path starts at the current folder.
            ignore_file: ``--ignore-file``.
            ignore_enabled: see `load_ignore_rules`.
            broken_links: broken symbolic links belong to the source, too.

        Raises:
            UsageError: no such folder, or no such ``ignore_file``.
            SourceError: the rules can't be read.
        """
        self.root = os.path.abspath(root)
        if not os.path.isdir(self.root):
            raise UsageError(
                f"could not find source [{root}]", hint="name an existing folder with --source"
            )
        self.rules: IgnoreRules = load_ignore_rules(
            self.root, ignore_file=ignore_file, enabled=ignore_enabled
        )
        self.warnings: list[str] = []
        self._broken_links = broken_links

    def _walk(self, cancel: threading.Event | None = None) -> Iterator[Sent | LeftOut]:
        return walk_folder(self.root, self.rules, cancel, broken_links=self._broken_links)

    def scan(self, cancel: threading.Event | None = None) -> FolderSummary:
        """List everything without reading files: some 8 ms for 1,000 files.

        Raises:
            SourceError: a folder can't be read.
        """
        import heapq

        files = directories = size = 0
        root = os.stat(self.root)
        owners = {(root.st_uid, root.st_gid)}
        left_out: list[LeftOut] = []
        largest: list[tuple[int, str]] = []
        first_names: dict[tuple[int, int], str] = {}
        hard_links = False
        for found in self._walk(cancel):
            if isinstance(found, LeftOut):
                left_out.append(found)
                continue
            status = found.status
            owners.add((status.st_uid, status.st_gid))
            if stat.S_ISDIR(status.st_mode):
                directories += 1
                continue
            files += 1
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
                hard_links = _is_later_name(found, first_names) or hard_links
                if len(largest) < _SHOWN_LARGEST:
                    heapq.heappush(largest, (status.st_size, found.path))
                elif status.st_size > largest[0][0]:
                    heapq.heapreplace(largest, (status.st_size, found.path))
        return FolderSummary(
            files=files,
            directories=directories,
            size_bytes=size,
            largest=tuple(sorted(largest, reverse=True)),
            left_out=tuple(left_out),
            owners=frozenset(owners),
            hard_links=hard_links,
        )

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield path and present status of everything that belongs to the source."""
        yield ".", os.stat(self.root)
        for found in self._walk():
            if isinstance(found, Sent):
                yield found.path, found.status

    def describe(self, summary: FolderSummary) -> tuple[str, ...]:
        """Return lines about the sent and ignored files: count, size, the ten largest."""
        size = format_size(summary.size_bytes)
        first = f"Source: {_count(summary.files, 'file')} totalling {size}"
        ignored = sum(1 for entry in summary.left_out if not entry.reason)
        if ignored:
            first += f"; {_count(ignored, 'path')} left out by {self.rules.origin}"
        lines = [first]
        if summary.size_bytes >= _LARGE_BYTES:
            shown = (f"{printable(path)} ({format_size(size)})" for size, path in summary.largest)
            lines.append(f"Largest: {', '.join(shown)}")
        odd = [entry for entry in summary.left_out if entry.reason]
        lines += [
            f"WARNING: {printable(entry.path)} {entry.reason}: left out"
            for entry in odd[:_SHOWN_WARNINGS]
        ]
        if len(odd) > _SHOWN_WARNINGS:
            lines.append(f"WARNING: {len(odd) - _SHOWN_WARNINGS} more paths were left out")
        return tuple(lines)

    def pack(
        self, cancel: threading.Event | None = None, *, root: str = "", below: str = ""
    ) -> Iterator[bytes]:
        """Yield a tar stream of the source: everything owned by root, modes and times kept.

        All names start with ``root``, an existing folder whose name ends with a slash, and then
        ``below``, a folder that the stream creates.

        Nothing is written to disk and memory is constant, except for the names of files with
        several hard links. A file that is deleted meanwhile is skipped, a file that shrinks is
        padded with zeros, and a file that grows is cut; each adds a sentence to ``warnings``. If
        ``cancel`` is set, the stream ends without its end mark, so that no reader accepts it as
        complete.

        Raises:
            SourceError: a file or folder can't be read.

        Source: the archive of ``gcloud builds submit`` (owner root, links kept as links).
        """
        buffer = bytearray()
        for place in _folders_to(below):
            buffer += tar_stream.header(f"{root}{place}", DIRECTORY)
        start = f"{root}{below}/" if below else root
        first_names: dict[tuple[int, int], str] = {}
        for found in self._walk(cancel):
            if isinstance(found, LeftOut):
                if found.vanished:
                    self.warnings.append(f"{printable(found.path)} {found.reason}: left out")
                continue
            if stat.S_ISREG(found.status.st_mode) and not _is_later_name(found, first_names):
                yield from self._pack_file(found, buffer, start)
            else:
                buffer += self._header_only(found, first_names, start)
            if len(buffer) >= _CHUNK_BYTES:
                yield bytes(buffer)
                buffer.clear()
        if cancel is None or not cancel.is_set():
            buffer += tar_stream.END_OF_ARCHIVE
        if buffer:  # an empty chunk would end an HTTP request's body
            yield bytes(buffer)

    def _header_only(
        self, found: Sent, first_names: dict[tuple[int, int], str], start: str
    ) -> bytes:
        status = found.status
        kind, target = DIRECTORY, ""
        if stat.S_ISREG(status.st_mode):
            first = first_names[status.st_dev, status.st_ino]
            kind, target = HARD_LINK, f"{start}{first}"
        elif stat.S_ISLNK(status.st_mode):
            kind = SYMBOLIC_LINK
            try:
                target = os.readlink(os.path.join(self.root, found.path))
            except OSError as error:
                return self._vanished(found, error)
        return tar_stream.header(
            f"{start}{found.path}",
            kind,
            mode=status.st_mode,
            mtime_ns=status.st_mtime_ns,
            link_target=target,
        )

    def _pack_file(self, found: Sent, buffer: bytearray, start: str) -> Iterator[bytes]:
        """Append a file to ``buffer``. Yields the content of the buffer whenever it is full."""
        path = os.path.join(self.root, found.path)
        try:
            # NONBLOCK: a pipe that replaced the file must not block.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._vanished(found, error)
            return
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self._vanished(found, FileNotFoundError())
                return
            size = status.st_size
            buffer += tar_stream.header(
                f"{start}{found.path}",
                REGULAR,
                mode=status.st_mode,
                size=size,
                mtime_ns=status.st_mtime_ns,
            )
            missing = size
            while missing:
                data = os.read(descriptor, min(missing, _CHUNK_BYTES))
                if not data:
                    break
                missing -= len(data)
                buffer += data
                if len(buffer) >= _CHUNK_BYTES:
                    yield bytes(buffer)
                    buffer.clear()
            if missing or os.read(descriptor, 1):
                self.warnings.append(f"{printable(found.path)} changed while it was read")
            for zeros in _zeros(missing):
                buffer += zeros
                yield bytes(buffer)
                buffer.clear()
            buffer += tar_stream.padding(size)
        except OSError as error:
            raise unreadable(found.path, error) from error
        finally:
            os.close(descriptor)

    def _vanished(self, found: Sent, error: OSError) -> bytes:
        if not isinstance(error, _VANISHED):
            raise unreadable(found.path, error) from error
        self.warnings.append(
            f"{printable(found.path)} vanished while the source was read: left out"
        )
        return b""


def _folders_to(path: str) -> Iterator[str]:
    """Return the folders of a path: ``a`` and ``a/b`` for ``a/b``."""
    parts = path.split("/") if path else []
    return ("/".join(parts[: count + 1]) for count in range(len(parts)))


def _is_later_name(found: Sent, first_names: dict[tuple[int, int], str]) -> bool:
    """Return whether the file was found under another name before. Records its first name."""
    status = found.status
    if status.st_nlink == 1:
        return False
    return first_names.setdefault((status.st_dev, status.st_ino), found.path) != found.path


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield bytes(min(size, _CHUNK_BYTES))
        size -= _CHUNK_BYTES


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_size(size_bytes: int) -> str:
    """Format a size like gcloud: ``5.1 KiB``."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size_bytes} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Sent(msgspec.Struct, frozen=True):
    """A directory, regular file or symbolic link that belongs to the source.

    Attributes:
        path: relative to the root, ``/`` between names; undecodable bytes as surrogates.
        status: its own status (a link's, not its target's).
    """

    path: str
    status: os.stat_result


class LeftOut(msgspec.Struct, frozen=True):
    """Something in the folder that is not part of the source.

    Attributes:
        path: as in `Sent`; nothing below it is reported.
        reason: the reason, for a warning; empty if the ignore rules match.
        vanished: the file was deleted during the walk.
    """

    path: str
    reason: str = ""
    vanished: bool = False


def walk_folder(
    root: str,
    rules: IgnoreRules,
    cancel: threading.Event | None = None,
    *,
    broken_links: bool = False,
) -> Iterator[Sent | LeftOut]:
    """Yield everything below ``root``, each directory before its content, names in order.

    Symbolic links are never followed. Ignored files, broken links (as in gcloud), sockets, pipes,
    devices and files that are deleted meanwhile are yielded as `LeftOut`. The root itself is not
    yielded.

    Args:
        root: an existing folder.
        rules: the ignore rules. The walk does not descend into ignored folders.
        cancel: when set, ends the walk early, without an error.
        broken_links: include broken symbolic links.

    Raises:
        SourceError: a folder or file can't be read.

    Source: ``gcloud builds submit`` (symbolic links, broken links, ignored folders).
    """
    pending = [""]
    while pending:
        if cancel is not None and cancel.is_set():
            return
        directory = pending.pop()
        try:
            with os.scandir(os.path.join(root, directory) if directory else root) as listing:
                entries = sorted(listing, key=_name_of)
        except OSError as error:
            yield _vanished(directory, error)
            continue
        prefix = f"{directory}/" if directory else ""
        below: list[str] = []
        for entry in entries:
            path = prefix + entry.name
            found = _look_at(entry, path, rules, broken_links=broken_links)
            if isinstance(found, Sent) and stat.S_ISDIR(found.status.st_mode):
                below.append(path)
            yield found
        below.reverse()
        pending += below


def _name_of(entry: os.DirEntry[str]) -> str:
    return entry.name


def _look_at(
    entry: os.DirEntry[str], path: str, rules: IgnoreRules, *, broken_links: bool
) -> Sent | LeftOut:
    try:
        if is_link := entry.is_symlink():
            # gcloud treats a link to a folder as a folder.
            is_directory = os.path.isdir(entry.path)
        else:
            is_directory = entry.is_dir(follow_symlinks=False)
        if not rules.empty and rules.ignores(path, is_directory=is_directory):
            return LeftOut(path)
        broken = is_link and not is_directory and not os.path.exists(entry.path)
        if broken and not broken_links:
            return LeftOut(path, "is a broken symbolic link")
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return _vanished(path, error)
    if stat.S_ISREG(status.st_mode) or is_directory or stat.S_ISLNK(status.st_mode):
        return Sent(path, status)
    return LeftOut(path, f"is a {_special_kind(status.st_mode)}")


def _special_kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "named pipe"
    return "device"


def _vanished(path: str, error: OSError) -> LeftOut:
    if error.errno in _GONE and path:
        return LeftOut(path, "vanished while the source was read", vanished=True)
    raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> SourceError:
    """Return the error for an unreadable part of the source."""
    return SourceError(
        f"can't read {printable(path) or 'the source folder'}: {error.strerror}",
        hint="make it readable, or name it in .gcloudignore",
    )


def printable(path: str) -> str:
    """Return ``path`` for a message, with unprintable characters escaped."""
    return path if path.isprintable() else repr(path)[1:-1]


class LocalArchive:
    """A ``.tgz``, ``.tar.gz``, ``.tar`` or ``.zip`` file. Implements `FetchedSource`.

    Args:
        path: path of the file.
        hashes: hash types for ``sourceProvenance.fileHashes``.
    """

    def __init__(self, path: str, hashes: Sequence[HashType] = ()) -> None:
        self._path = path
        self._hashes = tuple(dict.fromkeys(hashes))

    def fetch(
        self,
        unpack: Callable[[Members], None],
        *,
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        """See `FetchedSource.fetch`."""
        guard = Guard(ArchiveLimits())
        try:
            with open(self._path, "rb") as file:
                size = format_size(os.fstat(file.fileno()).st_size)
                report.line(f"Source: {self._path} ({size})")
                unpack(safe_members(file, self._path, guard=guard, cancel=cancel))
                provenance = self._provenance(file)
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"the source {self._path} can't be read: {reason}") from error
        return FetchedFiles(files=guard.files, size_bytes=guard.size_bytes, provenance=provenance)

    def _provenance(self, file: BufferedReader) -> SourceProvenance | None:
        """Return one entry, for the archive itself. Source: semantics 1.6."""
        if not self._hashes:
            return None
        import hashlib

        from buildrunner.sources.bucket.archive import HASHLIB_NAMES

        hashes = []
        for one in self._hashes:
            if one not in HASHLIB_NAMES:
                continue
            file.seek(0)
            digest = hashlib.file_digest(file, HASHLIB_NAMES[one]).digest()
            hashes.append(Hash(type=one, value=digest))
        return SourceProvenance(file_hashes={self._path: FileHashes(file_hash=tuple(hashes))})
