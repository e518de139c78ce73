"""A server's folder and database, and a program that runs builds on the engine in memory."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from buildrunner.containers.cleanup import clean_build
from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.running_build import RunContext
from buildrunner.logs.files.events import EventLog
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.plan.selection import only_step, without_steps
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.writing import encode_message
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.records import reused_steps_of, rollback_of
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.execution import Execution
from buildrunner.worker.recovery import PlannedNote
from buildrunner.workspace.kept import NotedWorkspace, encode_prepared
from buildrunner.workspace.volume import EmptyWorkspace
from tests.server_databases import new_store

WORKER = "worker-1"
QUICK = RunOptions(keep_logs=True, cancel_grace_s=0.0, failure_grace_s=0.0, timeout_grace_s=0.0)


def now():
    return datetime.now(UTC)


class Program:
    """Runs the request on the engine in memory."""

    def __init__(self, engine):
        self.engine = engine
        self.runs = 0
        self.swept = []
        self.stored_logs = []
        self.error = None

    def run(self, stored, run):
        self.runs += 1
        if self.error is not None:
            raise self.error
        context = PlanContext(built_ins=BuiltIns(build_id=stored.id, project_id="p"))
        build = decode_message(Build, stored.request).value
        resolved = resolve(build, context=context)
        plan = plan_resolved(resolved, context=context)
        if reused := reused_steps_of(stored.labels):
            plan = without_steps(plan, reused)
        if rollback := rollback_of(stored.labels):
            plan = only_step(plan, rollback.step)
        document = encode_message(resolved.build)
        run.on_plan(PlannedNote(document, msgspec.Raw(msgspec.json.encode(plan))))
        workspace = NotedWorkspace(
            EmptyWorkspace(), lambda made: run.on_workspace(encode_prepared(made))
        )
        return run_build(
            plan,
            RunContext(
                engine=self.engine,
                workspace=workspace,
                secrets=None,
                sink=run.sink,
                on_event=run.on_event,
                cancel=run.cancel,
                options=QUICK,
            ),
        )

    def sweep(self, build_id):
        self.swept.append(build_id)
        assert clean_build(self.engine, build_id, [], abandoned=False) == []

    def store_log(self, stored, build, path):
        with open(path, "rb") as file:
            self.stored_logs.append(file.read())
        return build


class Server:
    def __init__(self, path):
        self.folder = DataFolder(str(path))
        self.store = new_store(str(path))
        self.engine = FakeEngine(["busybox"])
        self.program = Program(self.engine)
        self.lost = []

    def create(self, *steps, labels=None, **fields):
        request = {"steps": [{"name": "busybox", **step} for step in steps], **fields}
        build_id = str(uuid.uuid4())
        document = {
            **request,
            "id": build_id,
            "projectId": "p",
            "createTime": now().isoformat().replace("+00:00", "Z"),
            "status": "QUEUED",
        }
        expires = now() + timedelta(hours=1)
        new = NewBuild(document=document, request=request, expires_at=expires, labels=labels or {})
        return self.store.builds.create(new).id

    def claim(self):
        return self.store.queue.claim(WORKER, now=now(), lease_s=30, limit=10)

    def job(self, claimed, **changes):
        stored, lease = claimed
        fields = {
            "queue": self.store.queue,
            "stored": stored,
            "lease": lease,
            "folder": self.folder,
            "program": self.program,
            "open_events": EventLog,
            "now": now,
            "lost": self.on_lost,
            "renew_s": 0.01,
            **changes,
        }
        return Execution(**fields)

    def on_lost(self):
        self.lost.append(True)

    def document(self, build_id):
        return self.store.builds.find(build_id).document

    def log(self, build_id):
        with open(f"{self.folder.log_folder(build_id)}/log.txt") as file:
            return file.read()


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "data")
    yield made
    made.store.close()
