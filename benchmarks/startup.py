"""How long the command takes to say something."""

from __future__ import annotations

import sys

from benchmarks.measure import BUILDRUNNER, Result, compare, run
from benchmarks.steps import void


def measure(rounds: int) -> list[Result]:
    return [
        compare(
            f"buildrunner {flag} / python -c pass",
            3.0,
            lambda flag=flag: void(run([BUILDRUNNER, flag])),
            lambda: void(run([sys.executable, "-c", "pass"])),
            rounds=10 * rounds,
        )
        for flag in ("--version", "--help")
    ]
