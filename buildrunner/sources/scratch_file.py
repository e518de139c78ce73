"""Files without a name that hold a source for a moment; they go away with whoever opened them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from buildrunner.errors import SourceError


@contextmanager
def scratch_file() -> Iterator[BinaryIO]:
    """A file in the system's folder for such (``TMPDIR``), open for the block.

    Raises:
        SourceError: none can be made.
    """
    try:
        file = tempfile.TemporaryFile(prefix="buildrunner-source-")  # noqa: SIM115  (see below)
    except OSError as error:
        raise no_room("a temporary file can't be made", error) from error
    try:
        yield file
    finally:
        # A disk that is full refuses once more what is not written yet: nobody needs it any more.
        with suppress(OSError):
            file.close()


def no_room(what: str, error: OSError) -> SourceError:
    """The error for a file of this kind that can't be made or written to."""
    return SourceError(
        f"{what}: {os.strerror(error.errno or 0)}", hint="TMPDIR names a folder with more room"
    )
