"""What the steps of an untrusted build may have of images."""

from __future__ import annotations

import threading

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.image_pulls import PublicImages, StepImages
from buildrunner.errors import ImagePullError

PRIVATE, PUBLIC = "corp.example.com/team/app", "python:3.12-slim"


def pull(images: StepImages, name: str) -> object:
    return images.pull(name, on_progress=lambda _: None, cancel=threading.Event())


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    for name in (PRIVATE, PUBLIC):
        made.offer_image(name)
        made.add_image(name)
    made.private.add(PRIVATE)
    return made


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("team-base", "team-base", True),
        ("team-base", "team-base:2", True),
        ("team-base:2", "team-base:2", True),
        ("team-base:2", "team-base", False),
        ("team-base", "docker.io/library/team-base:2", True),
        ("corp.example.com/ci/*", "corp.example.com/ci/go:1", True),
        ("corp.example.com/ci/*", "corp.example.com/ci/deep/go", True),
        ("corp.example.com/ci/*", "corp.example.com/app", False),
        ("corp.example.com/ci/go", f"corp.example.com/ci/go@sha256:{'a' * 64}", True),
        ("team-base:2", f"team-base:2@sha256:{'a' * 64}", False),
        ("team-base:2*", f"team-base:2@sha256:{'a' * 64}", False),
        (f"team-base@sha256:{'a' * 64}", f"team-base:2@sha256:{'a' * 64}", True),
        ("*", f"sha256:{'a' * 64}", False),
    ],
)
def test_images_are_allowed_by_name_or_pattern(pattern: str, name: str, allowed: bool) -> None:
    assert PublicImages([pattern], lambda _: "").allows(name) == allowed


def test_a_trusted_build_has_what_the_engine_has(engine: FakeEngine) -> None:
    images = StepImages(engine, None)
    assert images.find(PRIVATE) == engine.find_image(PRIVATE)
    assert pull(images, PRIVATE)


def test_a_private_image_on_the_engine_is_not_there_for_an_untrusted_build(
    engine: FakeEngine,
) -> None:
    images = StepImages(engine, PublicImages([], lambda _: ""))
    assert images.find(PRIVATE) is None
    with pytest.raises(ImagePullError) as caught:
        pull(images, PRIVATE)
    assert "[images] untrusted" in caught.value.hint
    assert images.find(PRIVATE) is None


def test_an_image_that_everyone_can_pull_is_pulled_once(engine: FakeEngine) -> None:
    images = StepImages(engine, PublicImages([], lambda _: ""))
    assert images.find(PUBLIC) is None
    image = pull(images, PUBLIC)
    assert images.find(PUBLIC) == image


def test_an_image_that_the_administrator_allows_is_used_as_it_is(engine: FakeEngine) -> None:
    images = StepImages(engine, PublicImages(["corp.example.com/team/*"], lambda _: "no"))
    assert images.find(PRIVATE) == engine.find_image(PRIVATE)


@pytest.mark.parametrize("name", [PUBLIC, f"sha256:{'a' * 64}"])
def test_a_registry_that_may_not_be_asked_is_not_asked(engine: FakeEngine, name: str) -> None:
    images = StepImages(engine, PublicImages([], lambda registry: f"{registry} is private"))
    with pytest.raises(ImagePullError):
        pull(images, name)
    assert ("pull_image", name) not in engine.calls
