"""How long a push waits between its tries."""

from __future__ import annotations

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.log.pipeline import LogPipeline
from buildrunner.engine.publishing import ImagePush
from buildrunner.errors import ImagePushError
from tests.unit.engine.conftest import Halt, HastyClock, MemorySink

NAME = "r.test:5000/app:v1"


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
