"""A folder of this machine as the source of a build."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator

import msgspec

from buildrunner.archives import tar_writer as tar_stream
from buildrunner.errors import UsageError
from buildrunner.sources.folder.ignore_rules import IgnoreRules, load_ignore_rules
from buildrunner.sources.folder.walk import LeftOut, Sent, printable, unreadable, walk_folder

_CHUNK_BYTES = 256 * 1024
_SHOWN_LARGEST = 10
_SHOWN_WARNINGS = 10
_LARGE_BYTES = 1024 * 1024
_VANISHED = (FileNotFoundError, NotADirectoryError)


class FolderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass over the folder found.

    Attributes:
        files: regular files and symbolic links that belong to the source.
        directories: directories that belong to it, the root not counted.
        size_bytes: content of the regular files.
        largest: size and path of the ten largest files, largest first.
        left_out: what does not belong to the source, in order; nothing below an entry is named.
        owners: every (uid, gid) among what belongs to the source, the root included.
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
    """The source in a folder. Reads the rules at once, the folder only when asked.

    Attributes:
        root: absolute path of the folder.
        rules: what of it is left out.
        warnings: what changed while `pack` read it, one sentence each; grows while it runs.
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
            root: the folder; relative paths start at the current one.
            ignore_file: ``--ignore-file``.
            ignore_enabled: see `load_ignore_rules`.
            broken_links: symbolic links to nothing belong to the source, too.

        Raises:
            UsageError: no such folder, or no such ``ignore_file``.
            SourceError: rules that can't be read.
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
        """Look at everything without reading any file: some 8 ms for 1,000 files.

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
        """Path and status of everything that belongs to the source, as it is by now."""
        yield ".", os.stat(self.root)
        for found in self._walk():
            if isinstance(found, Sent):
                yield found.path, found.status

    def describe(self, summary: FolderSummary) -> tuple[str, ...]:
        """Lines that tell a person what is sent and what is not: count, size, the ten largest."""
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
        """A tar stream of the source: everything owned by root, modes and times kept.

        All names start with ``root``, a folder that is there, with a slash at the end; behind that
        with ``below``, a folder that is made.

        Nothing is written to disk and memory is constant, but for the names of files with several
        hard links. A file that vanishes is left out, one that shrinks is filled up with zeros,
        one that grows is cut; each leaves a sentence in ``warnings``. When ``cancel`` is set the
        stream ends without its end mark, so that nobody takes it for whole.

        Raises:
            SourceError: a file or folder can't be read.

        Source: the archive of ``gcloud builds submit`` (owner root, links kept as links).
        """
        buffer = bytearray()
        for place in _folders_to(below):
            buffer += tar_stream.header(f"{root}{place}", tar_stream.DIRECTORY)
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
        kind, target = tar_stream.DIRECTORY, ""
        if stat.S_ISREG(status.st_mode):
            first = first_names[status.st_dev, status.st_ino]
            kind, target = tar_stream.HARD_LINK, f"{start}{first}"
        elif stat.S_ISLNK(status.st_mode):
            kind = tar_stream.SYMBOLIC_LINK
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
        """Append a file to ``buffer``; yields what gets too large for it."""
        path = os.path.join(self.root, found.path)
        try:
            # NONBLOCK: a pipe that took the file's place must not hang us.
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
                tar_stream.REGULAR,
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
    """``a/b`` needs ``a`` and ``a/b``."""
    parts = path.split("/") if path else []
    return ("/".join(parts[: count + 1]) for count in range(len(parts)))


def _is_later_name(found: Sent, first_names: dict[tuple[int, int], str]) -> bool:
    """Whether the file has been packed under another name already."""
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
    """``5.1 KiB``, as gcloud writes sizes."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size_bytes} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
