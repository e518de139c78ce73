from __future__ import annotations

from buildrunner.cli.builder_aliases import with_builder_images
from buildrunner.containers.fake import FakeEngine
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
    class SilentEngine:
        def find_image(self, name: str) -> None:
            raise AssertionError(name)

    assert with_builder_images({"a": "b"}, plan("python:3.11-slim"), SilentEngine()) == {"a": "b"}
