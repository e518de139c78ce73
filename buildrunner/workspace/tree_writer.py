"""Writes the members of an archive into a folder of this machine.

The result equals that of sending the members to the engine: owners, modes and times; folders that
no member names; the last of several members of one name.

`archives.members` has checked the members. The writer itself never leaves the folder either: it
resolves every name in an open folder and follows no links.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from buildrunner.archives.members import DIRECTORY, HARD_LINK, REGULAR, Member, MemberError, Members
from buildrunner.errors import SourceError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IMPLIED_MODE = 0o755
_PATH_BYTES = 4094  # the longest path that the engine supports
_OPEN_FOLDERS = 128
_LAST_INSTANT_NS = 2**63 - 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)  # a file or a link is in the path


def write_tree(root: int, members: Members) -> None:
    """Write all members.

    Args:
        root: descriptor of an empty folder, to which no other user has access.
        members: members from `archives.reader.safe_members`. Its errors are not caught.

    Raises:
        MemberError: a member can't be written. The members before it stay on the disk.
        SourceError: the disk is full.
    """
    tree = _Tree(root)
    try:
        for member, content in members:
            if member.kind == REGULAR:
                tree.add_file(member, content)
            else:
                tree.add(member)
        tree.finish_folders()
    finally:
        tree.close()


class _Tree:
    def __init__(self, root: int) -> None:
        self._root = root
        self._open_folders = {"": root}
        self._named_folders: dict[str, Member] = {}
        # Every path that was created. It may have been removed since with its folder.
        self._folders: set[str] = set()
        self._others: set[str] = set()

    def add(self, member: Member) -> None:
        """Create a folder or a link."""
        with _writing(member):
            if member.kind == DIRECTORY:
                if member.path in self._others:
                    self._make_way(member.path)
                self._folder(member.path)
                self._named_folders[member.path] = member
                return
            folder, name = self._place(member)
            if member.kind == HARD_LINK:
                self._link(member)
            else:
                os.symlink(member.link_target, name, dir_fd=folder)
                _set_time_of_link(folder, name, member)

    def add_file(self, member: Member, content: Iterable[bytes]) -> None:
        """Create a file."""
        with _writing(member):
            folder, name = self._place(member)
            file = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
            try:
                for data in content:
                    _write(file, data)
                os.fchmod(file, member.mode)
                _set_time(file, member)
            finally:
                os.close(file)

    def finish_folders(self) -> None:
        """Set modes and times of folders, the deepest first.

        A mode can prevent writing in a folder, and each new file changes its time.
        """
        for path in sorted(self._named_folders, reverse=True):
            member = self._named_folders[path]
            with _writing(member):
                try:
                    folder = self._folder(path, make=False)
                except FileNotFoundError:  # a later member replaced it
                    continue
                except OSError as error:
                    if error.errno not in _NO_FOLDER:
                        raise
                    continue
                os.fchmod(folder, member.mode)
                _set_time(folder, member)

    def close(self) -> None:
        """Close all open folders but the root."""
        for path, folder in self._open_folders.items():
            if path:
                os.close(folder)
        self._open_folders = {"": self._root}

    def _link(self, member: Member) -> None:
        """Create a hard link. As with the engine, its own mode and time are ignored."""
        target_folder, _, target = member.link_target.rpartition("/")
        folder, _, name = member.path.rpartition("/")
        source = os.dup(self._folder(target_folder))  # opening the other may close it
        try:
            to = self._folder(folder)
            os.link(target, name, src_dir_fd=source, dst_dir_fd=to, follow_symlinks=False)
        finally:
            os.close(source)

    # --- places ----------------------------------------------------------------------------------

    def _place(self, member: Member) -> tuple[int, str]:
        """Return the folder and name for a new member that is no folder; the name is free."""
        path = member.path
        if len(path) > _PATH_BYTES // 4 and len(os.fsencode(path)) > _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if path in self._folders or path in self._others:
            self._make_way(path)
        self._others.add(path)
        folder, _, name = path.rpartition("/")
        return self._folder(folder), name

    def _make_way(self, path: str) -> None:
        """Remove the earlier member at ``path``."""
        self._others.discard(path)
        self._folders.discard(path)
        folder, _, name = path.rpartition("/")
        parent = self._folder(folder)
        try:
            status = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        try:
            shutil.rmtree(name, dir_fd=parent)
        except RecursionError:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from None
        self.close()  # some may have been removed

    def _folder(self, path: str, *, make: bool = True) -> int:
        """Return the descriptor of a folder, which is created if missing.

        A later call may close it.
        """
        found = self._open_folders.get(path)
        if found is not None:
            return found
        if len(os.fsencode(path)) > _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if len(self._open_folders) >= _OPEN_FOLDERS:
            self.close()
        missing = []
        above = path
        while above not in self._open_folders:
            missing.append(above)
            above = above.rpartition("/")[0]
        folder = self._open_folders[above]
        for step in reversed(missing):
            try:
                below = self._enter(folder, step, make)
            finally:
                if step != missing[-1]:
                    os.close(folder)
            folder = below
        self._open_folders[path] = folder
        return folder

    def _enter(self, parent: int, path: str, make: bool) -> int:
        name = path.rpartition("/")[2]
        try:
            return os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        os.mkdir(name, _IMPLIED_MODE, dir_fd=parent)
        self._others.discard(path)
        self._folders.add(path)
        folder = os.open(name, _FOLDER, dir_fd=parent)
        os.fchmod(folder, _IMPLIED_MODE)  # whatever the umask
        return folder


def _write(file: int, data: bytes) -> None:
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, memoryview(data)[written:])


def _set_time(place: int, member: Member) -> None:
    """Set the time of a file or folder. Like the engine, use the epoch for a time out of range."""
    instant = member.mtime_ns if 0 <= member.mtime_ns <= _LAST_INSTANT_NS else 0
    os.utime(place, ns=(instant, instant))


def _set_time_of_link(folder: int, name: str, member: Member) -> None:
    """Set the time of a symbolic link, which may be before the epoch."""
    instant = member.mtime_ns if abs(member.mtime_ns) <= _LAST_INSTANT_NS else 0
    os.utime(name, ns=(instant, instant), dir_fd=folder, follow_symlinks=False)


@contextmanager
def _writing(member: Member) -> Iterator[None]:
    """Turn an `OSError` into an error about the member."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        if error.errno in _NO_ROOM:
            raise no_room(f"{member.path!r}: {reason}") from error
        if error.errno in _NO_FOLDER:
            reason = "lies below what is no folder"
        raise MemberError("the source can't be unpacked", member.path, f": {reason}") from error


def no_room(reason: object) -> SourceError:
    """Return the error for a full disk."""
    return SourceError(
        f"the source can't be unpacked: the engine's disk is full ({reason})",
        hint="`buildrunner doctor` shows what takes space",
    )
