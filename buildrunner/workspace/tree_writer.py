"""Writes the members of an archive into a folder of this machine, files in several threads.

Making a file takes longer than all else that unpacking does, and files can be made side by side.
The outcome is what the engine makes of the same members when they are sent to it: owners, modes and
times; folders that no member names; what comes of a name that occurs twice.

`sources.archive_rules` has checked the members. Here, too, nothing leaves the folder: every name is
looked up in a folder that is open, and no link is followed.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterable
from functools import partial

from buildrunner.archives.members import Member, Members
from buildrunner.archives.tar_writer import DIRECTORY, HARD_LINK, REGULAR
from buildrunner.workspace.file_writes import (
    NO_FOLDER,
    new_file,
    set_mode_and_time,
    set_time,
    set_time_of_link,
    write_piece,
    writing,
)
from buildrunner.workspace.write_threads import NewFile, WriteThreads

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IMPLIED_MODE = 0o755
_PATH_BYTES = 4094  # the longest that the engine can reach

_OPEN_FOLDERS = 128
_OPEN_FILES = 16
_PIECES_FROM_BYTES = 1024 * 1024


def write_tree(root: int, members: Members) -> None:
    """Write all members.

    Args:
        root: descriptor of an empty folder, to which nobody else has access.
        members: as `sources.archive.safe_members` lets them pass; what it raises comes out.

    Raises:
        SourceError: they can't be written. What was written so far stays.
    """
    tree = _Tree(root)
    try:
        with WriteThreads(root) as threads:
            tree.threads = threads
            for member, content in members:
                if member.kind == REGULAR:
                    tree.add_file(member, content)
                else:
                    tree.add(member)
            tree.finish()
    finally:  # no thread writes any more
        tree.close()


class _Tree:
    threads: WriteThreads

    def __init__(self, root: int) -> None:
        self._root = root
        self._open_folders = {"": root}
        self._open_files: list[tuple[Member, int]] = []
        self._hard_links: list[Member] = []
        self._folder_times: dict[str, Member] = {}
        # What was ever made at a path; it may have been removed since with the folder it was in.
        self._folders: set[str] = set()
        self._others: set[str] = set()

    def add(self, member: Member) -> None:
        """Make a folder or a link."""
        with writing(member):
            if member.kind == DIRECTORY:
                if member.path in self._others:
                    self._make_way(member.path)
                os.fchmod(self._folder(member.path), member.mode)
                self._folder_times[member.path] = member
                return
            folder, name = self._place(member)
            if member.kind == HARD_LINK:
                self._hard_links.append(member)  # the file may be in the making
            else:
                os.symlink(member.link_target, name, dir_fd=folder)
                set_time_of_link(folder, name, member)

    def add_file(self, member: Member, content: Iterable[bytes]) -> None:
        """Make a file; a large one in pieces."""
        with writing(member):
            folder, name = self._place(member)
        pieces, size = [], 0
        rest = iter(content)
        for data in rest:
            pieces.append(data)
            size += len(data)
            if size >= _PIECES_FROM_BYTES:
                break
        else:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            folder_path = member.path.rpartition("/")[0]
            self.threads.put_file(NewFile(folder, folder_path, name, member, data))
            return
        if len(self._open_files) >= _OPEN_FILES:
            self._settle()
        with writing(member):
            file = new_file(folder, name)
        self._open_files.append((member, file))
        offset = 0
        for data in itertools.chain(pieces, rest):
            self.threads.put(partial(write_piece, file, member, data, offset), ~file, len(data))
            offset += len(data)

    def finish(self) -> None:
        """Do all that has to wait for the last member."""
        self._settle()
        for path, member in self._folder_times.items():
            with writing(member):
                try:
                    folder = self._folder(path, make=False)
                except FileNotFoundError:  # a later member took its place
                    continue
                except OSError as error:
                    if error.errno not in NO_FOLDER:
                        raise
                    continue
                set_time(folder, member)

    def close(self) -> None:
        """Close what is open. No thread may be at work."""
        for _, file in self._open_files:
            os.close(file)
        self._open_files.clear()
        self._close_folders()

    def _settle(self) -> None:
        """Have on the disk all that came so far."""
        self.threads.settle()
        while self._open_files:
            member, file = self._open_files.pop()
            with writing(member):
                try:
                    set_mode_and_time(file, member)
                finally:
                    os.close(file)
        for member in self._hard_links:
            with writing(member):
                self._link(member)
        self._hard_links.clear()

    def _link(self, member: Member) -> None:
        """Make a hard link. As with the engine, its own mode and time mean nothing."""
        target_folder, _, target = member.link_target.rpartition("/")
        folder, _, name = member.path.rpartition("/")
        source = os.dup(self._folder(target_folder))  # it may be closed to open the other
        try:
            to = self._folder(folder)
            os.link(target, name, src_dir_fd=source, dst_dir_fd=to, follow_symlinks=False)
        finally:
            os.close(source)

    # --- places ----------------------------------------------------------------------------------

    def _place(self, member: Member) -> tuple[int, str]:
        """The folder and name where something that is no folder will be; nothing is there."""
        path = member.path
        if len(path) > _PATH_BYTES // 4 and len(os.fsencode(path)) > _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if path in self._folders or path in self._others:
            self._make_way(path)
        self._others.add(path)
        folder, _, name = path.rpartition("/")
        return self._folder(folder), name

    def _make_way(self, path: str) -> None:
        """Remove what an earlier member made at ``path``."""
        self._settle()
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
        self._close_folders()  # some may be gone
        self.threads.folders_removed()

    def _folder(self, path: str, *, make: bool = True) -> int:
        """Descriptor of a folder, which is made if need be. It stays open, but not for ever."""
        found = self._open_folders.get(path)
        if found is not None:
            return found
        if len(os.fsencode(path)) > _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if len(self._open_folders) >= _OPEN_FOLDERS:
            self.threads.settle()
            self._close_folders()
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
        if path in self._others:
            self.threads.settle()  # if a file is in the way, it is there
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

    def _close_folders(self) -> None:
        for path, folder in self._open_folders.items():
            if path:
                os.close(folder)
        self._open_folders = {"": self._root}
