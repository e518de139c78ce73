"""One build under its lease: what is stored when, and how another process goes on with it."""

import threading

import msgspec
import pytest

from buildrunner.engine.deployments import Deployment
from buildrunner.engine.events import StepFinished, StepRunning, StepStarted
from buildrunner.errors import (
    ConfigError,
    EngineUnavailable,
    InvalidRecord,
    LeaseLost,
    StoreError,
)
from buildrunner.logs.files.events import EventLog
from buildrunner.problem import Problem
from buildrunner.spec.model.build import Status
from buildrunner.worker.execution import execute
from buildrunner.worker.recovery import BuildNotes
from tests.unit.worker.conftest import WORKER, now


class Died(BaseException):
    """What stands for the end of the process."""


def run(job, *, resume=False):
    return execute(job, resume=resume, on_look=lambda _look: None)


def claim_again(server, build_id):
    return server.store.queue.claim_again(build_id, WORKER, now=now(), lease_s=30)


def test_a_build_ends_with_its_log_plan_and_events_kept_and_nothing_else(server):
    build_id = server.create({"env": ["OUTPUT=hello\n"]}, tags=["a"])
    assert run(server.job(server.claim())) is Status.SUCCESS
    stored = server.store.builds.find(build_id)
    assert stored.document["status"] == "SUCCESS"
    assert stored.document["steps"][0]["status"] == "SUCCESS"
    assert stored.document["tags"] == ["a"]
    assert stored.document["createTime"]
    assert "hello\n" in server.log(build_id)
    assert server.log(build_id).endswith("PUSH\nDONE\n")
    assert b'"steps"' in server.store.builds.plan(build_id)
    with open(f"{server.folder.log_folder(build_id)}/events.jsonl") as file:
        assert "buildFinished" in file.read()
    assert server.folder.run_ids() == ()
    assert server.store.queue.claimed() == []


def test_a_resumed_build_shows_all_steps_by_the_numbers_of_the_whole_build(server):
    steps = ({"id": "a"}, {"id": "b", "env": ["OUTPUT=hello\n"]}, {"id": "c", "waitFor": ["a"]})
    build_id = server.create(*steps, labels={"from_build": "old", "reused_steps": "0"})
    assert run(server.job(server.claim())) is Status.SUCCESS
    shown = server.document(build_id)["steps"]
    assert [(one["id"], one["status"], "timing" in one) for one in shown] == [
        ("a", "SUCCESS", False),
        ("b", "SUCCESS", True),
        ("c", "SUCCESS", True),
    ]
    assert shown[2]["waitFor"] == ["a"]
    assert 'Step #1 - "b": hello' in server.log(build_id)
    assert "Step #0" not in server.log(build_id)


def test_a_rollback_runs_its_step_alone_and_the_others_have_no_status(server):
    labels = {"from_build": "old", "rollback_step": "1", "rollback_to": "d"}
    build_id = server.create({}, {"id": "deploy", "env": ["OUTPUT=hello\n"]}, {}, labels=labels)
    assert run(server.job(server.claim())) is Status.SUCCESS
    shown = server.document(build_id)["steps"]
    assert [one.get("status") for one in shown] == [None, "SUCCESS", None]
    assert 'Step #1 - "deploy": hello' in server.log(build_id)


def test_what_is_announced_is_stored_before_it_is_done(server):
    build_id = server.create({}, {})
    seen = []

    def look(event):
        if isinstance(event, StepStarted):
            document = server.document(build_id)
            notes = BuildNotes(server.folder.run_folder(build_id))
            step = document["steps"][event.step]["status"]
            seen.append((document["status"], step, notes.steps_begun))

    assert run(server.job(server.claim(), listeners=(look,))) is Status.SUCCESS
    assert seen == [("WORKING", "WORKING", True)] * 2


def test_the_log_is_complete_and_stored_before_the_final_status_is_visible(server):
    build_id = server.create({}, logsBucket="gs://logs")
    claimed = server.claim()
    visible = []

    class Queue:
        def __getattr__(self, name):
            return getattr(server.store.queue, name)

        def record(self, lease, document):
            if document["status"] == "SUCCESS":
                visible.append((server.log(build_id), list(server.program.stored_logs)))
            server.store.queue.record(lease, document)

    assert run(server.job(claimed, queue=Queue())) is Status.SUCCESS
    [(log, stored)] = visible
    assert log.endswith("DONE\n")
    assert stored == [log.encode()]


def test_a_cancel_comes_by_the_renewal_of_the_lease(server):
    build_id = server.create({"env": ["SLEEP=long"]})
    requested = threading.Event()

    def cancel(event):
        if isinstance(event, StepRunning) and not requested.is_set():
            requested.set()
            server.store.builds.request_cancel("p", build_id, now=now(), reason="cancelled by ann")

    assert run(server.job(server.claim(), listeners=(cancel,))) is Status.CANCELLED
    assert server.document(build_id)["status"] == "CANCELLED"
    assert server.document(build_id)["statusDetail"] == "cancelled by ann"
    assert server.log(build_id).endswith("CANCELLED\nERROR: context canceled\n")


