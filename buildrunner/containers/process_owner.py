"""The process that runs a build, named so that a later process with its number is not mistaken."""

from __future__ import annotations

import os


def this_process() -> str:
    """``PID:START`` of this process."""
    return f"{os.getpid()}:{_start_of(os.getpid())}"


def pid_of(owner: str) -> int:
    """The process number in ``PID:START``."""
    return int(owner.partition(":")[0])


def is_alive(owner: str) -> bool:
    """Whether that very process still runs (not another one that got its number)."""
    pid, _, start = owner.partition(":")
    return bool(start) and _start_of(int(pid)) == start


def _start_of(pid: int) -> str:
    """Return the start time of a process as stable text; empty if the process does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except FileNotFoundError:
        # Gone, or no /proc on this system.
        return "" if os.path.isdir("/proc/self") else _start_by_ps(pid)
    except ProcessLookupError:
        return ""
    # The program's name may hold spaces and parentheses; what follows its last one is regular.
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
