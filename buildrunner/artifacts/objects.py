"""Uploads ``artifacts.objects``: the files, then a list of them.

Source: semantics 6.5 (procedure and lines of the log) and 6.6 (the list's form).
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import posixpath
import re
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO

import msgspec

from buildrunner.engine.outcome import Span, UploadedFile, UploadedObjects
from buildrunner.engine.protocols import UploadReport
from buildrunner.errors import StorageError, UploadError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.sources.ignore_rules import BadPattern, translate_glob
from buildrunner.storage.object_store import ObjectStore, ObjectUrl, Retried, StoredObject
from buildrunner.storage.parallel import in_parallel, interruptible
from buildrunner.storage.stores import Stores
from buildrunner.workspace.files import WorkspaceFile, WorkspaceFiles

_MD5 = 2
_PIECE_BYTES = 256 * 1024


class _Upload(msgspec.Struct, frozen=True):
    file: WorkspaceFile
    name: str


class _Uploaded(msgspec.Struct, frozen=True):
    stored: StoredObject
    sha256: str


class GcsUploader:
    """Implements `ObjectUploader`.

    Args:
        stores: finds the store of a bucket. If a folder replaces the bucket, files are uploaded to
            the folder, and the URLs in the log and in the list begin with ``file://``.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def upload(
        self,
        plan: BuildPlan,
        files: Callable[[], WorkspaceFiles],
        *,
        report: UploadReport,
        cancel: threading.Event,
    ) -> UploadedObjects:
        """See `ObjectUploader.upload`."""
        began = datetime.now(UTC)
        try:
            store, location = self._stores.place(plan.object_location)
            check = partial(store.check_bucket, location.bucket, retried=retries_to(report))
            interruptible(check, cancel)
        except StorageError as error:
            raise _upload_error(str(error), error) from error
        run = _Run(store, location, report, cancel)
        bucket_url = store.url_of(location.bucket, "").rstrip("/")
        report.line(f"Artifacts will be uploaded to {bucket_url} using gsutil cp")
        workdir = posixpath.join(WORKSPACE, plan.source_dir)
        done: list[_Uploaded] = []
        with files() as opened:
            for text in plan.object_paths:
                report.line(f"{text}: Uploading path....")
                uploads = run.found(text, workdir, opened)
                done += run.uploaded(text, uploads)
                report.line(f"{text}: {len(uploads)} matching files uploaded")
        report.line(f"{len(done)} total artifacts uploaded to {run.url}")
        stored = [one.stored for one in done]
        manifest_url = run.store_manifest(f"artifacts-{plan.build_id}.json", stored)
        return UploadedObjects(
            manifest_url=manifest_url,
            count=len(stored),
            timing=Span(began, datetime.now(UTC)),
            files=tuple(UploadedFile(one.stored.pinned_url, one.sha256) for one in done),
        )


def retries_to(report: UploadReport) -> Retried:
    """Return a hook that reports each error that will be retried."""
    return lambda error: report.line(f"Trying again: {error}")


class _Run:
    """One upload to one location."""

    def __init__(
        self,
        store: ObjectStore,
        location: ObjectUrl,
        report: UploadReport,
        cancel: threading.Event,
    ) -> None:
        self._store = store
        self._bucket = location.bucket
        self._folder = location.name
        self._report = report
        self._cancel = cancel
        self._retried = retries_to(report)
        self.url = store.url_of(location.bucket, location.name)

    def found(self, text: str, workdir: str, files: WorkspaceFiles) -> list[_Upload]:
        """Return the files that a path names, with their names in the bucket; at least one."""
        try:
            glob = ObjectGlob(text, workdir=workdir)
            if glob.literal:
                single = files.single(glob.folder)
                matching = [single] if single is not None else []
            else:
                matching = files.below(glob.folder, glob.matches)
        except UploadError as error:
            raise self._failed(text, error) from error
        if not matching:
            raise self._failed(text, UploadError("it matches no file of the workspace"))
        return [_Upload(file, self._folder + glob.object_name(file.path)) for file in matching]

    def uploaded(self, text: str, uploads: Sequence[_Upload]) -> list[_Uploaded]:
        """Upload several files at a time; files of the same name one after the other, in order."""
        by_name: dict[str, list[_Upload]] = {}
        for upload in uploads:
            by_name.setdefault(upload.name, []).append(upload)
        jobs = [self._job(group) for group in by_name.values()]
        stored: dict[int, _Uploaded] = {}
        try:
            for group in in_parallel(jobs, cancel=self._cancel):
                stored.update(group)
        except (StorageError, UploadError) as error:
            raise self._failed(text, error) from error
        return [stored[id(upload)] for upload in uploads]

    def _job(self, group: Sequence[_Upload]) -> Callable[[], dict[int, _Uploaded]]:
        return lambda: {id(upload): self._upload(upload) for upload in group}

    def _upload(self, upload: _Upload) -> _Uploaded:
        if not _is_text(upload.name):
            raise UploadError(f"the name of {upload.name!r} is not UTF-8, as an object's must be")
        file = upload.file
        url = self._store.url_of(self._bucket, upload.name)
        kind = mimetypes.guess_type(upload.name)[0] or "application/octet-stream"
        with open(file.copy, "rb") as content:
            watched = _Watched(content, self._cancel, lambda at: self._moved(url, at, file))
            stored = self._store.write(
                self._bucket,
                upload.name,
                watched,
                file.size_bytes,
                content_type=kind,
                retried=self._retried,
            )
        self._moved(url, file.size_bytes, file)
        if not stored.md5:
            stored = msgspec.structs.replace(stored, md5=_md5_of(file.copy))
        with open(file.copy, "rb") as content:
            return _Uploaded(stored, hashlib.file_digest(content, "sha256").hexdigest())

    def _moved(self, url: str, at: int, file: WorkspaceFile) -> None:
        self._report.moved(url, at, file.size_bytes)

    def store_manifest(self, name: str, stored: Sequence[StoredObject]) -> str:
        """Write the list of uploaded files; return its URL."""
        import io

        self._report.line(f"Uploading manifest {name}")
        text = manifest_of(stored)
        try:
            write = partial(
                self._store.write,
                self._bucket,
                self._folder + name,
                io.BytesIO(text),
                len(text),
                content_type="application/json",
                retried=self._retried,
            )
            manifest = interruptible(write, self._cancel)
        except StorageError as error:
            raise _upload_error(f"could not upload the manifest: {error}", error) from error
        self._report.line(f"Artifact manifest located at {manifest.url}")
        return manifest.url

    def _failed(self, text: str, error: StorageError | UploadError) -> UploadError:
        return _upload_error(f"could not upload {text} to {self.url}; err = {error}", error)