def test_who_lost_the_lease_before_it_begins_does_nothing(server):
    build_id = server.create({})
    claimed = server.claim()
    claim_again(server, build_id)
    with pytest.raises(LeaseLost):
        run(server.job(claimed))
    assert server.lost == [True]
    assert server.program.runs == 0


def test_who_loses_the_lease_while_a_step_runs_is_told_at_once(server):
    build_id = server.create({"env": ["SLEEP=long"]})
    lost = threading.Event()

    def take(event):
        if isinstance(event, StepRunning):
            claim_again(server, build_id)
            assert lost.wait(30)
            raise Died

    with pytest.raises(Died):
        run(server.job(server.claim(), lost=lost.set, listeners=(take,)))
    assert server.document(build_id)["status"] == "WORKING"


class AwayQueue:
    """A database that is away while a step runs."""

    def __init__(self, server):
        self._queue = server.store.queue
        self.away = False
        self.refused = 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if self.away:
                self.refused += 1
                raise StoreError("the database does not answer")
            return getattr(self._queue, name)(*args, **kwargs)

        return call


def test_a_build_goes_on_while_the_database_is_away_and_its_end_is_stored(server):
    build_id = server.create({}, {}, {})
    queue = AwayQueue(server)

    def switch(event):
        if isinstance(event, StepRunning):
            queue.away = event.step == 0

    assert run(server.job(server.claim(), queue=queue, listeners=(switch,))) is Status.SUCCESS
    assert queue.refused
    document = server.document(build_id)
    assert document["status"] == "SUCCESS"
    assert [step["status"] for step in document["steps"]] == ["SUCCESS"] * 3


DEPLOYS = {"env": ['WRITE=/builder/outputs/deployments.jsonl={"target": "run://p/r/web"}']}


def test_a_deployment_is_recorded_as_soon_as_its_step_has_succeeded(server):
    build_id = server.create({"id": "deploy", **DEPLOYS}, {})
    seen = []

    def look(event):
        if isinstance(event, StepStarted):
            seen.append(
                [one.target for one in server.store.deployments.of_build(build_id).deployments]
            )

    assert run(server.job(server.claim(), listeners=(look,))) is Status.SUCCESS
    assert seen == [[], ["run://p/r/web"]]
    (made,) = server.store.deployments.of_build(build_id).deployments
    assert (made.project_id, made.step, made.step_id) == ("p", 0, "deploy")


def test_a_deployment_is_recorded_when_the_database_is_back(server):
    build_id = server.create({}, DEPLOYS, {})
    queue = AwayQueue(server)

    def switch(event):
        if isinstance(event, StepRunning):
            queue.away = event.step == 1

    assert run(server.job(server.claim(), queue=queue, listeners=(switch,))) is Status.SUCCESS
    assert queue.refused
    assert len(server.store.deployments.of_build(build_id).deployments) == 1


def test_the_next_process_records_a_deployment_that_the_dead_one_missed(server):
    build_id = server.create(DEPLOYS)
    stored, _ = server.claim()
    events = EventLog(server.folder.log_folder(build_id))
    deployment = Deployment(target="run://p/r/web")
    ended = StepFinished(at=now(), step=0, status="SUCCESS", deployments=(deployment,))
    events.on_event(ended)
    events.close()
    notes = BuildNotes(server.folder.make_run_folder(build_id))
    notes.note_steps_begun()
    notes.note_final({**stored.document, "status": "SUCCESS"})
    assert run(server.job(claim_again(server, build_id)), resume=True) is Status.SUCCESS
    (made,) = server.store.deployments.of_build(build_id).deployments
    assert made.target == "run://p/r/web"


def test_the_end_waits_for_a_database_that_is_away(server):
    build_id = server.create({})
    queue = AwayQueue(server)
    job = server.job(server.claim(), queue=queue)

    def leave(event):
        queue.away = isinstance(event, StepRunning) or queue.away

    job = msgspec.structs.replace(job, listeners=(leave,))
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run(job)))
    thread.start()
    notes = BuildNotes(server.folder.run_folder(build_id))
    while notes.final() is None:
        thread.join(0.01)
    assert server.document(build_id)["status"] == "WORKING"
    queue.away = False
    thread.join(30)
    assert ended == [Status.SUCCESS]
    assert server.document(build_id)["status"] == "SUCCESS"


class RefusingQueue:
    """A queue of another version, which refuses documents of some statuses."""

    def __init__(self, server, *refused):
        self._queue = server.store.queue
        self._refused = refused
        self.tries = 0

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def record(self, lease, document):
        if document["status"] in self._refused:
            self.tries += 1
            raise InvalidRecord("steps[0].newField: no field of a step")
        self._queue.record(lease, document)


def test_an_end_that_the_server_refuses_is_recorded_with_the_reason(server):
    build_id = server.create({})
    queue = RefusingQueue(server, "SUCCESS")
    assert run(server.job(server.claim(), queue=queue)) is Status.INTERNAL_ERROR
    document = server.document(build_id)
    reason = (
        "the build ended with SUCCESS, which can't be recorded: steps[0].newField: no field of a "
        "step"
    )
    assert (document["status"], document["statusDetail"]) == ("INTERNAL_ERROR", reason)
    assert server.log(build_id).endswith(f"PUSH\nDONE\nERROR\nERROR: {reason}\n")
    assert queue.tries == 1


