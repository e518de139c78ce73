"""What is made ahead of its turn is invisible to the steps that run before."""

from __future__ import annotations

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.image_name import REPOSITORY, PrivateNames, take_away
from buildrunner.engine.events import BuildEvent, StepRunning
from tests.unit.engine.conftest import BUILD_ID, Build, step


def test_an_image_that_a_container_was_made_of_ahead_has_a_second_name_until_the_end() -> None:
    build = Build(step(0, "SLEEP=first"), step(1))
    names: list[tuple[str, ...]] = []

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning) and event.step == 1:
            names.append(build.engine.tags_of(REPOSITORY))
        if isinstance(event, StepRunning) and event.step == 0:
            build.engine.release("first")

    build.run(on_event=on_event)
    assert [name.startswith(BUILD_ID) for (name,) in names] == [True]
    assert build.engine.tags_of(REPOSITORY) == ()


def test_without_the_engine_in_steps_no_image_gets_one() -> None:
    build = Build(step(0), step(1), docker_socket=False)
    build.run()
    assert "tag_image" not in [name for name, _ in build.engine.calls]


def test_those_of_a_dead_build_are_taken_away_and_no_others() -> None:
    engine = FakeEngine(["busybox"])
    image = engine.find_image("busybox")
    assert image is not None
    for build_id in ("dead", "living"):
        PrivateNames(engine, build_id).give(image.id)
    take_away(engine, "dead")
    (left,) = engine.tags_of(REPOSITORY)
    assert left.startswith("living")
    assert engine.find_image("busybox") is not None


def test_an_image_that_is_gone_gets_none() -> None:
    engine = FakeEngine()
    PrivateNames(engine, "build").give(f"sha256:{'0' * 64}")
    assert engine.tags_of(REPOSITORY) == ()
