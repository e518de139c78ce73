"""Sources that clients upload to the server: files by content, and archives made from them.

Below ``sources/PROJECT/`` of the data folder are ``blobs/ab/SHA256`` (files, each once),
``archives/SHA256.tar`` (fetched by builds, as objects of the bucket ``buildrunner-sources``; see
`UploadedSource`) and ``lists/SHA256`` (the name of the archive, by the digest of its list of
files). Archives are named by their own digests, so that a build can verify them. Projects don't
share blobs: knowing a digest must not give access to another project's file.

Blobs are not synced to the disk one by one, which would cost more than the upload: they are
verified when they are packed, and blobs damaged by a power cut count as missing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any, BinaryIO, Final

import msgspec

from buildrunner.archives import tar_writer as tar_stream
from buildrunner.archives.members import DIRECTORY, REGULAR, SYMBOLIC_LINK
from buildrunner.errors import StorageError, UsageError
from buildrunner.spec.model.source import StorageSource
from buildrunner.storage.object_store import Content, ObjectStore, Retried, StoredObject
from buildrunner.storage.stores import UPLOADS_BUCKET, FolderStore

MAX_FILES: Final = 1_000_000
_SUM: Final = re.compile(r"[0-9a-f]{64}")
_PIECE_BYTES = 1 << 20
_MOST: Final = (1 << 63) - 1
_SMALLEST_FILE: Final = 4096
_LONGEST_COUNT_S: Final = 600.0
_LONGEST_WAIT_S: Final = 10.0  # for another thread's count
_RECOUNT_S: Final = 10.0  # an older count is repeated if the quota seems to be exceeded


class MissingBlobs(UsageError):
    """A source names files that were not uploaded yet.

    Attributes:
        sums: their SHA-256 digests in hex.
    """

    def __init__(self, sums: list[str]) -> None:
        super().__init__(f"{len(sums)} files of the source are not here: upload them first")
        self.sums = sums


class UploadQuotaExceeded(UsageError):
    """The uploads of a project have reached its quota."""


class _Space:
    """The disk space of each project's uploads. Thread-safe.

    Files are counted again periodically: they expire, and other servers may write to the folder.
    While they are counted, the last count goes on to serve what fits it; before the first count,
    only what this process has reserved counts.

    Args:
        folder: the parent of the projects' folders.
        quota_bytes: quota of a project; None for no limit.
    """

    def __init__(self, folder: str, quota_bytes: int | None) -> None:
        self._folder = folder
        self._quota = quota_bytes
        self._projects: dict[str, _Count] = {}
        self._changed = threading.Condition()

    def take(self, project: str, size: int) -> None:
        """Reserve ``size`` bytes. A count of many files may take minutes.

        Raises:
            UploadQuotaExceeded: the quota would be exceeded.
        """
        if self._quota is None:
            return
        with self._changed:
            count = self._projects.setdefault(project, _Count())
            if not self._is_current(count, size):
                if not count.under_way:
                    self._count(project, count)
                elif count.used + size > self._quota:
                    self._changed.wait(_LONGEST_WAIT_S)
            if count.used + size > self._quota:
                raise UploadQuotaExceeded(
                    f"the uploaded sources of project {project} would take more than"
                    f" {self._quota / (1 << 30):g} GiB",
                    hint="uploads that no build uses expire; the server's administrator sets the"
                    " limit: serve --max-uploads-gib",
                )
            count.used += size
            count.open += size

    def keep(self, project: str, size: int) -> None:
        """Take ``size`` reserved bytes for stored."""
        if self._quota is None or not size:
            return
        with self._changed:
            count = self._projects[project]
            count.open -= size
            count.kept += size

    def give_back(self, project: str, size: int) -> None:
        """Release ``size`` reserved bytes that were not stored. Never waits for a count."""
        if self._quota is None or not size:
            return
        with self._changed:
            count = self._projects[project]
            count.used -= size
            count.open -= size

    def _is_current(self, count: _Count, size: int) -> bool:
        """Return whether the last count is new enough to decide about ``size`` bytes."""
        assert self._quota is not None  # noqa: S101  (the callers return then)
        exceeds = count.used + size > self._quota
        # Few counts of many files: whoever exceeds the quota could ask for one after the other.
        recount_s = min(_RECOUNT_S * max(1.0, count.took_s), _LONGEST_COUNT_S)
        longest_s = recount_s if exceeds else _LONGEST_COUNT_S
        return time.monotonic() - count.at <= longest_s

    def _count(self, project: str, count: _Count) -> None:
        """Count the files of a project, without the lock."""
        count.under_way = True
        count.kept = 0
        self._changed.release()
        began = time.monotonic()
        try:
            found = _disk_use(os.path.join(self._folder, project))
        finally:
            self._changed.acquire()
            count.under_way = False
            self._changed.notify_all()
        # What was written meanwhile, or is open, may be counted twice until the next count.
        count.used = found + count.open + count.kept
        count.at = time.monotonic()
        count.took_s = count.at - began


class _Count:
    """The bytes of one project's uploads.

    Attributes:
        used: the last count, and what was reserved since.
        open: what is reserved and neither stored nor given back.
        kept: what was stored since that count began.
        at: time of the count, in monotonic seconds.
        took_s: seconds that it took.
        under_way: a thread counts now.
    """

    def __init__(self) -> None:
        self.used = 0
        self.open = 0
        self.kept = 0
        self.at = -math.inf
        self.took_s = 0.0
        self.under_way = False


class _Taken:
    """The reserved space of one file while it is written. For one thread at a time."""

    def __init__(self, space: _Space, project: str) -> None:
        self._space = space
        self._project = project
        self._bytes = 0

    def more(self, size: int) -> None:
        """Reserve ``size`` more bytes. Raises `UploadQuotaExceeded`."""
        self._space.take(self._project, size)
        self._bytes += size

    def keep(self) -> None:
        """Keep the reservation of a stored file."""
        self._space.keep(self._project, self._bytes)
        self._bytes = 0

    def give_back(self) -> None:
        """Release the reservation unless the file is stored. Idempotent."""
        self._space.give_back(self._project, self._bytes)
        self._bytes = 0


def _disk_use(folder: str) -> int:
    """Return the bytes of the files below a folder, each inode once."""
    sizes: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))
                sizes[status.st_ino] = max(status.st_size, _SMALLEST_FILE)
    return sum(sizes.values())


class SourceFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A file, a symbolic link (``link``) or a folder (``directory``) of a source.

    JSON is UTF-8. If a name is not UTF-8, ``path_bytes`` or ``link_bytes`` has its bytes, which
    then count instead.
    """

    path: str
    path_bytes: bytes = b""
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o177777)] = 0o644
    sha256: str = ""
    size: Annotated[int, msgspec.Meta(ge=0, le=_MOST)] = 0
    mtime_ns: Annotated[int, msgspec.Meta(ge=-_MOST, le=_MOST)] = 0
    link: str | None = None
    link_bytes: bytes = b""
    directory: bool = False

    @property
    def has_content(self) -> bool:
        """Return whether it is a regular file."""
        return self.link is None and not self.directory

    @property
    def name(self) -> str:
        """Return the path; undecodable bytes as surrogates."""
        return os.fsdecode(self.path_bytes) if self.path_bytes else self.path

    @property
    def target(self) -> str:
        """Return the target of a link; undecodable bytes as surrogates."""
        return os.fsdecode(self.link_bytes) if self.link_bytes else self.link or ""


