"""Copies files from a build's workspace once no step runs any more.

All reads use the engine's archive call on a container that never starts, so that links stay inside
the workspace, and every engine is supported.

A step can replace the engine of its sandbox and send any archive instead. So `workspace_members`
checks members like those of an uploaded source.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing

import msgspec
from msgspec.structs import replace

from buildrunner.archives.members import (
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    SPECIAL,
    SYMBOLIC_LINK,
    Guard,
    Member,
    Members,
)
from buildrunner.archives.reader import chunk_reader
from buildrunner.archives.tar_reader import TarReader
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import EngineError, EngineUnavailable, NotFound, UploadError
from buildrunner.workspace.protocol import WORKSPACE, PreparedWorkspace
from buildrunner.workspace.volume import create_copy_container

_BLOCK = 4096  # block size of a file system
_LINKS_LIMIT = 40
_TOO_MANY_LINKS = ("too many links", "too many levels of symbolic links")
_CIRCLE = "{} is a link that leads around in a circle"


class WorkspaceFile(msgspec.Struct, frozen=True):
    """A copy of a file of the workspace.

    Attributes:
        path: path relative to the requested folder; for a single file, its name.
        copy: path of the copy on this machine.
        size_bytes: size of the file.
    """

    path: str
    copy: str
    size_bytes: int


class WorkspaceFiles:
    """Copies files of one workspace to this machine. Leaving the context removes the copies.

    Args:
        engine: the engine that ran the steps.
        workspace: the workspace of the steps.
        labels: labels of new resources on the engine.
        cancel: set to end reading with an error.
        limit_bytes: maximum size of the copies; None sets no limit. A sparse file takes no space in
            the workspace, but its full size here. Each file counts as a block more, so that
            the number of empty files is limited, too.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        workspace: PreparedWorkspace,
        labels: Mapping[str, str],
        cancel: threading.Event,
        *,
        limit_bytes: int | None = None,
    ) -> None:
        self._engine = engine
        self._limit_bytes = limit_bytes
        self._copied_bytes = 0
        self._workspace = workspace
        self._labels = dict(labels)
        self._cancel = cancel
        self._container = ""
        self._folder = ""
        self._count = 0

    def __enter__(self) -> WorkspaceFiles:
        self._folder = tempfile.mkdtemp(prefix="buildrunner-upload-")
        try:
            mounts = (self._workspace.mount(),)
            self._container = create_copy_container(self._engine, mounts, self._labels)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._engine.remove_container(self._container)

    def below(
        self, folder: str, wanted: Callable[[str], bool], *, links: bool = True
    ) -> list[WorkspaceFile]:
        """Return the files below a folder, sorted by their paths.

        Args:
            folder: folder relative to the workspace; empty for its root.
            wanted: returns whether to copy the file at a path.
            links: whether to copy symbolic links to files, too.

        Raises:
            UploadError: a file can't be copied.
            EngineError: the engine refused.
        """
        files: list[WorkspaceFile] = []
        others: list[Member] = []
        with closing(self._members(posixpath.join(folder, "."))) as members:
            for reader, member in members:
                path = _inner_path(member.path)
                if member.kind == DIRECTORY or not wanted(path):
                    continue
                if member.kind == REGULAR:
                    files.append(self._kept(path, reader.content()))
                elif links or member.kind != SYMBOLIC_LINK:
                    others.append(member)
        for link in others:
            path = _inner_path(link.path)
            one = self._at(posixpath.join(folder, path), path)
            if one is not None:
                files.append(one)
        return sorted(files, key=lambda file: os.fsencode(file.path))

    def single(self, path: str) -> WorkspaceFile | None:
        """Return the file at a path, also through a link; None if no file is there.

        Args:
            path: path relative to the workspace.

        Raises:
            UploadError: the file can't be copied.
            EngineError: the engine refused.
        """
        return self._at(path, posixpath.basename(path))

    def _at(self, path: str, known_as: str) -> WorkspaceFile | None:
        for _ in range(_LINKS_LIMIT):
            with closing(self._members(path)) as members:
                first = next(members, None)
                if first is None:
                    return None
                reader, member = first
                if member.kind == REGULAR:
                    return self._kept(known_as, reader.content())
            if member.kind != SYMBOLIC_LINK:
                return None
            path = _target(path, member.link_target)
        raise UploadError(_CIRCLE.format(known_as))

    def _members(self, path: str) -> Generator[tuple[TarReader, Member], None, None]:
        """Yield the members of the archive of a path; none if the path does not exist.

        The caller must close the generator.
        """
        with closing(self._archive(path)) as chunks:
            yield from self._members_in(path, chunks)

    def _members_in(self, path: str, chunks: Iterator[bytes]) -> Iterator[tuple[TarReader, Member]]:
        try:
            first = next(chunks, b"")
        except NotFound:
            return
        except EngineUnavailable:
            raise
        except EngineError as error:  # a file in the place of a folder, or circular links
            is_circle = any(words in str(error) for words in _TOO_MANY_LINKS)
            why = _CIRCLE.format(path) if is_circle else str(error)
            raise UploadError(why) from error
        reader = TarReader(chunk_reader(itertools.chain((first,), chunks)))
        for member in reader.members():
            if self._cancel.is_set():
                raise UploadError("the upload was stopped")
            yield reader, member

    def _archive(self, path: str) -> Generator[bytes, None, None]:
        yield from self._engine.get_archive(self._container, f"{WORKSPACE}/{path}")

    def _kept(self, path: str, content: Iterable[bytes]) -> WorkspaceFile:
        self._count += 1
        copy = os.path.join(self._folder, str(self._count))
        size = 0
        self._check_limit(_BLOCK)
        try:
            with open(copy, "wb") as file:
                for piece in content:
                    size += len(piece)
                    self._check_limit(len(piece))
                    file.write(piece)
        except OSError as error:
            raise UploadError(
                f"{path} can't be copied out of the workspace: {error.strerror or error}",
                hint="TMPDIR names a folder with more room",
            ) from error
        return WorkspaceFile(path, copy, size)

    def _check_limit(self, copied_bytes: int) -> None:
        self._copied_bytes += copied_bytes
        limit = self._limit_bytes
        if limit is not None and self._copied_bytes > limit:
            raise UploadError(
                f"the files to upload have more than {limit / (1 << 30):.1f} GiB",
                hint="the server's administrator sets the limit: serve --max-build-disk-gib",
            )


