"""The few mount system calls that Python has no names for. Linux, root only.

No mount is attached to a folder of this machine: a mount lives as long as its file descriptor, and
the kernel removes it when the process ends. A mount that is attached in a container is removed with
the container.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

# These numbers are the same on every architecture but alpha.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_MOUNT_SETATTR = 442

_SET_SECUREBITS = 28
_KEEP_CAPABILITIES = 4  # SECBIT_NO_SETUID_FIXUP

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_CLOEXEC = os.O_CLOEXEC
_OPEN_TREE_CLONE = 1
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_SET_STRING = 1
_CREATE = 6
_MOVE_EMPTY_PATH = 4
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_ATTR_READ_ONLY = 0x1
_ATTR_IDMAP = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_unattached(kind: str, options: Mapping[str, str], *, owner: int = 0) -> int:
    """Mount a file system without attaching it to a folder.

    Args:
        kind: type of the file system.
        options: options of the file system.
        owner: the uid and gid that create files for the file system's own use. An overlay of
            shifted layers (`clone_shifted`) needs ids that the shift maps.

    Returns:
        A descriptor of its root (only ``/proc/self/fd/N`` reads it); closing it unmounts.

    Raises:
        OSError: the kernel does not support it or refuses.
    """
    if not owner:
        return _mount_unattached(kind, options)

    def mount() -> int:  # these settings belong to the thread, and end with it
        _checked(_libc.prctl(_SET_SECUREBITS, _KEEP_CAPABILITIES, 0, 0, 0))
        _libc.setfsgid(owner)
        _libc.setfsuid(owner)
        return _mount_unattached(kind, options)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(mount).result()


def _mount_unattached(kind: str, options: Mapping[str, str]) -> int:
    context = _system_call(_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            _system_call(_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(value), 0)
        _system_call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _system_call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def attach_in_container(mount: int, process: int, path: str) -> None:
    """Attach an unattached mount at a folder of a running container.

    Args:
        mount: descriptor of the mount; may be closed afterwards.
        process: id of a process in the container.
        path: absolute path of the folder, as the container sees it.

    Raises:
        OSError: the kernel does not support it or refuses.
    """
    import threading

    namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    failures: list[OSError] = []

    def enter_and_attach() -> None:  # the namespace belongs to the thread, and ends with it
        try:
            _checked(_libc.unshare(_CLONE_FS))
            _checked(_libc.setns(namespace, _CLONE_NEWNS))
            _system_call(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(path), _MOVE_EMPTY_PATH)
        except OSError as error:
            failures.append(error)

    try:
        thread = threading.Thread(target=enter_and_attach)
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    if failures:
        raise failures[0]


def namespace_process(process: int, kind: str) -> int:
    """Return the first descendant of ``process`` in another namespace of ``kind``, or ``process``.

    Args:
        process: id of a process of this machine.
        kind: name of a kind of namespace in ``/proc/PID/ns``: ``user``, ``net``, ``mnt``, ...
    """
    with contextlib.suppress(OSError):  # it ended meanwhile
        namespace = os.readlink(f"/proc/{process}/ns/{kind}")
        waiting = [process]
        while waiting:
            one = waiting.pop(0)
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{one}/ns/{kind}") != namespace:
                    return one
                with open(f"/proc/{one}/task/{one}/children", encoding="ascii") as children:
                    waiting += map(int, children.read().split())
    return process


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def clone_as_root(folder: str, uid: int, gid: int) -> int:
    """Return a read-only view of ``folder`` in which root owns the files of ``uid`` and ``gid``.

    The folder itself does not change. Mounts below it are not part of the view.

    Returns:
        A descriptor of the view; ``/proc/PID/fd/N`` names it for others.

    Raises:
        OSError: the kernel (before 5.12) or the file system does not support it.
    """
    view = _system_call(_OPEN_TREE, _AT_FDCWD, os.fsencode(folder), _OPEN_TREE_CLONE | _CLOEXEC)
    try:
        namespace = _user_namespace(uid, gid)
        try:
            attributes = struct.pack("=4Q", _ATTR_IDMAP | _ATTR_READ_ONLY, 0, 0, namespace)
            _system_call(_MOUNT_SETATTR, view, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        finally:
            os.close(namespace)
    except BaseException:
        os.close(view)
        raise
    return view


def clone_shifted(folder: str, process: int, *, owner: tuple[int, int] | None = None) -> int:
    """Return a view of ``folder`` with the owners that a process's user namespace gives its ids.

    Args:
        folder: path of the folder. Mounts below it are not part of the view.
        process: a process of this machine in that namespace.
        owner: uid and gid that own all files in the folder; these then belong to root of the
            namespace. Without it, each id belongs to the same id of the namespace.

    Returns:
        A descriptor of the view; ``/proc/PID/fd/N`` names it for others.

    Raises:
        OSError: the kernel (before 5.12; 5.19 below an overlay) or the file system does not
            support it.
    """
    view = _system_call(_OPEN_TREE, _AT_FDCWD, os.fsencode(folder), _OPEN_TREE_CLONE | _CLOEXEC)
    try:
        if owner is None:
            namespace = os.open(f"/proc/{process}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        else:
            namespace = _user_namespace(*owner, root=root_of(process))
        try:
            attributes = struct.pack("=4Q", _ATTR_IDMAP, 0, 0, namespace)
            _system_call(_MOUNT_SETATTR, view, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        finally:
            os.close(namespace)
    except BaseException:
        os.close(view)
        raise
    return view


def root_of(process: int) -> int:
    """Return the id on this machine of root of a process's user namespace. Raises OSError."""
    with open(f"/proc/{process}/uid_map", encoding="ascii") as mapping:
        return int(mapping.read().split()[1])


def _user_namespace(uid: int, gid: int, *, root: int = 0) -> int:
    """Return the descriptor of a user namespace that maps ``uid`` and ``gid`` to ``root``.

    A namespace is created by a process. That process is a shell rather than a fork of this one:
    a fork would copy the locks of other threads.
    """
    ours, theirs = os.pipe()
    keep_alive, release = os.pipe()
    try:
        process = os.posix_spawnp(
            "unshare",
            ["unshare", "--user", "sh", "-c", "echo; read _"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, keep_alive, 0),
                (os.POSIX_SPAWN_DUP2, theirs, 1),
                (os.POSIX_SPAWN_CLOSE, release),
            ],
        )
        os.close(theirs)
        theirs = -1
        try:
            if not os.read(ours, 1):
                raise OSError("user namespaces can't be made")
            for kind, number in (("uid", uid), ("gid", gid)):
                with open(f"/proc/{process}/{kind}_map", "w", encoding="ascii") as mapping:
                    mapping.write(f"{number} {root} 1")
            return os.open(f"/proc/{process}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(release)
            release = -1
            os.waitpid(process, 0)
    finally:
        for descriptor in (ours, theirs, keep_alive, release):
            if descriptor >= 0:
                os.close(descriptor)
