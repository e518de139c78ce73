"""Locks that processes of this machine hold by a file; the kernel releases those of the dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def file_lock(path: str, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made when it is missing.

    Args:
        path: the file.
        shared: others may hold it shared at the same time.
        wait: wait for others.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
        OSError: the file can't be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
