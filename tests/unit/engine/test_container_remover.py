"""When ended containers are removed."""

import sys
import threading

import pytest

from buildrunner.engine import resources as module
from buildrunner.engine.resources import ContainerRemover
from buildrunner.errors import EngineError


class Removals:
    def __init__(self, wanted=0):
        self.removed = []
        self.enough = threading.Event()
        self._wanted = wanted

    def remove_container(self, container):
        if container == "stuck":
            raise EngineError("it is stuck")
        self._note(container)

    def remove_volume(self, volume):
        self._note(volume)

    def _note(self, name):
        self.removed.append(name)
        if len(self.removed) == self._wanted:
            self.enough.set()


def test_in_a_quiet_moment_it_removes_a_container_before_its_volume():
    engine = Removals(wanted=2)
    remover = ContainerRemover(engine)
    remover.remove("c1", "v1")
    assert engine.enough.wait(60)
    assert engine.removed == ["c1", "v1"]
    remover.finish()


def test_while_steps_start_it_holds_off_until_the_end(monkeypatch):
    monkeypatch.setattr(module, "_QUIET_S", 3600.0)
    engine = Removals()
    remover = ContainerRemover(engine)
    for number in range(5):
        remover.hold_off()
        remover.remove(f"c{number}", "")
    assert engine.removed == []
    remover.finish()
    assert engine.removed == [f"c{number}" for number in range(5)]


def test_many_that_are_due_are_not_kept(monkeypatch):
    monkeypatch.setattr(module, "_QUIET_S", 3600.0)
    engine = Removals(wanted=10)
    remover = ContainerRemover(engine)
    remover.hold_off()
    for number in range(module._BACKLOG + 10):
        remover.remove(f"c{number}", "")
    assert engine.enough.wait(60)
    assert engine.removed[:10] == [f"c{number}" for number in range(10)]
    remover.finish()
    assert len(engine.removed) == module._BACKLOG + 10


def test_what_cannot_be_removed_is_reported_and_holds_up_nothing():
    engine = Removals()
    remover = ContainerRemover(engine)
    remover.remove("stuck", "v1")
    remover.remove("c2", "")
    remover.finish()
    assert remover.failures == ["it is stuck"]
    assert engine.removed == ["c2"]


@pytest.fixture
def hasty_switches():
    """Threads take turns after every few instructions."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_switches")
def test_orders_that_come_at_once_are_carried_out_by_one_thread():
    class Engine:
        def __init__(self):
            self.threads = set()

        def remove_container(self, container):
            self.threads.add(threading.current_thread())

    for _ in range(40):
        engine, start = Engine(), threading.Barrier(8)
        remover = ContainerRemover(engine)

        def order(remover=remover, start=start):
            start.wait()
            remover.remove("c", "")

        callers = [threading.Thread(target=order) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        remover.finish()
        left = {
            one for one in threading.enumerate() if getattr(one, "_target", None) == remover._work
        }
        assert len(engine.threads | left) == 1


def test_without_orders_it_ends_at_once():
    ContainerRemover(Removals()).finish()
