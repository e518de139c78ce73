"""Checks whether an engine shares our files, so that we can write into its volumes."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from buildrunner.containers.protocol import EngineInfo
from buildrunner.errors import BuildrunnerError

# linux/fs.h; on an architecture with other numbers, the kernel reports an unknown call
_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_TOP_OF_HIERARCHY = 0x20000
_FLAGS = struct.Struct("=i4x")
_SELINUX = "/sys/fs/selinux/enforce"


class FilesNotShared(BuildrunnerError):
    """Raised if the engine has other files, or maps their owners; the message says why."""


def check_engine(info: EngineInfo) -> None:
    """Raise an error for engines that don't share our files exactly.

    Raises:
        FilesNotShared: the engine does not share them, or we are not root.
    """
    if (os.geteuid(), os.getegid()) != (0, 0):
        raise FilesNotShared("only root may write among the engine's files")
    if not info.local or info.rootless:
        raise FilesNotShared("the engine does not share our file system")
    if os.path.exists(_SELINUX):
        raise FilesNotShared("SELinux keeps containers from our files")
    try:
        peer = _peer_of(info.socket_path)
        shares_mounts = os.path.samefile(f"/proc/{peer}/ns/mnt", "/proc/self/ns/mnt")
    except OSError as error:  # the process is in another namespace, or the kernel hides it from us
        raise FilesNotShared(f"the engine's mounts can't be read: {error}") from error
    if not shares_mounts:
        raise FilesNotShared("the engine has mounts of its own")


def _peer_of(socket_path: str) -> int:
    """Return the id of the process that listens on a socket; 0 if outside our process namespace.

    Raises:
        OSError: no process listens there, or the kernel does not name it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(socket_path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    peer: int = struct.unpack("3i", credentials)[0]
    return peer


def volume_folder(info: EngineInfo, name: str) -> str:
    """Return the engine's folder of a volume: its mount point and our files beside it."""
    return os.path.join(info.data_root, "volumes", name)


def check_volume(mount_point: str, folder: str) -> None:
    """Raise an error for engines that store volumes elsewhere, or for a user other than root.

    Args:
        mount_point: mount point that the engine reports.
        folder: folder that `volume_folder` returned.

    Raises:
        FilesNotShared: the folder is not as expected.
        OSError: the folder can't be read.
    """
    if os.path.dirname(mount_point.rstrip("/")) != folder:
        raise FilesNotShared("the engine keeps volumes in an unexpected place")
    status = os.stat(mount_point)
    if (status.st_uid, status.st_gid) != (0, 0) or status.st_mode & stat.S_ISGID:
        raise FilesNotShared("the engine maps users")


def open_volume(info: EngineInfo, name: str, mount_point: str) -> int:
    """Open the folder of a plain volume, to write files for the steps.

    Returns:
        The descriptor of the folder.

    Raises:
        FilesNotShared: the caller must send the files to the engine instead.
    """
    check_engine(info)
    try:
        check_volume(mount_point, volume_folder(info, name))
        return os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FilesNotShared(f"{mount_point}: {error.strerror}") from error


def open_folder(path: str) -> int:
    """Open a folder of this machine that steps can change, for ``dir_fd``; links are not followed.

    A step that controls its engine can replace any folder of a volume by a link.

    Raises:
        OSError: the folder does not exist, or a link is in the path.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if not os.path.isabs(path):
        raise NotADirectoryError(errno.ENOTDIR, "not an absolute path", path)
    folder = os.open("/", flags)
    for name in path.strip("/").split("/"):
        above = folder
        try:
            folder = os.open(name, flags, dir_fd=above)
        finally:
            os.close(above)
    return folder


def lay_apart(mount_point: str) -> None:
    """Place a new volume apart from others if the file system is ext4. Raises no errors.

    ext4 places a new file near its folder and that near its parent, so that all volumes of an
    engine are in one place. There, each new file skips all inodes that were freed in the last
    minutes: after many builds, creating 5,000 files takes seconds instead of tenths.

    Args:
        mount_point: the volume's folder on the engine's machine. It is not moved if that is another
            machine, if access is denied, if it is not empty, or if it was moved before: a
            container may use it then.
    """
    with suppress(OSError):
        if not os.path.exists(_SELINUX):  # new files there would lack the label of a volume
            _lay_apart(os.path.dirname(mount_point), os.path.basename(mount_point))


def _lay_apart(parent_path: str, name: str) -> None:
    parent = os.open(parent_path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.lstat(name, dir_fd=parent)
        if not _spread_folders(parent):
            return
        with _folder_anywhere(parent, name) as folder:
            # Not by its name, which a step could give to a link.
            opened = os.open(
                folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
            )
            try:
                os.fchown(opened, status.st_uid, status.st_gid)
                os.fchmod(opened, stat.S_IMODE(status.st_mode))
            finally:
                os.close(opened)
    finally:
        os.close(parent)


def folder_apart(parent_path: str, name: str) -> None:
    """Create a folder with mode 0700, apart from others. See `lay_apart`.

    Raises:
        OSError: the folder can't be created.
    """
    parent = os.open(parent_path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            _spread_folders(parent)
        with _folder_anywhere(parent, name):
            pass
    finally:
        os.close(parent)


@contextmanager
def _folder_anywhere(parent: int, name: str) -> Iterator[str]:
    """Create a folder with a random name, which decides its place, and rename it afterwards."""
    first = f".{os.urandom(16).hex()}"
    os.mkdir(first, 0o700, dir_fd=parent)
    try:
        yield first
        os.rename(first, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        os.rmdir(first, dir_fd=parent)
        raise


def _spread_folders(folder: int) -> bool:
    """Have ext4 place new folders in this one far apart (``chattr +T``).

    Args:
        folder: descriptor of the folder.

    Returns:
        Whether this changed the folder.

    Raises:
        OSError: the file system does not support it, or we don't own the folder.
    """
    (flags,) = _FLAGS.unpack(fcntl.ioctl(folder, _GET_FLAGS, bytes(_FLAGS.size)))
    if flags & _TOP_OF_HIERARCHY:
        return False
    fcntl.ioctl(folder, _SET_FLAGS, _FLAGS.pack(flags | _TOP_OF_HIERARCHY))
    return True