def is_sum(text: str) -> bool:
    """Return whether ``text`` is a SHA-256 digest in lower-case hex."""
    return _SUM.fullmatch(text) is not None


class SourceUploads:
    """The uploaded sources of one server. Thread-safe; several processes may use one folder.

    Args:
        folder: ``sources`` of the data folder; created when needed.
        quota_bytes: quota of a project; None for no limit.
    """

    def __init__(self, folder: str, quota_bytes: int | None = None) -> None:
        self._folder = folder
        self._space = _Space(folder, quota_bytes)

    def missing(self, project: str, sums: Iterable[str]) -> list[str]:
        """Return the missing blobs. The others are kept for a while from now."""
        return [each for each in dict.fromkeys(sums) if not _touch(self._blob(project, each))]

    def receive(self, project: str, sha256: str) -> BlobReceiver:
        """Receive a blob in pieces. It exists once `BlobReceiver.finish` has returned.

        Raises:
            UploadQuotaExceeded: the quota has no room for it.
        """
        taken = _Taken(self._space, project)
        taken.more(_SMALLEST_FILE)
        return BlobReceiver(self._blob(project, sha256), sha256, taken)

    def pack(self, project: str, files: list[SourceFile]) -> str:
        """Make an archive of files. Returns its name in `UPLOADS_BUCKET`. Idempotent.

        Raises:
            MissingBlobs: some files were not uploaded.
            UsageError: a path leaves the workspace or is a duplicate, a digest is malformed, or
                there are more than `MAX_FILES` files.
            UploadQuotaExceeded: the quota has no room for the archive.
            StorageError: the disk is full, or broken.
        """
        _check(files)
        listed = hashlib.sha256(msgspec.json.encode(files)).hexdigest()
        note = os.path.join(self._folder, project, "lists", listed)
        name = _noted(note)
        if not name or not _touch(self._archive(project, name)):
            absent = self.missing(project, [f.sha256 for f in files if f.has_content])
            if absent:
                raise MissingBlobs(absent)
            self._check_sizes(project, files)
            name = self._write_archive(project, files, note)
        return f"{project}/{ARCHIVES}/{name}"

    def adopt(self, project: str, sha256: str, file_name: str) -> str:
        """Make an object from an uploaded archive. Idempotent.

        Returns:
            The object's name in `UPLOADS_BUCKET`.

        Raises:
            MissingBlobs: the archive was not uploaded.
            UsageError: ``file_name`` does not end like an archive's name.
        """
        ending = next((e for e in ENDINGS if file_name.lower().endswith(e)), "")
        if not ending:
            raise UsageError(f"{file_name} is no archive: its name must end in .tar.gz or .zip")
        blob, target = self._blob(project, sha256), self._archive(project, f"{sha256}{ending}")
        if not _touch(target):
            if not os.path.exists(blob):
                raise MissingBlobs([sha256])
            try:
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                os.link(blob, target)
            except FileExistsError:
                pass
            except OSError as error:
                raise _broken(error) from error
        return f"{project}/{ARCHIVES}/{sha256}{ending}"

    def path_of(self, name: str) -> str:
        """Return the file of an object of `UPLOADS_BUCKET`; empty if it was deleted.

        Args:
            name: name of the object, from `pack` or `adopt`.
        """
        path = os.path.join(self._folder, name)
        return path if _touch(path) else ""

    def prune(self, unused_since: float) -> int:
        """Delete files unused since a time (seconds since 1970). Returns their number."""
        deleted = 0
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(parent, name)
                try:
                    if _used_at(os.stat(path)) < unused_since:
                        os.unlink(path)
                        deleted += 1
                except FileNotFoundError:
                    continue
        return deleted

    def _check_sizes(self, project: str, files: list[SourceFile]) -> None:
        """Check the sizes of all files, before any of them is written to an archive.

        Raises:
            MissingBlobs: a file is damaged.
            UsageError: a file has another size.
        """
        for file in files:
            if not file.has_content:
                continue
            path = self._blob(project, file.sha256)
            with suppress(FileNotFoundError):
                if os.stat(path).st_size == file.size:
                    continue
            for _ in self._checked(path, file):
                pass

    def _write_archive(self, project: str, files: list[SourceFile], note: str) -> str:
        """Write the archive and its record. Returns the archive's name."""
        folder = self._archive(project, "")
        digest = hashlib.sha256()
        taken = _Taken(self._space, project)
        try:
            for parent in (folder, os.path.dirname(note)):
                os.makedirs(parent, mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
                try:
                    reserved = sum(file.size for file in files if file.has_content)
                    taken.more(reserved)
                    written = 0
                    for piece in self._archive_pieces(project, files):
                        written += len(piece)
                        if written > reserved:  # headers are not in the sum
                            taken.more(written - reserved)
                            reserved = written
                        digest.update(piece)
                        out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
                    name = f"{digest.hexdigest()}.tar"
                    # An existing archive stays, since a build may be reading it.
                    with suppress(FileExistsError):
                        os.link(out.name, self._archive(project, name))
                        taken.keep()
                finally:
                    os.unlink(out.name)
                    taken.give_back()
            with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(note), delete=False) as text:
                text.write(name)
            os.replace(text.name, note)
        except OSError as error:
            raise _broken(error) from error
        return name

    def _archive_pieces(self, project: str, files: list[SourceFile]) -> Iterator[bytes]:
        for file in files:
            yield _header(file)
            if file.has_content:
                yield from self._checked(self._blob(project, file.sha256), file)
                yield tar_stream.padding(file.size)
        yield tar_stream.END_OF_ARCHIVE

    def _checked(self, path: str, file: SourceFile) -> Iterator[bytes]:
        found = hashlib.sha256()
        size = 0
        try:
            with open(path, "rb") as blob:
                while piece := blob.read(_PIECE_BYTES):
                    found.update(piece)
                    size += len(piece)
                    yield piece
        except FileNotFoundError:
            raise MissingBlobs([file.sha256]) from None
        if found.hexdigest() != file.sha256:
            os.unlink(path)
            raise MissingBlobs([file.sha256])
        if size != file.size:
            raise UsageError(f"{file.path} has {size} bytes, not {file.size}")

    def _blob(self, project: str, sha256: str) -> str:
        return os.path.join(self._folder, blob_name(project, sha256))

    def _archive(self, project: str, name: str) -> str:
        return os.path.join(self._folder, project, ARCHIVES, name)