def _inner_path(name: str) -> str:
    """Return a member's path relative to the archived folder.

    The engine prepends ``.`` or the folder's own name.

    Raises:
        UploadError: the path leads out of the folder. A step can replace the engine of its sandbox
            and choose the names.
    """
    path = name.partition("/")[2].strip("/")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise UploadError(f"the engine names the file {name!r}, outside of its folder")
    return path


def _target(link: str, target: str) -> str:
    """Return the target of a link of the workspace, relative to the workspace.

    Raises:
        UploadError: the link leads out of the workspace.
    """
    whole = posixpath.normpath(posixpath.join(WORKSPACE, posixpath.dirname(link), target))
    if not whole.startswith(f"{WORKSPACE}/"):
        raise UploadError(f"{link} is a link to {target}, outside of {WORKSPACE}")
    return whole.removeprefix(f"{WORKSPACE}/")


def workspace_members(chunks: Iterator[bytes], guard: Guard, left_out: list[str]) -> Members:
    """Yield the members of an engine's archive, with their paths in the workspace.

    Args:
        chunks: the archive.
        guard: checks the members.
        left_out: receives the paths of members that are no file, folder or link; these are not
            yielded.

    Raises:
        SourceError: the archive is damaged, or a member is refused.
    """
    reader = TarReader(chunk_reader(chunks))
    hidden = set()
    for found in reader.members():
        path, target = _path_in_workspace(found.path), found.link_target
        if found.kind == HARD_LINK:
            target = _path_in_workspace(target)
        if found.kind in SPECIAL or (found.kind == HARD_LINK and target in hidden):
            hidden.add(path)
            left_out.append(path)
            continue
        member = guard.admit(replace(found, path=path, link_target=target))
        if member is not None:
            yield member, reader.content()


def _path_in_workspace(name: str) -> str:
    """Return a member's path in the workspace, without the folder name that the engine prepends."""
    return name.partition("/")[2].strip("/")
