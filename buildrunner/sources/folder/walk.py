"""One pass over a local folder: what is in it, what the rules leave out, what can't be sent."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources.folder.ignore_rules import IgnoreRules

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Sent(msgspec.Struct, frozen=True):
    """A directory, regular file or symbolic link that belongs to the source.

    Attributes:
        path: relative to the root, ``/`` between names; undecodable bytes as surrogates.
        status: its own status (a link's, not its target's).
    """

    path: str
    status: os.stat_result


class LeftOut(msgspec.Struct, frozen=True):
    """Something in the folder that is not part of the source.

    Attributes:
        path: as in `Sent`; nothing below it is reported.
        reason: why, for a warning; empty when the ignore rules say so.
        vanished: it was there a moment ago.
    """

    path: str
    reason: str = ""
    vanished: bool = False


def walk_folder(
    root: str,
    rules: IgnoreRules,
    cancel: threading.Event | None = None,
    *,
    broken_links: bool = False,
) -> Iterator[Sent | LeftOut]:
    """Everything below ``root``, each directory before what it holds, names in order.

    Symbolic links are never followed; a broken one is left out, as gcloud leaves it out. So are
    sockets, pipes and devices. What vanishes while we look is left out with a reason. The root
    itself is not reported.

    Args:
        root: an existing folder.
        rules: what to leave out. What they ignore is not descended into.
        cancel: ends the walk early, without an error, when set.
        broken_links: they belong to the source, too.

    Raises:
        SourceError: something can't be read.

    Source: ``gcloud builds submit`` (symbolic links, broken links, ignored folders).
    """
    pending = [""]
    while pending:
        if cancel is not None and cancel.is_set():
            return
        directory = pending.pop()
        try:
            with os.scandir(os.path.join(root, directory) if directory else root) as listing:
                entries = sorted(listing, key=_name_of)
        except OSError as error:
            yield _vanished(directory, error)
            continue
        prefix = f"{directory}/" if directory else ""
        below: list[str] = []
        for entry in entries:
            path = prefix + entry.name
            found = _look_at(entry, path, rules, broken_links=broken_links)
            if isinstance(found, Sent) and stat.S_ISDIR(found.status.st_mode):
                below.append(path)
            yield found
        below.reverse()
        pending += below


def _name_of(entry: os.DirEntry[str]) -> str:
    return entry.name


def _look_at(
    entry: os.DirEntry[str], path: str, rules: IgnoreRules, *, broken_links: bool
) -> Sent | LeftOut:
    try:
        if is_link := entry.is_symlink():
            # gcloud takes a link to a folder for a folder.
            is_directory = os.path.isdir(entry.path)
        else:
            is_directory = entry.is_dir(follow_symlinks=False)
        if not rules.empty and rules.ignores(path, is_directory=is_directory):
            return LeftOut(path)
        broken = is_link and not is_directory and not os.path.exists(entry.path)
        if broken and not broken_links:
            return LeftOut(path, "is a broken symbolic link")
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return _vanished(path, error)
    if stat.S_ISREG(status.st_mode) or is_directory or stat.S_ISLNK(status.st_mode):
        return Sent(path, status)
    return LeftOut(path, f"is a {_special_kind(status.st_mode)}")


def _special_kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "named pipe"
    return "device"


def _vanished(path: str, error: OSError) -> LeftOut:
    if error.errno in _GONE and path:
        return LeftOut(path, "vanished while the source was read", vanished=True)
    raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> SourceError:
    """The error for something of the source that can't be read."""
    return SourceError(
        f"can't read {printable(path) or 'the source folder'}: {error.strerror}",
        hint="make it readable, or name it in .gcloudignore",
    )


def printable(path: str) -> str:
    """``path`` for a message: what can't be shown or encoded is escaped."""
    return path if path.isprintable() else repr(path)[1:-1]