class BlobReceiver:
    """An upload of one blob. Used by one thread at a time; always call `abandon` at the end."""

    def __init__(self, path: str, sha256: str, taken: _Taken) -> None:
        self._path = path
        self._taken = taken
        self._wanted = sha256
        self._sum = hashlib.sha256()
        self._temporary = ""
        self._file: BinaryIO | None = None
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor, self._temporary = tempfile.mkstemp(dir=os.path.dirname(path))
            self._file = os.fdopen(descriptor, "wb")
        except OSError as error:
            raise _broken(error) from error

    def write(self, piece: bytes) -> None:
        """Write the next piece. Raises `StorageError`, `UploadQuotaExceeded`."""
        assert self._file is not None  # noqa: S101  (write comes before finish)
        self._taken.more(len(piece))
        self._sum.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise _broken(error) from error

    def finish(self) -> None:
        """Complete the blob.

        Raises:
            UsageError: the content has another digest.
            StorageError: the disk is full, or broken.
        """
        assert self._file is not None  # noqa: S101  (finish comes once)
        if self._sum.hexdigest() != self._wanted:
            raise UsageError(f"the content's SHA-256 sum is not {self._wanted}")
        try:
            self._file.close()
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise _broken(error) from error
        self._temporary = ""
        self._taken.keep()

    def abandon(self) -> None:
        """Delete an incomplete blob. Idempotent."""
        if self._file is not None:
            with suppress(OSError):  # a full disk may refuse the buffered data again
                self._file.close()
            self._file = None
        if self._temporary:
            os.unlink(self._temporary)
            self._temporary = ""
        self._taken.give_back()


