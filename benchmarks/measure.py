"""Taking times: two sides in turn, ratios of single rounds, medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

BUILDRUNNER = os.path.join(os.path.dirname(sys.executable), "buildrunner")


@dataclass
class Result:
    """One line of the table.

    ``value`` is what the target limits: mostly a ratio, sometimes MiB (see ``unit``).
    """

    name: str
    target: float
    value: float
    unit: str = "x"
    ours_s: float | None = None
    theirs_s: float | None = None
    rounds: int = 0
    note: str = ""
    samples: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return self.value <= self.target


def compare(
    name: str,
    target: float,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    warm_up: bool = True,
    note: str = "",
) -> Result:
    """Run both sides in turn; who begins changes with every round.

    A side may return a time in seconds, when only part of what it does counts.
    """
    if warm_up:
        ours()
        theirs()
    pairs = []
    for number in range(rounds):
        if number % 2:
            b = timed(theirs)
            a = timed(ours)
        else:
            a = timed(ours)
            b = timed(theirs)
        pairs.append((a, b))
    ratios = [a / b for a, b in pairs]
    return Result(
        name,
        target,
        statistics.median(ratios),
        ours_s=statistics.median(a for a, _ in pairs),
        theirs_s=statistics.median(b for _, b in pairs),
        rounds=rounds,
        note=note,
        samples=ratios,
    )


def timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    answer = side()
    elapsed = time.perf_counter() - start
    return answer if isinstance(answer, float) else elapsed


def run(
    argv: list[str], *, stdout: str = os.devnull, environment: dict[str, str] | None = None
) -> float:
    """Run a program; its peak memory in MiB (no less than our own, which the kernel adds).

    Raises:
        RuntimeError: it failed.
    """
    with open(stdout, "wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert process.stderr is not None
        error = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
    if process.returncode:
        text = error.decode(errors="replace")[-2000:]
        raise RuntimeError(f"{argv[0]} exited {process.returncode}: {text}")
    return usage.ru_maxrss / 1024


def processor_s(pid: int) -> float:
    """Return the seconds of a processor that a process has used so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