def test_a_build_whose_state_the_server_refuses_ends_at_once(server):
    build_id = server.create({}, {"env": ["OUTPUT=second\n"]})
    queue = RefusingQueue(server, "WORKING")
    assert run(server.job(server.claim(), queue=queue)) is Status.INTERNAL_ERROR
    assert "no field of a step" in server.document(build_id)["statusDetail"]
    assert "second" not in server.log(build_id)
    assert queue.tries == 1


def test_a_process_ends_if_the_server_refuses_every_end(server):
    build_id = server.create({})
    stored, lease = server.claim()
    queue = RefusingQueue(server, "SUCCESS", "INTERNAL_ERROR")
    with pytest.raises(InvalidRecord, match="no field of a step"):
        run(server.job((stored, lease), queue=queue))
    assert queue.tries == 2
    assert BuildNotes(server.folder.run_folder(build_id)).final()["status"] == "SUCCESS"


def test_a_build_whose_process_died_before_any_step_begins_again(server):
    build_id = server.create({"env": ["OUTPUT=hello\n"]})
    server.claim()
    assert run(server.job(claim_again(server, build_id)), resume=True) is Status.SUCCESS
    assert server.program.swept == [build_id]


def test_a_build_whose_notes_are_lost_ends_with_the_true_reason(server):
    build_id = server.create({"id": "test"}, logsBucket="gs://logs")
    stored, lease = server.claim()
    document = {**stored.document, "status": "WORKING"}
    document["steps"] = [{"name": "busybox", "id": "test", "status": "WORKING"}]
    server.store.queue.record(lease, document)
    notes = BuildNotes(server.folder.make_run_folder(build_id))
    notes.note_steps_begun()
    notes.note_death("it was killed by signal 9 (SIGKILL)")
    assert run(server.job(claim_again(server, build_id)), resume=True) is Status.INTERNAL_ERROR
    assert server.program.runs == 0
    assert server.program.swept == [build_id]
    ended = server.document(build_id)
    reason = (
        "the process of this build died: it was killed by signal 9 (SIGKILL); "
        'step 0 ("test") ran at that moment; what it takes to go on is lost'
    )
    assert ended["status"] == "INTERNAL_ERROR"
    assert ended["statusDetail"] == reason
    assert ended["finishTime"]
    assert ended["steps"][0]["status"] == "CANCELLED"
    assert server.log(build_id) == f"ERROR\nERROR: {reason}\n"
    assert server.program.stored_logs == [server.log(build_id).encode()]
    assert server.folder.run_ids() == ()


def test_a_build_whose_process_died_while_storing_its_end_gets_that_end(server):
    build_id = server.create({})
    stored, _ = server.claim()
    notes = BuildNotes(server.folder.make_run_folder(build_id))
    notes.note_steps_begun()
    notes.note_final({**stored.document, "status": "SUCCESS"})
    assert run(server.job(claim_again(server, build_id)), resume=True) is Status.SUCCESS
    assert server.program.runs == 0
    assert server.document(build_id)["status"] == "SUCCESS"


def test_a_bug_ends_the_build_and_leaves_a_report(server):
    build_id = server.create({})
    server.program.error = ZeroDivisionError("hunter22")
    assert run(server.job(server.claim())) is Status.INTERNAL_ERROR
    detail = server.document(build_id)["statusDetail"]
    assert detail == "this is a bug in buildrunner (ZeroDivisionError)"
    assert server.program.swept == [build_id]
    with open(f"{server.folder.path}/crashes/{build_id}.txt") as file:
        assert "ZeroDivisionError" in file.read()


def test_the_end_of_the_lease_by_our_own_end_is_no_loss(server):
    build_id = server.create({})
    claimed = server.claim()
    renewed = threading.Event()

    class Queue:
        def __getattr__(self, name):
            return getattr(server.store.queue, name)

        def record(self, lease, document):
            server.store.queue.record(lease, document)
            if document["status"] == "SUCCESS":
                renewed.clear()
                assert renewed.wait(30)  # what is renewed now is refused, before we know our end

        def renew(self, lease, **options):
            try:
                return server.store.queue.renew(lease, **options)
            finally:
                renewed.set()

    assert run(server.job(claimed, queue=Queue())) is Status.SUCCESS
    assert server.lost == []
    assert server.document(build_id)["status"] == "SUCCESS"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError([Problem("wrong", "steps")]), Status.FAILURE),
        (EngineUnavailable("no engine answers", hint="start it"), Status.INTERNAL_ERROR),
    ],
)
def test_a_build_that_cannot_be_run_says_why(server, error, status):
    build_id = server.create({})
    server.program.error = error
    assert run(server.job(server.claim())) is status
    document = server.document(build_id)
    assert document["status"] == status.name
    assert str(error) in document["statusDetail"]
    assert server.log(build_id) == f"ERROR\nERROR: {document['statusDetail']}\n"
