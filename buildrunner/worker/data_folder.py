"""The server's folder: the paths in it, and the lock that one server holds on it.

``logs/ID`` has a build's log permanently; ``run/ID`` has the files of its process and is removed
at its end. Only the process that holds the build's lease writes in either.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from types import TracebackType

from buildrunner.errors import StoreError
from buildrunner.file_trees import remove_tree
from buildrunner.logs.files.log_file import log_folder

LABEL_SERVER = "buildrunner.server"

_BUILD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_LOCK_NAME = "server.lock"
_ID_NAME = "server.id"


class DataFolder:
    """Paths in the server's folder. Folders are created on demand."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def log_folder(self, build_id: str) -> str:
        """Return the folder of a build's log, index and events."""
        return log_folder(self.path, build_id)

    def run_folder(self, build_id: str) -> str:
        """Return the folder of a build's process: ``execute.log``, notes, sockets."""
        return os.path.join(self.path, "run", build_id)

    def make_run_folder(self, build_id: str) -> str:
        """Return the folder of a build's process, and create it if missing.

        Raises:
            StoreError: the folder can't be created.
        """
        folder = self.run_folder(build_id)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error
        return folder

    def run_ids(self) -> tuple[str, ...]:
        """Return the ids of builds with a run folder."""
        try:
            return tuple(sorted(os.listdir(os.path.join(self.path, "run"))))
        except FileNotFoundError:
            return ()

    def drop_run_folder(self, build_id: str) -> None:
        """Remove a build's run folder. Idempotent."""
        remove_tree(self.run_folder(build_id))

    def remove_build(self, build_id: str) -> None:
        """Remove all files of a deleted build: log, events, workspace. Idempotent.

        Raises:
            StoreError: some files can't be removed.
        """
        import shutil

        if not _BUILD_ID.fullmatch(build_id):  # the id becomes part of a path
            raise StoreError(f"{build_id!r} is no id of a build: its files stay")
        crash = os.path.join(self.path, "crashes", f"{build_id}.txt")
        workspace = os.path.join(self.path, "workspaces", build_id)
        try:
            for folder in (self.log_folder(build_id), workspace):
                with suppress(FileNotFoundError):
                    shutil.rmtree(folder)
            with suppress(FileNotFoundError):
                os.unlink(crash)
        except OSError as error:
            raise _unusable(str(error.filename or self.path), error) from error

    def server_id(self) -> str:
        """Return the name of this folder's server on the engine; the first call creates it.

        Raises:
            StoreError: the name can't be stored.
        """
        path = os.path.join(self.path, _ID_NAME)
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except FileNotFoundError:
            return self._new_id(path)
        except OSError as error:
            raise _unusable(path, error) from error

    def worker_name(self) -> str:
        """Return the name under which this folder's worker claims builds, also after a restart.

        Raises:
            StoreError: see `server_id`.
        """
        import socket

        return f"{socket.gethostname()}/{self.server_id()}"

    def labels(self) -> dict[str, str]:
        """Return the labels of all resources of this folder's server on an engine.

        The label of an owning process is missing: if the process of a build dies, another process
        continues with its containers, and no sweep may remove them meanwhile.
        """
        return {LABEL_SERVER: self.server_id()}

    def report_crash(self, build_id: str, error: BaseException) -> str:
        """Store the traceback of a bug that ended a build, for a bug report; return its path."""
        import traceback

        path = os.path.join(self.path, "crashes", f"{build_id}.txt")
        text = "".join(traceback.format_exception(error))
        with suppress(OSError, StoreError):  # the log of the process also has it
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_durably(path, text.encode("utf-8", "replace"))
        return path

    def free_bytes(self) -> int:
        """Return the free space on the folder's disk."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def lock(self) -> FolderLock:
        """Lock the folder for this server, until the lock is closed or the process ends.

        Raises:
            StoreError: another server has the lock, or the folder can't be used.
        """
        path = os.path.join(self.path, _LOCK_NAME)
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 64).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StoreError(
                f"another server (process {holder or 'unknown'}) works in {self.path}",
                hint="stop it first, or give this one a folder of its own with --data",
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, error) from error
        return FolderLock(descriptor)

    def _new_id(self, path: str) -> str:
        import secrets

        new = secrets.token_hex(8)
        write_durably(path, new.encode())
        return new


class FolderLock:
    """The lock of a server's folder. The kernel releases it when the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


def write_durably(path: str, data: bytes) -> None:
    """Write a file atomically and durably: after a crash it is complete or unchanged.

    Raises:
        StoreError: the file can't be written.
    """
    fresh = f"{path}.new"
    try:
        with open(fresh, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unusable(path, error) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _unusable(path: str, error: OSError) -> StoreError:
    return StoreError(
        f"{path} can't be used: {error.strerror or error}",
        hint="choose a folder that you may write to, on a disk with space, with --data",
    )
