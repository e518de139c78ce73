from __future__ import annotations

from buildrunner.build_run.compile import (
    image_advice,
    install_command,
    with_builder_images,
)
from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import ImageInfo
from buildrunner.plan.build_plan import BuildPlan, StepPlan

DOCKER = "gcr.io/cloud-builders/docker"
OURS = "buildrunner/docker:latest"


def plan(*images: str) -> BuildPlan:
    steps = tuple(StepPlan(index=index, image=image) for index, image in enumerate(images))
    return BuildPlan(build_id="b", project_id="p", steps=steps)


def test_an_installed_builder_serves_googles() -> None:
    engine = FakeEngine([OURS])
    assert with_builder_images({}, plan(DOCKER, "busybox"), engine) == {DOCKER: OURS}


def test_googles_own_image_is_used_where_the_engine_has_it() -> None:
    engine = FakeEngine([OURS, DOCKER])
    assert with_builder_images({}, plan(DOCKER), engine) == {}


def test_an_alias_of_the_user_wins_whatever_the_tag() -> None:
    engine = FakeEngine([OURS])
    own = {DOCKER: "mirror.test/docker"}
    assert with_builder_images(own, plan(f"{DOCKER}:20.10.24"), engine) == own


def test_no_question_is_asked_about_other_images() -> None:
    class SilentEngine(FakeEngine):
        def find_image(self, name: str) -> None:
            raise AssertionError(name)

    assert with_builder_images({"a": "b"}, plan("python:3.11-slim"), SilentEngine([])) == {"a": "b"}


def test_a_builder_under_its_public_name_is_still_told_as_an_alias() -> None:
    class EngineWithTag(FakeEngine):
        def find_image(self, name: str) -> ImageInfo | None:
            return super().find_image(OURS if name == DOCKER else name)

    assert with_builder_images({}, plan(DOCKER), EngineWithTag([OURS])) == {DOCKER: OURS}


def test_images_that_a_builder_could_serve_have_advice() -> None:
    advice = image_advice(plan(DOCKER, "python:3.12", "registry.test/app"))
    assert set(advice) == {DOCKER, "python:3.12"}
    assert "builders install docker" in advice[DOCKER]


def test_one_command_makes_all_that_a_build_needs() -> None:
    needing = plan(DOCKER, "python:3.12", DOCKER, "registry.test/app")
    assert install_command(needing) == "buildrunner builders install docker python"
    command = "buildrunner builders install --for 'a b.yaml'"
    assert install_command(plan(DOCKER), "a b.yaml") == command
    assert install_command(needing, "a b.yaml") == f"{command} --stand-ins"
