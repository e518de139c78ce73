"""Keeping a running build without holding it up."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from buildrunner.containers.process_owner import this_process
from buildrunner.engine import events
from buildrunner.engine.deployments import Deployment
from buildrunner.errors import StoreError
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.writing import encode_message
from buildrunner.store.local import LocalBuildStore
from buildrunner.store.records import (
    BuildRecord,
    BuildWriter,
    requeued_document,
    steps_begun,
    steps_ran,
)

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)


def record():
    steps = (BuildStep(name="a"), BuildStep(name="b", id="deploy"))
    return BuildRecord(Build(id="b1", project_id="p", create_time=NOW, steps=steps))


def test_events_bring_the_build_up_to_date():
    kept = record()
    assert kept.build.status is Status.QUEUED
    assert kept.apply(events.BuildStarted(at=NOW, build_id="b1", steps=2))
    assert kept.apply(events.StepStarted(at=NOW, step=0))
    assert kept.apply(events.StepFinished(at=NOW, step=0, status="FAILURE", exit_code=3))
    assert not kept.apply(events.PhaseStarted(at=NOW, phase="BUILD"))
    build = kept.build
    assert build.status is Status.WORKING
    assert [step.status for step in build.steps] == [Status.FAILURE, Status.QUEUED]
    assert build.steps[0].exit_code == 3
    assert build.steps[0].timing.start_time == build.steps[0].timing.end_time == NOW


def test_a_step_has_not_run_while_its_image_is_pulled():
    kept = record()
    assert kept.apply(events.StepStarted(at=NOW, step=0, pulls=True))
    pulling = encode_message(kept.build)
    assert (steps_begun(pulling), steps_ran(pulling)) == (True, False)
    again = requeued_document({**pulling, "startTime": "t"})
    assert again["steps"][0] == {"name": "a", "status": "QUEUED"}
    assert "startTime" not in again
    later = NOW + timedelta(seconds=3)
    assert kept.apply(events.ImageReady(at=later, step=0))
    ready = encode_message(kept.build)
    assert steps_ran(ready)
    assert requeued_document(ready)["steps"][0] == {"name": "a", "status": "QUEUED"}
    assert requeued_document(ready, reused={0})["steps"][0] == ready["steps"][0]
    span = kept.build.steps[0].pull_timing
    assert (span.start_time, span.end_time) == (NOW, later)


def test_a_step_that_failed_in_the_pull_or_whose_image_was_there_counts_as_run():
    for event in (
        events.StepStarted(at=NOW, step=0),
        events.StepFinished(at=NOW, step=0, status="FAILURE"),
    ):
        kept = record()
        kept.apply(events.StepStarted(at=NOW, step=0, pulls=True))
        kept.apply(event)
        assert steps_ran(encode_message(kept.build))
        assert not steps_ran(encode_message(kept.build), reused={0})


def test_a_step_that_the_user_left_out_has_no_status():
    steps = (BuildStep(name="a"), BuildStep(name="b"))
    kept = BuildRecord(Build(id="b1", project_id="p", create_time=NOW, steps=steps), {0})
    kept.apply(events.StepStarted(at=NOW, step=1))
    assert [step.status for step in kept.build.steps] == [Status.STATUS_UNKNOWN, Status.WORKING]
    kept.planned(Build(id="b1", project_id="p", steps=steps), {1})
    assert [step.status for step in kept.build.steps] == [Status.QUEUED, Status.STATUS_UNKNOWN]


def test_the_last_snapshot_is_in_the_store_when_close_returns(tmp_path):
    kept = record()
    writer = BuildWriter(
        lambda: LocalBuildStore(str(tmp_path)), encode_message, owner=this_process()
    )
    writer.save(kept.build)
    kept.apply(events.BuildStarted(at=NOW, build_id="b1", steps=2))
    writer.save(kept.build)
    writer.close()
    store = LocalBuildStore(str(tmp_path))
    assert store.get("b1")["status"] == "WORKING"
    store.close()


def test_a_steps_deployments_are_in_the_store_when_close_returns(tmp_path):
    kept = record()
    writer = BuildWriter(
        lambda: LocalBuildStore(str(tmp_path)), encode_message, owner=this_process()
    )
    deployment = Deployment(target="run://p/r/web", images=("app@sha256:1",), reported=True)
    event = events.StepFinished(at=NOW, step=1, status="SUCCESS", deployments=(deployment,))
    writer.add_deployments(kept.deployments(event))
    kept.apply(event)
    writer.save(kept.build)
    writer.close()
    store = LocalBuildStore(str(tmp_path))
    (made,) = store.deployments()
    assert (made.build_id, made.project_id, made.step, made.step_id) == ("b1", "p", 1, "deploy")
    assert (made.target, made.images, made.time) == ("run://p/r/web", ("app@sha256:1",), NOW)
    store.close()


class SlowStore:
    """Writes when it is let; remembers what it was given."""

    def __init__(self):
        self.let = threading.Event()
        self.written = []

    def create(self, document, *, owner):
        self.let.wait(60)
        self.written.append(document["status"])

    def update(self, document):
        self.written.append(document["status"])

    def close(self):
        pass


def test_of_several_snapshots_that_wait_only_the_newest_is_written():
    store, kept = SlowStore(), record()
    writer = BuildWriter(lambda: store, encode_message, owner="1:1")
    for status in (Status.QUEUED, Status.WORKING, Status.SUCCESS):
        writer.save(Build(id="b1", create_time=NOW, status=status))
    store.let.set()
    writer.save(kept.build)
    writer.close()
    assert store.written[-1] == "QUEUED"
    assert len(store.written) <= 2


def test_a_store_that_can_not_be_opened_is_told_at_the_end_and_never_blocks(tmp_path):
    (tmp_path / "file").write_text("")
    writer = BuildWriter(
        lambda: LocalBuildStore(str(tmp_path / "file" / "data")), encode_message, owner="1:1"
    )
    writer.save(record().build)
    with pytest.raises(StoreError):
        writer.close()
    writer.close()
