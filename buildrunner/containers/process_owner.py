"""Names of this machine's processes that stay unique if a PID is reused, and file locks.

The kernel releases the locks of a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


def this_process() -> str:
    """Return ``PID:START`` of this process."""
    return f"{os.getpid()}:{_start_of(os.getpid())}"


def pid_of(owner: str) -> int:
    """Return the process number in ``PID:START``."""
    return int(owner.partition(":")[0])


def is_alive(owner: str) -> bool:
    """Return whether that very process still runs (not another one with its number)."""
    pid, _, start = owner.partition(":")
    return bool(start) and _start_of(int(pid)) == start


def _start_of(pid: int) -> str:
    """Return the start time of a process as stable text; empty if the process does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except FileNotFoundError:
        # The process has ended, or this system has no /proc.
        return "" if os.path.isdir("/proc/self") else _start_by_ps(pid)
    except ProcessLookupError:
        return ""
    # The program's name may hold spaces and parentheses; the fields after the last one are regular.
    fields = stat.rpartition(b")")[2].split()
    state, ticks = fields[0], fields[19]
    if state in (b"Z", b"X"):
        return ""
    return f"{ticks.decode()}@{_boot_id()}"


def _boot_id() -> str:
    # Start times count from boot: after a reboot the same number is another moment.
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except OSError:
        return ""


def _start_by_ps(pid: int) -> str:
    import subprocess

    answer = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "-".join(answer.stdout.split()).replace(":", ".")


@contextlib.contextmanager
def file_lock(path: str, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is created if it is missing.

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
