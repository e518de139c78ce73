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
    ("requested", "waited"), [([0.0], [0.0]), ([7.0, 0.0], [7.0, 0.0]), ([3600.0], [60.0])]
)
def test_a_registry_that_asks_for_time_gets_it_within_reason(
    requested: list[float], waited: list[float]
) -> None:
    engine = FakeEngine()
    engine.add_image(NAME)
    engine.push_errors = {
        NAME: [ImagePushError("429", transient=True, retry_after_s=one) for one in requested]
    }
    halt = Halt()
    clock = HastyClock()
    log = LogPipeline(MemorySink(), clock, lambda _: None)
    ImagePush(engine, log, halt=halt, clock=clock, report=lambda _: None).push_all([NAME])
    assert halt.waits == waited


@pytest.mark.parametrize("ending", ["", ".att", ".sig", ".sbom", ".other"])
def test_no_tag_of_a_step_is_pushed_where_attestations_of_other_images_are(ending: str) -> None:
    """``images: [app]`` pushes all tags that steps gave the image."""
    engine = FakeEngine()
    tag = f"sha256-{'0' * 64}{ending}"
    engine.add_image(f"app:{tag}")
    log = LogPipeline(MemorySink(), HastyClock(), lambda _: None)
    push = ImagePush(engine, log, halt=Halt(), clock=HastyClock(), report=lambda _: None)
    with pytest.raises(ImagePushError, match=f"no image is pushed to the tag {tag}"):
        push.push_all(["app"])
    assert [call for call in engine.calls if call[0] == "push_image"] == []
