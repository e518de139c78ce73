"""Whether an engine sees our files as we do, so that we may put some into its volumes."""

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

# linux/fs.h; where an architecture has other numbers, the kernel says that there is no such call
_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_TOP_OF_HIERARCHY = 0x20000
_FLAGS = struct.Struct("=i4x")
_SELINUX = "/sys/fs/selinux/enforce"


class FilesNotShared(BuildrunnerError):
    """The engine has other files, or maps who owns them; the message says why we think so."""


def check_engine(info: EngineInfo) -> None:
    """Refuse engines that don't see our files just as we see them.

    Raises:
        FilesNotShared: this one does not, or we are not root.
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
    except OSError as error:  # no such process in our namespace, or the kernel hides it from us
        raise FilesNotShared(f"the engine's mounts can't be read: {error}") from error
    if not shares_mounts:
        raise FilesNotShared("the engine has mounts of its own")


def _peer_of(socket_path: str) -> int:
    """Id of the process that listens on a socket; 0 if it is outside our process namespace.

    Raises:
        OSError: nothing listens there, or the kernel refuses to say who does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(socket_path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    peer: int = struct.unpack("3i", credentials)[0]
    return peer


def volume_folder(info: EngineInfo, name: str) -> str:
    """Return the engine's folder of a volume: its mount point, and our files beside it."""
    return os.path.join(info.data_root, "volumes", name)


def check_volume(mount_point: str, folder: str) -> None:
    """Refuse engines that keep volumes elsewhere, or for another user than root.

    Args:
        mount_point: as the engine says.
        folder: as `volume_folder` says.

    Raises:
        FilesNotShared: it is not what we expect.
        OSError: it can't be looked at.
    """
    if os.path.dirname(mount_point.rstrip("/")) != folder:
        raise FilesNotShared("the engine keeps volumes in an unexpected place")
    status = os.stat(mount_point)
    if (status.st_uid, status.st_gid) != (0, 0) or status.st_mode & stat.S_ISGID:
        raise FilesNotShared("the engine maps users")


def open_volume(info: EngineInfo, name: str, mount_point: str) -> int:
    """Open a plain volume's folder, to write into it what the steps will find there.

    Returns:
        Its descriptor.

    Raises:
        FilesNotShared: send it to the engine instead.
    """
    check_engine(info)
    try:
        check_volume(mount_point, volume_folder(info, name))
        return os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FilesNotShared(f"{mount_point}: {error.strerror}") from error


def open_folder(path: str) -> int:
    """Open a folder of this machine that steps can reach, for ``dir_fd``; no link is followed.

    A step that controls its engine can put a link in the place of any folder of a volume.

    Raises:
        OSError: there is no such folder, or a link is on the way.
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
    """Have a new volume lie where no other one does, if the file system is ext4. No error comes.

    It lays a new file near its folder and that near the one above, so that all volumes of an engine
    are in one place. There it passes, for every new file, over all that were removed in the last
    minutes: where builds come and go, 5,000 files take seconds instead of tenths.

    Args:
        mount_point: the volume's folder on the engine's machine. Nothing happens if that is another
            machine, if we may not, if something is in it, or if it was laid apart before: a
            container may have it then.
    """
    with suppress(OSError):
        if not os.path.exists(_SELINUX):  # what we make there would not be labelled as a volume is
            _lay_apart(os.path.dirname(mount_point), os.path.basename(mount_point))


def _lay_apart(parent_path: str, name: str) -> None:
    parent = os.open(parent_path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.lstat(name, dir_fd=parent)
        if not _spread_folders(parent):
            return
        with _folder_anywhere(parent, name) as folder:
            os.chown(folder, status.st_uid, status.st_gid, dir_fd=parent)
            os.chmod(folder, stat.S_IMODE(status.st_mode), dir_fd=parent)
    finally:
        os.close(parent)


def folder_apart(parent_path: str, name: str) -> None:
    """Make a folder, of mode 0700, where no other one lies. See `lay_apart`.

    Raises:
        OSError: it can't be made.
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
    """A folder that gets its name afterwards: where it lies is up to the one it begins with."""
    first = f".{os.urandom(16).hex()}"
    os.mkdir(first, 0o700, dir_fd=parent)
    try:
        yield first
        os.rename(first, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        os.rmdir(first, dir_fd=parent)
        raise


def _spread_folders(folder: int) -> bool:
    """Have ext4 lay the folders that will be made in this one far apart (``chattr +T``).

    Args:
        folder: its descriptor.

    Returns:
        Whether that is new.

    Raises:
        OSError: another file system, or it is not ours.
    """
    (flags,) = _FLAGS.unpack(fcntl.ioctl(folder, _GET_FLAGS, bytes(_FLAGS.size)))
    if flags & _TOP_OF_HIERARCHY:
        return False
    fcntl.ioctl(folder, _SET_FLAGS, _FLAGS.pack(flags | _TOP_OF_HIERARCHY))
    return True
