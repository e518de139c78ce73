"""When the container engine counts as there."""

import threading

import pytest

from buildrunner.errors import EngineUnavailable
from buildrunner.worker.chores import BeginGate, EngineWatch

DEADLINE_S = 30


class Engine:
    """Answers when a test lets it, as the test says."""

    def __init__(self):
        self.now = 1000.0
        self.problem = ""
        self.requested = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.told = threading.Semaphore(0)
        self.watch = EngineWatch(self.check, self.told.release, clock=lambda: self.now)

    def check(self):
        self.requested.release()
        assert self.let.acquire(timeout=DEADLINE_S)
        if self.problem:
            raise EngineUnavailable(self.problem)

    def answer(self, problem=""):
        """It was asked, and answers."""
        assert self.requested.acquire(timeout=DEADLINE_S)
        self.problem = problem
        self.let.release()
        assert self.told.acquire(timeout=DEADLINE_S)


@pytest.fixture
def engine():
    return Engine()


def test_an_engine_that_was_not_asked_yet_does_not_count_as_there(engine):
    assert not engine.watch.answers()
    assert engine.watch.problem() == ""
    engine.answer()
    assert engine.watch.answers()


def test_each_answer_counts_once(engine):
    engine.watch.answers()
    engine.answer()
    assert engine.watch.answers()
    assert not engine.watch.answers()
    engine.answer("gone")
    assert not engine.watch.answers()
    assert engine.watch.problem() == "gone"
    assert not engine.watch.answers()
    engine.answer()
    assert engine.watch.answers()
    assert engine.watch.problem() == ""


def test_an_old_answer_is_asked_for_again(engine):
    engine.watch.answers()
    engine.answer()
    engine.now += 60
    assert not engine.watch.answers()
    engine.answer()
    assert engine.watch.answers()


def test_an_engine_that_is_silent_is_not_there_and_is_asked_once(engine):
    for _ in range(3):
        assert not engine.watch.answers()
    engine.now += 4
    assert not engine.watch.answers()
    assert engine.watch.problem() == "the container engine has been silent for 4 seconds"
    engine.answer()
    assert engine.watch.answers()
    assert engine.watch.problem() == ""
    assert not engine.requested.acquire(blocking=False)


class Folder:
    path = "/there"

    def __init__(self):
        self.free = 100 << 20

    def free_bytes(self):
        return self.free


def test_what_holds_builds_back_is_logged_once_and_so_is_its_end(engine, caplog):
    caplog.set_level("INFO")
    folder = Folder()
    gate = BeginGate(folder, 50 << 20, engine.watch)

    def looks():
        gate.may_begin()
        engine.answer()
        return gate.may_begin()

    assert looks()
    folder.free = 20 << 20
    assert not looks()
    folder.free = 10 << 20
    assert not looks()
    assert gate.reason() == "The server's disk is full: 10 MiB are free, and 50 MiB are wanted."
    folder.free = 100 << 20
    assert looks()
    assert gate.reason() == ""
    assert [record.getMessage() for record in caplog.records] == [
        "no build is begun in /there: The server's disk is full: 20 MiB are free, and 50 MiB are"
        " wanted.",
        "builds are begun again",
    ]
