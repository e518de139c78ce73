"""How long pushes and pulls wait between their tries."""

from __future__ import annotations

import threading

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.events import PullFinished
from buildrunner.engine.image_pulls import ImagePulls
from buildrunner.engine.image_push import ImagePush
from buildrunner.engine.log_pipeline import LogPipeline
from buildrunner.errors import ImagePullError, ImagePushError
from buildrunner.plan.build_plan import BuildPlan
from tests.unit.engine.conftest import HastyClock, MemorySink, step

NAME = "r.test:5000/app:v1"


class Halt(threading.Event):
    """Nobody halts; what it is asked to wait is noted and not waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return False


@pytest.mark.parametrize(
    ("asked", "waited"), [([0.0], [0.0]), ([7.0, 0.0], [7.0, 0.0]), ([3600.0], [60.0])]
)
def test_a_registry_that_asks_for_time_gets_it_within_reason(
    asked: list[float], waited: list[float]
) -> None:
    engine = FakeEngine()
    engine.add_image(NAME)
    engine.push_errors = {
        NAME: [ImagePushError("429", transient=True, retry_after_s=one) for one in asked]
    }
    halt = Halt()
    clock = HastyClock()
    log = LogPipeline(MemorySink(), clock, lambda _: None)
    ImagePush(engine, log, halt=halt, clock=clock, report=lambda _: None).push_all([NAME])
    assert halt.waits == waited


def test_a_pull_waits_as_long_as_the_registry_asks_for() -> None:
    engine = FakeEngine()
    engine.offer_image(NAME)
    engine.pull_errors = {
        NAME: [ImagePullError("429", transient=True, retry_after_s=s) for s in (7.0, 3600.0)]
    }
    halt = Halt()
    plan = BuildPlan(build_id="b", project_id="p", steps=(step(image=NAME),))
    ended = threading.Event()
    pulls = ImagePulls(
        plan,
        engine,
        {},
        halt=halt,
        clock=HastyClock(),
        report=lambda event: ended.set() if isinstance(event, PullFinished) else None,
    )
    pulls.prefetch()
    assert ended.wait(30)
    assert halt.waits == [7.0, 60.0]
    assert engine.find_image(NAME) is not None
