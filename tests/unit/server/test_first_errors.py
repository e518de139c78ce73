"""Where a step went wrong: the lines that a page shows of a log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.server.pages.builds.first_errors import Excerpt, excerpt_of, looks_like_error, pick

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "line",
    [
        "src/cart.c:14:3: error: expected ';' before '}' token",
        "error TS2304: Cannot find name 'foo'.",
        "E       AssertionError: assert 1 == 2",
        "FAILED tests/test_cart.py::test_total",
        "--- FAIL: TestCart (0.00s)",
        "Traceback (most recent call last):",
        "ValueError: bad",
        "panic: runtime error: index out of range",
        "npm ERR! code ELIFECYCLE",
        "sh: foo: command not found",
        "fatal: repository not found",
        "expected 42.00, got 37.80",
        "undefined reference to `main'",
    ],
)
def test_lines_at_which_a_person_would_stop(line: str, tmp_path: Path) -> None:
    assert looks_like_error(line)
    log = LogFileSink(str(tmp_path))
    log.write(LogChunk(f"fine\nStep #0: \x1b[31m{line}\x1b[0m\n".encode(), 0, NOW))
    log.close()
    excerpt = excerpt_of(LogFileReader(str(tmp_path)), 0, None)
    assert excerpt is not None
    assert excerpt.first == 2


@pytest.mark.parametrize(
    "line",
    [
        "0 errors, 0 warnings",
        "241 passed, 0 failed",
        "no errors found",
        "gcc -Werror -Wall -c cart.c",
        "pytest --fail-under=80",
        "test_error_handling PASSED",
        "compiling module 14: ok",
        "errors: 0",
    ],
)
def test_lines_that_only_sound_like_it(line: str) -> None:
    assert not looks_like_error(line)


def numbers(excerpt: Excerpt | None) -> list[list[int]]:
    assert excerpt is not None
    return [[line.number for line in part] for part in excerpt.parts]


def test_the_first_error_comes_with_what_is_around_it_and_the_end() -> None:
    lines = [(number, f"line {number}") for number in range(1, 101)]
    lines[39] = (40, "x.c:1: error: broken")
    lines[59] = (60, "y.c:1: error: broken, too")
    excerpt = pick(lines)
    assert excerpt is not None
    assert excerpt.first == 40
    assert numbers(excerpt) == [list(range(38, 48)), list(range(96, 101))]
    assert [line.number for part in excerpt.parts for line in part if line.is_error] == [40]


def test_what_lies_close_together_is_one_part() -> None:
    lines = [(number, "fine") for number in range(1, 10)]
    lines[3] = (4, "error: broken")
    assert numbers(pick(lines)) == [list(range(2, 10))]


def test_without_an_error_the_last_lines_are_shown() -> None:
    excerpt = pick([(number, "fine") for number in range(1, 101)])
    assert excerpt is not None
    assert excerpt.first is None
    assert numbers(excerpt) == [list(range(93, 101))]
    assert pick([]) is None


def test_lines_are_numbered_as_in_the_whole_log_and_are_of_the_step_alone(tmp_path: Path) -> None:
    log = LogFileSink(str(tmp_path))
    for number, (step, text) in enumerate(
        [
            (0, 'Step #0 - "a": error: of another step'),
            (1, 'Step #1 - "b": \x1b[31mboom\x1b[0m'),
            (0, 'Step #0 - "a": fine'),
            (1, 'Step #1 - "b": x.c:3: error: broken'),
        ]
    ):
        log.write(LogChunk(f"{text}\n".encode(), step, NOW + timedelta(seconds=number)))
    log.close()
    excerpt = excerpt_of(LogFileReader(str(tmp_path)), 1, NOW + timedelta(seconds=4))
    assert excerpt is not None
    assert excerpt.first == 4
    assert [(line.number, line.text) for line in excerpt.parts[0]] == [
        (2, "boom"),
        (4, "x.c:3: error: broken"),
    ]


def test_the_first_error_is_that_of_the_whole_step_however_long_its_log_is(tmp_path: Path) -> None:
    log = LogFileSink(str(tmp_path))
    log.write(LogChunk(b"error: of another\n" * 50, 1, NOW))
    log.write(LogChunk(b"fine\n\x1b[31merror\x1b[0m: the first of all\n", 0, NOW))
    for _ in range(10):
        log.write(LogChunk(b"fine\n" * 1_000, 0, NOW))
        log.write(LogChunk(b"error: of another\n", 1, NOW))
    log.write(LogChunk(b"error: the last\n", 0, NOW + timedelta(seconds=1)))
    log.write(LogChunk(b"error: of another\n" * 5_000, 1, NOW + timedelta(seconds=9)))
    log.close()
    excerpt = excerpt_of(LogFileReader(str(tmp_path)), 0, NOW + timedelta(seconds=2))
    assert excerpt is not None
    assert (excerpt.first, excerpt.searched) == (52, "")
    assert [line.text for line in excerpt.parts[0]][:2] == ["fine", "error: the first of all"]
    assert excerpt.parts[1][-1].text == "error: the last"
    assert all("another" not in line.text for part in excerpt.parts for line in part)


def test_an_excerpt_without_an_error_says_how_many_lines_were_searched(tmp_path: Path) -> None:
    log = LogFileSink(str(tmp_path))
    for _ in range(3):
        log.write(LogChunk(b"fine\n" * 500_000, 0, NOW))
    log.close()
    reader = LogFileReader(str(tmp_path))
    whole = excerpt_of(reader, 0, None, lambda: True)
    assert whole is not None
    assert whole.searched == "None of the 1,500,000 lines of this step looks like an error."
    part = excerpt_of(reader, 0, None, lambda: False)
    assert part is not None
    assert part.first is None
    assert part.searched.startswith("Only the first 500,000 lines of this step and the last ones")


def test_a_log_that_is_gone_has_no_lines(tmp_path: Path) -> None:
    assert excerpt_of(LogFileReader(str(tmp_path)), 0, NOW) is None


@pytest.mark.parametrize("line", ["-" * 200_000, "-fail" + "-" * 200_000, "x y z " * 40_000])
def test_no_line_of_a_step_makes_its_page_slow(line: str) -> None:
    """Each view judges 3,000 lines. A backtracking expression takes minutes for one of these."""
    assert not looks_like_error(line)
