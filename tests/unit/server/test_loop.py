"""The threads of the server that repeat a task."""

import threading
from datetime import timedelta

import pytest

from buildrunner.errors import StoreError
from buildrunner.retry import backoff
from buildrunner.server.loop import Loop

LONG_S = 3600.0
LIMIT_S = 30.0


@pytest.mark.parametrize("error", [StoreError("the database is locked"), ValueError("a bug")])
def test_a_turn_that_fails_does_not_end_the_loop(error: Exception) -> None:
    turns = iter([error, None])
    done = threading.Event()

    def turn() -> float | None:
        found = next(turns)
        if found is None:
            done.set()
        else:
            loop.wake()
            raise found
        return None

    loop = Loop("tests", turn, LONG_S)
    loop.start()
    assert done.wait(LIMIT_S)
    loop.stop(LIMIT_S)


def test_a_turn_says_when_the_next_one_is() -> None:
    turns = iter([0.0, -5.0, None])
    done = threading.Event()

    def turn() -> float | None:
        wanted = next(turns)
        if wanted is None:
            done.set()
        return wanted

    loop = Loop("tests", turn, LONG_S)
    loop.start()
    assert done.wait(LIMIT_S)
    loop.stop(LIMIT_S)


def test_the_end_ends_a_pause_within_a_turn_and_stop_waits_for_the_turn() -> None:
    began, ended = threading.Event(), threading.Event()

    def turn() -> None:
        began.set()
        loop.pause(LONG_S)
        ended.set()

    loop = Loop("tests", turn, LONG_S)
    loop.start()
    assert began.wait(LIMIT_S)
    loop.stop(LIMIT_S)
    assert ended.is_set()
    loop.stop()


def test_a_loop_that_was_not_started_can_be_stopped_and_knows_its_wakes() -> None:
    loop = Loop("tests", lambda: None, LONG_S)
    assert not loop.was_woken()
    loop.wake()
    assert loop.was_woken()
    assert not loop.was_woken()
    loop.stop()


def test_pauses_double_up_to_the_longest() -> None:
    first, longest = timedelta(seconds=30), timedelta(minutes=10)
    pauses = [backoff(failures, first, longest) for failures in range(1, 7)]
    assert [pause.total_seconds() for pause in pauses] == [30, 60, 120, 240, 480, 600]
    assert backoff(10_000, first, longest) == longest
