"""A log of 20 million lines (1 GB): what a viewer waits for."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from benchmarks.machine import work_folder
from benchmarks.measure import Result, run, timed
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.logs.files.reader import LogFileReader, LogQuery, search_log

LINES = 20_000_000
_BEGUN = datetime(2024, 1, 1, tzinfo=UTC)
_SMALL, _LARGE = 20, 1000


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder:
        place = os.path.join(folder, "log")
        write(place)
        reader = LogFileReader(place)
        middle = _BEGUN + timedelta(seconds=LINES // 100_000 // 2)

        def took(name: str, target_ms: float, act: Callable[[], object]) -> Result:
            times = [timed(lambda: (act(), None)[1]) for _ in range(rounds)]
            return Result(
                f"1 GB log: {name}",
                target_ms,
                statistics.median(times) * 1000,
                unit="ms",
                rounds=rounds,
            )

        results = [
            took("1,000 lines at its end", 50, lambda: list(reader.lines(LINES - 1000, 1000))),
            took("the first line of a moment", 50, lambda: next(reader.lines_since(middle))),
            took("all of it searched, text", 5000, lambda: look(reader, regex=False)),
            took("all of it searched, expression", 5000, lambda: look(reader, regex=True)),
        ]
        memory = run([sys.executable, "-m", "benchmarks.big_log", place])
        results.append(Result("1 GB log: memory of that", 64, memory, unit="MiB", rounds=1))
        return results


def write(place: str) -> None:
    """Some of it in small chunks, most in large ones, as steps do."""
    sink = LogFileSink(place)
    number = 0
    while number < LINES:
        count = _SMALL if number < LINES // 5 else _LARGE
        numbers = range(number, number + count)
        text = b"".join(b'Step #0 - "x": line number %012d of a log\n' % n for n in numbers)
        sink.write(LogChunk(text, 0, _BEGUN + timedelta(milliseconds=number // 100)))
        number += count
    sink.close()


def look(reader: LogFileReader, *, regex: bool) -> None:
    query = LogQuery(f"number 0+{LINES - 1} .*log$" if regex else f"{LINES - 1} of", regex=regex)
    found = search_log(reader, query)
    if len(found.matches) != 1 or found.matches[0].line != LINES - 1:
        raise RuntimeError(f"the search found {found.matches}")


def main(place: str) -> int:
    """Read and search, in a process whose memory is measured."""
    reader = LogFileReader(place)
    list(reader.lines(LINES - 1000, 1000))
    look(reader, regex=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
