"""Reading one file of a fetched commit on this machine, whatever its author had in mind."""

from __future__ import annotations

import os
import stat

from buildrunner.errors import SourceError

_LARGEST_BYTES = 16 * 1024**2


def read_file(folder: str, path: str) -> bytes | None:
    """A file's content; None when there is no such file.

    A symbolic link is followed inside of the folder only: what a config shows in its error messages
    must be the repository's own.

    Args:
        folder: of the checkout; nobody changes it meanwhile.
        path: relative to it.

    Raises:
        SourceError: it leads out of the folder, is too large, or can't be read.
    """
    root = os.path.realpath(folder)
    found = os.path.realpath(os.path.join(root, path))
    inner = os.path.relpath(found, root).split(os.sep, 1)[0]
    if inner in (os.pardir, ".git"):
        raise SourceError(f"{path} leads out of the files of the repository")
    try:
        status = os.stat(found)
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_BYTES:
            raise SourceError(f"{path} of the repository is no file that could be a config")
        with open(found, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{path} of the repository can't be read: {error.strerror}") from error
