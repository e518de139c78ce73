"""The engine in memory refuses orders that the real one would not survive, and can be steered."""

from __future__ import annotations

import threading

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import ContainerSpec
from buildrunner.errors import EngineError, ImagePullError, ImagePushError


def ignore(_: object) -> None:
    pass


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(["app"])


def create(engine: FakeEngine, *env: str) -> str:
    return engine.create_container(ContainerSpec(image="app", env=env))


def test_waiting_before_the_start_would_hang(engine: FakeEngine) -> None:
    with pytest.raises(AssertionError, match="never started"):
        engine.wait_container(create(engine))


def test_a_container_starts_once(engine: FakeEngine) -> None:
    container = create(engine)
    engine.start_container(container, attach=False)
    with pytest.raises(AssertionError, match="started already"):
        engine.start_container(container, attach=False)


def test_what_was_removed_is_unknown(engine: FakeEngine) -> None:
    container = create(engine)
    engine.remove_container(container)
    with pytest.raises(EngineError, match="no container"):
        engine.start_container(container, attach=False)


def test_a_released_container_goes_on_to_its_end(engine: FakeEngine) -> None:
    container = create(engine, "SLEEP=gate", "EXIT_CODE=3")
    engine.start_container(container, attach=False)
    assert engine.running() == (container,)
    engine.release("gate")
    assert engine.wait_container(container).code == 3
    later = create(engine, "SLEEP=gate")
    engine.start_container(later, attach=False)
    assert engine.wait_container(later).code == 0


def test_calls_are_recorded_in_order(engine: FakeEngine) -> None:
    spec = ContainerSpec(image="app", name="step_0", env=("SLEEP=x",))
    container = engine.create_container(spec)
    engine.start_container(container, attach=False)
    engine.kill_container(container, "SIGTERM")
    engine.kill_container(container)
    engine.remove_container(container)
    assert engine.calls == [
        ("create_container", "step_0"),
        ("start_container", "step_0"),
        ("kill_container SIGTERM", "step_0"),
        ("kill_container SIGKILL", "step_0"),
        ("remove_container", "step_0"),
    ]
    assert engine.containers[container].signals == ["SIGTERM", "SIGKILL"]


def test_transfers_fail_as_often_as_they_are_told_to(engine: FakeEngine) -> None:
    engine.offer_image("r/app:1")
    engine.pull_errors["r/app:1"] = [ImagePullError("busy", transient=True)]
    with pytest.raises(ImagePullError, match="busy"):
        engine.pull_image("r/app:1", on_progress=ignore, cancel=threading.Event())
    engine.pull_image("r/app:1", on_progress=ignore, cancel=threading.Event())
    engine.push_errors["r/app:1"] = [ImagePushError("busy", transient=True)]
    with pytest.raises(ImagePushError, match="busy"):
        engine.push_image("r/app:1", on_progress=ignore, cancel=threading.Event())
    assert engine.push_image("r/app:1", on_progress=ignore, cancel=threading.Event()).digest


def test_a_stalled_transfer_waits_for_its_cancel(engine: FakeEngine) -> None:
    engine.stalled = {"r/app:1", "app"}
    cancel = threading.Event()
    threading.Timer(0, cancel.set).start()
    with pytest.raises(ImagePullError, match="cancelled"):
        engine.pull_image("r/app:1", on_progress=ignore, cancel=cancel)
    with pytest.raises(ImagePushError, match="cancelled"):
        engine.push_image("app", on_progress=ignore, cancel=cancel)
