"""Pulls that are under way when a step asks for its image."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import ImageInfo
from buildrunner.engine.events import BuildEvent, PullFinished
from buildrunner.engine.image_pulls import ImagePulls, StepImages
from buildrunner.errors import ImagePullError
from buildrunner.plan.build_plan import BuildPlan
from tests.unit.engine.conftest import Halt, HastyClock, step

NAME = "r.test:5000/app:v1"
PULLED = ["Pulling image: r.test:5000/app:v1", "Digest: ", "Status: Downloaded newer image for"]


class SlowEngine(FakeEngine):
    """Says that a pull is done some time after it is."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.Event()
        self.done = threading.Event()

    def pull_image(self, name: str, **options: Any) -> ImageInfo:
        try:
            return super().pull_image(name, **options)
        finally:
            self.here.set()
            assert self.done.wait(60)


class Bench:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.halt = Halt()
        self.ended = threading.Event()
        self.step = step(image=NAME)
        plan = BuildPlan(build_id="b", project_id="p", steps=(self.step,))
        self.pulls = ImagePulls(
            plan,
            StepImages(engine, None),
            {},
            halt=self.halt,
            clock=HastyClock(),
            report=self._note,
        )

    def _note(self, event: BuildEvent) -> None:
        if isinstance(event, PullFinished):
            self.ended.set()

    def said(self) -> list[str]:
        """What a step that asks for the image is told."""
        lines: list[str] = []

        class Log:
            def line(self, text: str) -> None:
                lines.append(text)

        self.pulls.obtain(self.step, Log())  # type: ignore[arg-type]
        return lines

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A pull has begun, and did what it does; but nobody knows yet."""
        assert isinstance(self.engine, SlowEngine)
        self.pulls.prefetch()
        assert self.engine.here.wait(60)
        timer = threading.Timer(0.05, self.engine.done.set)  # when somebody waits for it, mostly
        timer.start()
        yield
        timer.join()
        assert self.ended.wait(60)


def is_pulled(lines: list[str]) -> bool:
    return [line[: len(sign)] for line, sign in zip(lines, PULLED, strict=True)] == PULLED


def test_a_pull_waits_as_long_as_the_registry_asks_for() -> None:
    engine = FakeEngine()
    engine.offer_image(NAME)
    engine.pull_errors = {
        NAME: [ImagePullError("429", transient=True, retry_after_s=s) for s in (7.0, 3600.0)]
    }
    bench = Bench(engine)
    bench.pulls.prefetch()
    assert bench.ended.wait(30)
    assert bench.halt.waits == [7.0, 60.0]
    assert engine.find_image(NAME) is not None


def test_an_image_is_told_as_pulled_also_while_the_engine_ends_the_pull() -> None:
    engine = SlowEngine()
    engine.offer_image(NAME)
    bench = Bench(engine)
    with bench.under_way():
        assert is_pulled(bench.said())
    assert bench.said() == [f"Already have image (with digest): {NAME}"]


@pytest.mark.parametrize("ahead", [True, False])
def test_an_image_is_told_as_pulled_by_the_first_step_that_uses_it(ahead: bool) -> None:
    engine = FakeEngine()
    engine.offer_image(NAME)
    bench = Bench(engine)
    if ahead:
        bench.pulls.prefetch()
        assert bench.ended.wait(60)
    assert is_pulled(bench.said())
    assert bench.said() == [f"Already have image (with digest): {NAME}"]


def test_who_built_it_does_not_wait_for_a_pull_that_fails() -> None:
    engine = SlowEngine()
    engine.pull_errors = {NAME: [ImagePullError("away", transient=True)]}
    bench = Bench(engine)
    with bench.under_way():
        engine.add_image(NAME)
        assert bench.said() == [f"Already have image: {NAME}"]
