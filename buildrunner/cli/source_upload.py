"""A source on its way to a server: only what the server lacks travels."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from buildrunner.cli.upload_bar import upload_bar
from buildrunner.client_sources import MissingBlobs
from buildrunner.errors import SourceError, UsageError
from buildrunner.sources.local_folder import LocalFolder, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildrunner.client import Document, ServerClient

    Say = Callable[[str], object]

_AT_ONCE = 8
_TRIES = 3


def upload_folder(client: ServerClient, folder: str, *, ignore_file: str, say: Say) -> Document:
    """Upload a folder; the ``source`` for the Build.

    Modes, times, symbolic links and empty folders travel, too; what the ignore rules leave out
    does not.

    Raises:
        UsageError: no such folder, or no such ``ignore_file``.
        SourceError: a file can't be read, or changes all the time.
    """
    local = LocalFolder(folder, ignore_file=ignore_file)
    for line in local.describe(local.scan()):
        say(line)
    entries = list(_entries(local))
    paths = {
        entry["sha256"]: os.path.join(local.root, path)
        for path, entry in entries
        if "sha256" in entry
    }
    return _upload(client, paths, {"files": [entry for _, entry in entries]}, say)


def upload_archive(client: ServerClient, path: str, *, say: Say) -> Document:
    """Upload an archive as it is; the ``source`` for the Build.

    Raises:
        SourceError: it can't be read.
    """
    with _readable(path):
        sha256 = _sum(path)
    body = {"archive": {"sha256": sha256, "name": os.path.basename(path)}}
    return _upload(client, {sha256: path}, body, say)


def _entries(local: LocalFolder) -> Iterator[tuple[str, Document]]:
    """Paths and the manifest, in the order of the walk; hashes several files at a time."""
    from concurrent.futures import ThreadPoolExecutor

    found = [(path, status) for path, status in local.entries() if path != "."]
    files = [path for path, status in found if stat.S_ISREG(status.st_mode)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sums = dict(
            zip(files, pool.map(lambda path: _hashed(local.root, path), files), strict=True)
        )
    for path, status in found:
        entry: dict[str, Any] = {
            **_named("path", path),
            "mode": stat.S_IMODE(status.st_mode),
            "mtimeNs": status.st_mtime_ns,
        }
        if stat.S_ISDIR(status.st_mode):
            entry["directory"] = True
        elif stat.S_ISLNK(status.st_mode):
            with _readable(path):
                entry |= _named("link", os.readlink(os.path.join(local.root, path)))
        elif (hashed := sums[path]) is None:
            continue  # it vanished
        else:
            entry["sha256"], entry["size"] = hashed
        yield path, entry


def _hashed(root: str, path: str) -> tuple[str, int] | None:
    try:
        with _readable(path):
            return _sum_and_size(os.path.join(root, path))
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _upload(client: ServerClient, paths: dict[str, str], body: Document, say: Say) -> Document:
    missing = client.sources.missing_blobs(paths)
    for _ in range(_TRIES - 1):
        _upload_blobs(client, {sha256: paths[sha256] for sha256 in missing}, len(paths), say)
        try:
            return client.sources.make_source(body)
        except MissingBlobs as error:
            missing = set(error.sha256s)  # the server made room meanwhile
    return client.sources.make_source(body)


def _upload_blobs(client: ServerClient, paths: dict[str, str], of: int, say: Say) -> None:
    from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed

    sizes = {}
    for sha256, path in paths.items():
        with _readable(path):
            sizes[sha256] = os.stat(path).st_size
    total = sum(sizes.values())
    if not paths:
        say(f"Uploading nothing: [{client.url}] has all of it")
        return
    noun = "file" if of == 1 else "files"
    say(f"Uploading {len(paths)} of {of} {noun} ({format_size(total)}) to [{client.url}]")
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
    stopped = threading.Event()
    with upload_bar(total) as moved:

        def sent(count: int) -> None:
            if stopped.is_set():
                raise CancelledError
            moved(count)

        jobs = [
            pool.submit(_upload_blob, client, sha256, path, sizes[sha256], sent)
            for sha256, path in sorted(paths.items(), key=lambda item: -sizes[item[0]])
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except Exception:
            # The others use the client, which its owner may close now: their next piece ends them.
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:  # Ctrl-C does not wait for the rest
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _upload_blob(
    client: ServerClient, sha256: str, path: str, size: int, moved: Callable[[int], object]
) -> None:
    with _readable(path), open(path, "rb") as file:
        try:
            client.sources.upload_blob(sha256, file, size, moved)
        except UsageError as error:
            if _sum(path) != sha256:
                raise SourceError(
                    f"{path} changed while it was uploaded", hint="submit again"
                ) from error
            raise


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror or error}") from error


def _sum(path: str) -> str:
    return _sum_and_size(path)[0]


def _sum_and_size(path: str) -> tuple[str, int]:
    with open(path, "rb", opener=_careful) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def _careful(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that took the file's place must not hang


def _named(field: str, name: str) -> Document:
    """A name as a manifest has it: JSON holds no bytes that are not UTF-8."""
    from base64 import b64encode

    try:
        name.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(name)
        return {field: raw.decode(errors="replace"), f"{field}Bytes": b64encode(raw).decode()}
    return {field: name}
