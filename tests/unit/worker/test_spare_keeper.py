"""When a server looks after its spare sandboxes, and what it says when it can't."""

import itertools
import logging
import queue

import pytest

from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.sandboxes.host import HostSandbox
from buildrunner.worker.processes import SpareKeeper
from tests.conftest import DEADLINE_S

NEVER_S = 3600


class Watched(HostSandbox):
    """Tells what it was asked for; ``troubles`` has what is wrong at each look, then nothing is."""

    def __init__(self):
        self.requested = queue.Queue()
        self.troubles = iter(())

    def keep_spares(self, count):
        self.requested.put(count)
        if trouble := next(self.troubles, None):
            raise trouble

    def drop_spares(self):
        self.requested.put("drop")


@pytest.fixture
def sandbox():
    return Watched()


@pytest.fixture
def keeper_of(sandbox):
    made = []

    def start(count, **pauses):
        keeper = SpareKeeper(sandbox, count, **{"look_s": NEVER_S, "pause_s": NEVER_S, **pauses})
        made.append(keeper)
        keeper.start()
        return keeper

    yield start
    for keeper in made:
        keeper.close()


def requested(sandbox, times):
    return [sandbox.requested.get(timeout=DEADLINE_S) for _ in range(times)]


def test_what_an_earlier_server_kept_goes_first(sandbox, keeper_of):
    keeper = keeper_of(2)
    assert requested(sandbox, 2) == ["drop", 2]
    keeper.close()
    assert requested(sandbox, 1) == ["drop"]


def test_without_spares_what_sandboxes_share_is_looked_after(sandbox, keeper_of):
    keeper = keeper_of(0)
    assert requested(sandbox, 2) == ["drop", 0]
    keeper.build_ended()
    assert requested(sandbox, 1) == [0]
    keeper.close()
    assert requested(sandbox, 1) == ["drop"]


def test_it_looks_now_and_then(sandbox, keeper_of):
    keeper_of(1, look_s=0.001)
    assert requested(sandbox, 4) == ["drop", 1, 1, 1]


def test_it_looks_some_time_after_a_build_began(sandbox, keeper_of):
    keeper = keeper_of(1, pause_s=0.001)
    requested(sandbox, 2)
    keeper.build_began()
    assert requested(sandbox, 1) == [1]


def test_it_looks_when_a_build_has_ended(sandbox, keeper_of):
    keeper = keeper_of(1)
    requested(sandbox, 2)
    keeper.build_began()  # the pause after that ends, too
    keeper.build_ended()
    keeper.build_ended()
    while sandbox.requested.empty():
        keeper.build_ended()
    assert requested(sandbox, 1) == [1]


@pytest.mark.parametrize("trouble", [EngineError("no engine"), OSError("no engine")])
def test_trouble_is_told_once_until_it_is_over(sandbox, keeper_of, caplog, trouble):
    caplog.set_level(logging.WARNING)
    sandbox.troubles = iter([trouble, trouble, trouble, None, trouble, trouble])
    keeper_of(1, look_s=0.001)
    requested(sandbox, 1 + 6 + 1)  # the last: what was wrong at those before has been told by now
    assert [one.getMessage() for one in caplog.records] == [
        "no sandbox is ready ahead of builds: no engine",
        "no sandbox is ready ahead of builds: no engine",
    ]


def test_that_there_is_no_engine_others_say(sandbox, keeper_of, caplog):
    caplog.set_level(logging.WARNING)
    sandbox.troubles = itertools.repeat(EngineUnavailable("no engine"))
    keeper_of(1, look_s=0.001)
    requested(sandbox, 4)
    assert not caplog.records
