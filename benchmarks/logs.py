"""A step that prints a million lines."""

from __future__ import annotations

import os
import statistics

from benchmarks.machine import IMAGE, work_folder
from benchmarks.measure import BUILDRUNNER, Result, compare, run
from benchmarks.steps import config

LINES = 1_000_000
PREFIX = b"Step #0: "  # a build of one step has none


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder:
        source = os.path.join(folder, "source")
        os.mkdir(source)
        lines = os.path.join(source, "lines")
        with open(lines, "wb") as file:
            file.writelines(b"%049d\n" % number for number in range(LINES))
        path = config(folder, "logs", [{"name": IMAGE, "args": ["cat", "lines"]}])
        out = os.path.join(folder, "out")
        memory: list[float] = []

        def ours() -> None:
            memory.append(run([BUILDRUNNER, "submit", path, "--source", source], stdout=out))

        def theirs() -> None:
            run(
                [
                    *("docker", "run", "--rm", "-v", f"{source}:/workspace"),
                    *(IMAGE, "cat", "/workspace/lines"),
                ],
                stdout=os.path.join(folder, "theirs"),
            )

        speed = compare(
            f"{LINES:,} lines of 50 bytes / docker run --rm > file",
            1.0,
            ours,
            theirs,
            rounds=rounds,
        )
        speed.note = "all lines, in order" if in_order(out, lines) else "LINES LOST OR OUT OF ORDER"
        return [
            speed,
            Result(
                f"peak memory of {LINES:,} lines",
                80.0,
                statistics.median(memory),
                unit="MiB",
                rounds=len(memory),
            ),
        ]


def in_order(log: str, lines: str) -> bool:
    """Whether the step's lines in the log are the lines of the file, each once and in order."""
    with open(log, "rb") as shown, open(lines, "rb") as printed:
        expected = iter(printed)
        for line in shown:
            text = line.removeprefix(PREFIX)
            if len(text) == 50 and text[:-1].isdigit() and text != next(expected, b""):
                return False
        return next(expected, None) is None
