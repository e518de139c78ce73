"""The server's folder: where things are in it, and the lock that one server holds on it.

``logs/ID`` is a build's log for good; ``run/ID`` is what its process needs while it runs and goes
with its end. Only the process that holds the build's lease writes in either.
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
    """Paths in the server's folder. Makes nothing until asked."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def log_folder(self, build_id: str) -> str:
        """Log, index and events of a build."""
        return log_folder(self.path, build_id)

    def run_folder(self, build_id: str) -> str:
        """The folder of a build's process: ``execute.log``, notes, sockets."""
        return os.path.join(self.path, "run", build_id)

    def make_run_folder(self, build_id: str) -> str:
        """The same, made if it was not there.

        Raises:
            StoreError: it can't be made.
        """
        folder = self.run_folder(build_id)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error
        return folder

    def run_ids(self) -> tuple[str, ...]:
        """Builds that have a run folder."""
        try:
            return tuple(sorted(os.listdir(os.path.join(self.path, "run"))))
        except FileNotFoundError:
            return ()

    def drop_run_folder(self, build_id: str) -> None:
        """Remove a build's run folder. Idempotent."""
        remove_tree(self.run_folder(build_id))

    def remove_build(self, build_id: str) -> None:
        """Remove all files of a build that was deleted: log, events, workspace. Idempotent.

        Raises:
            StoreError: some can't be removed.
        """
        import shutil

        if not _BUILD_ID.fullmatch(build_id):  # it becomes part of a path
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
        """The name of this folder's server on the engine; made at the first call.

        Raises:
            StoreError: it can't be kept.
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
        """Under which this folder's worker claims builds: the same after a restart.

        Raises:
            StoreError: see `server_id`.
        """
        import socket

        return f"{socket.gethostname()}/{self.server_id()}"

    def labels(self) -> dict[str, str]:
        """The labels of everything that this folder's server makes on an engine.

        Not the label of an owning process: the process of a build may die and another go on with
        its containers, and nobody's sweep may take them meanwhile.
        """
        return {LABEL_SERVER: self.server_id()}

    def report_crash(self, build_id: str, error: BaseException) -> str:
        """Keep the traceback of a bug that ended a build, for whoever mends it; its path."""
        import traceback

        path = os.path.join(self.path, "crashes", f"{build_id}.txt")
        text = "".join(traceback.format_exception(error))
        with suppress(OSError, StoreError):  # the log of the process has it, too
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_durably(path, text.encode("utf-8", "replace"))
        return path

    def free_bytes(self) -> int:
        """Space that is left on its disk."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def lock(self) -> FolderLock:
        """Be the one server of this folder, until the lock is closed or the process ends.

        Raises:
            StoreError: another server is, or the folder can't be used.
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
    """Held until `close`; the kernel lets go of it when the process ends, however it does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go. Idempotent."""
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
    """Put a whole file in its place: all of it is there after a crash, or nothing.

    Raises:
        StoreError: it can't be written.
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