def _header(file: SourceFile) -> bytes:
    kind, size = REGULAR, file.size
    if file.directory:
        kind, size = DIRECTORY, 0
    elif file.link is not None:
        kind, size = SYMBOLIC_LINK, 0
    return tar_stream.header(
        file.name,
        kind,
        mode=file.mode,
        size=size,
        mtime_ns=file.mtime_ns,
        link_target=file.target,
    )


def _check(files: list[SourceFile]) -> None:
    if len(files) > MAX_FILES:
        raise UsageError(f"a source has {MAX_FILES} files at most, not {len(files)}")
    seen: set[str] = set()
    for file in files:
        name = file.name
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise UsageError(f"{file.path!r} is no path inside a source")
        if name in seen:
            raise UsageError(f"{file.path} comes twice")
        seen.add(name)
        if file.has_content and not is_sum(file.sha256):
            raise UsageError(f"{file.path}: sha256 must be 64 hexadecimal digits")
        if not file.has_content and file.sha256:
            raise UsageError(f"{file.path}: only a regular file has a sha256")


def _noted(path: str) -> str:
    """Return the archive's name in a record; empty without a record."""
    try:
        with open(path, encoding="ascii") as note:
            name = note.read()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    _touch(path)
    return name


def _touch(path: str) -> bool:
    """Record a use of the file. Returns whether it exists.

    The file's modification time stays: a build that reads an archive fails if the time changes.
    """
    try:
        os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _used_at(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)


def _broken(error: OSError) -> StorageError:
    return StorageError(f"the server can't keep the source: {error.strerror or error}")


def as_source(object_name: str) -> dict[str, Any]:
    """Return the ``source`` of a Build for an object of `UPLOADS_BUCKET`."""
    return {"storageSource": {"bucket": UPLOADS_BUCKET, "object": object_name}}


ARCHIVES: Final = "archives"
ENDINGS: Final = (".tar.gz", ".tgz", ".tar", ".zip")
_SUM_UPLOADED_SOURCE: Final = "[0-9a-f]{64}"