class _Watched:
    """A file that reports how far it was read, and fails to read after a cancellation."""

    def __init__(
        self, file: BinaryIO, cancel: threading.Event, moved: Callable[[int], None]
    ) -> None:
        self._file = file
        self._cancel = cancel
        self._moved = moved

    def read(self, size: int = -1, /) -> bytes:
        if self._cancel.is_set():
            raise StorageError("the transfer was stopped")
        data = self._file.read(size)
        self._moved(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def manifest_of(stored: Sequence[StoredObject]) -> bytes:
    """The list of uploaded files: a JSON object a line, in the order of the uploads.

    The MD5 sum is base64 of base64: hosted builds encode the text that gsutil prints.

    Source: semantics 6.6, as a Go program encodes its structs.
    """
    return b"".join(_manifest_line(one) for one in stored)


def _manifest_line(stored: StoredObject) -> bytes:
    value = base64.b64encode(stored.md5.encode()).decode()
    entry = {
        "location": stored.pinned_url,
        "file_hash": [{"file_hash": [{"type": _MD5, "value": value}]}],
    }
    text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
    # Go escapes these although JSON does not require it.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode() + b"\n"


def _md5_of(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while data := file.read(_PIECE_BYTES):
            digest.update(data)
    return base64.b64encode(digest.digest()).decode()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _upload_error(message: str, error: StorageError | UploadError) -> UploadError:
    return UploadError(message, unauthorized=error.unauthorized, hint=error.hint)


WORKSPACE = "/workspace"
_WILDCARDS = "*?["
_ANY_FOLDERS = "**"


class ObjectGlob:
    """One path of ``artifacts.objects``. Immutable.

    Attributes:
        text: as the config says it.
        folder: the part without wildcards, relative to the workspace; empty for its root. Of a
            path without wildcards: all of it.
        literal: whether the path has no wildcards.
    """

    def __init__(self, text: str, *, workdir: str = WORKSPACE) -> None:
        """Take a path.

        Args:
            text: relative to ``workdir``, or absolute.
            workdir: where the build works: ``/workspace`` or a folder below.

        Raises:
            UploadError: the path leaves the workspace.
        """
        path = posixpath.normpath(posixpath.join(workdir, text))
        inside = path.startswith(f"{WORKSPACE}/")
        if not inside:
            raise UploadError(f"{text} is not a path below {WORKSPACE}")
        names = path.removeprefix(f"{WORKSPACE}/").split("/")
        wild = [index for index, name in enumerate(names) if _is_wild(name)]
        self.text = text
        self.literal = not wild
        fixed = names[: wild[0]] if wild else names
        self.folder = "/".join(fixed)
        self._names = _compiled(names[len(fixed) :])
        self._keeps_folders = None in self._names

    def matches(self, path: str) -> bool:
        """Return whether the glob matches a path relative to `folder`. Not for literal globs."""
        # The positions in the glob that the names so far can have led to.
        reached = self._closed({0})
        for name in path.split("/"):
            following: set[int] = set()
            for position in reached:
                if position == len(self._names):
                    continue
                wanted = self._names[position]
                if wanted is None:
                    following.add(position)
                elif wanted.fullmatch(name):
                    following.add(position + 1)
            reached = self._closed(following)
            if not reached:
                return False
        return len(self._names) in reached

    def object_name(self, path: str) -> str:
        """Return the file's name in the bucket, given its path relative to `folder`."""
        return path if self._keeps_folders else posixpath.basename(path or self.folder)

    def _closed(self, positions: set[int]) -> set[int]:
        """Return the positions, and those that are reached if each ``**`` matches no folder."""
        closed = set(positions)
        for position in positions:
            while position < len(self._names) and self._names[position] is None:
                position += 1
                closed.add(position)
        return closed


def _is_wild(name: str) -> bool:
    return any(character in name for character in _WILDCARDS)


def _compiled(names: list[str]) -> tuple[re.Pattern[str] | None, ...]:
    """Return a pattern for each name of the glob; None for ``**``."""
    compiled: list[re.Pattern[str] | None] = []
    for name in names:
        while name.startswith(_ANY_FOLDERS):
            compiled.append(None)
            name = name[2:]
            if name and not name.startswith("*"):
                name = f"*{name}"
        if name:
            hidden = None in compiled or name.startswith(".")
            compiled.append(re.compile(("" if hidden else r"(?!\.)") + _pattern(name), re.DOTALL))
    if compiled and compiled[-1] is None:
        compiled.append(re.compile(".+", re.DOTALL))
    return tuple(compiled)


def _pattern(name: str) -> str:
    try:
        return translate_glob(name.replace("\\", "\\\\"), across_directories=False)
    except BadPattern:  # a bracket that is never closed is just a bracket
        return translate_glob(re.sub(r"([\\\[])", r"\\\1", name), across_directories=False)