def is_upload_of(project: str, name: str) -> bool:
    """Return whether ``name`` can be an uploaded archive of ``project``.

    Only `SourceUploads` makes such names, so a name never leads anywhere else.
    """
    endings = "|".join(map(re.escape, ENDINGS))
    pattern = f"{re.escape(project)}/{ARCHIVES}/{_SUM_UPLOADED_SOURCE}(?:{endings})"
    return re.fullmatch(pattern, name) is not None


def blob_name(project: str, sha256: str) -> str:
    """Return the path, below the folder of uploads, of the file with that digest.

    Raises:
        UsageError: it is no digest, and could lead to any other file.
    """
    if not is_sum(sha256):
        raise UsageError(f"{sha256!r} is no SHA-256 digest")
    return f"{project}/blobs/{sha256[:2]}/{sha256}"


class _UploadFolder(FolderStore):
    """The folder of uploads, whose path is in no message or log of a build."""

    def url_of(self, bucket: str, name: str) -> str:
        """See `ObjectStore.url_of`."""
        return f"gs://{bucket}/{name}"


OpenUpload = Callable[[str, StorageSource], ObjectStore]
"""Returns the store of the uploaded source of a build, given its project and source."""


class SourceUpload:
    """The uploaded source of a build, as the only object of a store.

    It has the methods of `ObjectStore` that do not depend on the location of the archive.
    Subclasses add `find` and `read`.

    Args:
        project: the project of the build.
        source: the build's source.
    """

    def __init__(self, project: str, source: StorageSource) -> None:
        self._project = project
        self._name = source.object

    def url_of(self, bucket: str, name: str) -> str:
        """See `ObjectStore.url_of`."""
        return f"gs://{bucket}/{name}"

    def check_bucket(self, bucket: str, *, retried: Retried | None = None) -> None:
        """See `ObjectStore.check_bucket`: the bucket always exists."""

    def write(
        self,
        bucket: str,
        name: str,
        content: Content,  # noqa: ARG002
        size_bytes: int,  # noqa: ARG002
        *,
        content_type: str,  # noqa: ARG002
        retried: Retried | None = None,  # noqa: ARG002
    ) -> StoredObject:
        """See `ObjectStore.write`: a build can't change uploads.

        Raises:
            StorageError: always.
        """
        raise StorageError(f"{self.url_of(bucket, name)} can't be written", unauthorized=True)

    def _is_own(self, bucket: str, name: str) -> bool:
        own = name == self._name and is_upload_of(self._project, name)
        return bucket == UPLOADS_BUCKET and own

    def _not_own(self, bucket: str, name: str) -> StorageError:
        return StorageError(
            f"{self.url_of(bucket, name)} was not uploaded for this build's project,"
            f" {self._project}",
            unauthorized=True,
        )

    def _damaged(self, found: StoredObject, sha256: str) -> StorageError:
        return StorageError(
            f"{found.url} is not what was uploaded: its SHA-256 sum is {sha256}",
            hint="submit again, which uploads it again",
        )


def sum_in_name(name: str) -> str:
    """Return the SHA-256 digest of an uploaded archive, which is in its name."""
    return os.path.basename(name).partition(".")[0]


class UploadedSource(SourceUpload):
    """Implements `ObjectStore` for the archive that a build names as its source.

    Args:
        folder: the server's folder of uploads; empty without a server.
        project: the project of the build.
        source: the build's source.
    """

    def __init__(self, folder: str, project: str, source: StorageSource) -> None:
        super().__init__(project, source)
        self._folder = folder
        self._store = _UploadFolder(folder)

    def find(
        self, bucket: str, name: str, generation: int = 0, *, retried: Retried | None = None
    ) -> StoredObject:
        """See `ObjectStore.find`."""
        if not self._folder or not self._is_own(bucket, name):
            raise self._not_own(bucket, name)
        found = self._store.find(bucket, name, generation, retried=retried)
        if not found.size_bytes:  # callers do not read an empty object, so verify it here
            list(self.read(found, 0, threading.Event()))
        return found

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """See `ObjectStore.read`. A damaged archive is deleted, so that it can be uploaded again.

        Raises:
            StorageError: the archive can't be read, or its digest is not the one in its name.
        """
        digest = hashlib.sha256()
        for piece in self._store.read(found, offset, cancel):
            digest.update(piece)
            yield piece
        named = sum_in_name(found.name)
        if offset == 0 and digest.hexdigest() != named:
            for name in (found.name, blob_name(self._project, named)):
                with suppress(OSError):
                    os.unlink(os.path.join(self._folder, name))
            raise self._damaged(found, digest.hexdigest())
