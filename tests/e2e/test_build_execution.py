"""One Build document executed as a server's process does it: no argv, no terminal, no store."""

import uuid

import pytest

from buildrunner import wiring
from buildrunner.build_run.compile import PlannedBuild, with_commit
from buildrunner.build_run.execution import BuildExecution
from buildrunner.build_run.request import BuildRequest, LocalSource
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.events import BuildFinished, BuildStarted, PhaseStarted
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import ConfigError
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.problem import Problem
from buildrunner.settings import GitSettings, Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.model.results import FailureType
from buildrunner.spec.model.source import Dependency, GitSource, Source
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.store.records import apply_outcome
from tests.fixtures_git import Repository

pytestmark = pytest.mark.docker


class Log:
    def __init__(self):
        self.text = ""

    def write(self, chunk):
        self.text += chunk.data.decode()

    def close(self):
        """Nothing to close."""


class Run:
    """A build and all that was told of it."""

    def __init__(self, engine, image, tmp_path, script, **fields):
        self.id = str(uuid.uuid4())
        steps = (BuildStep(name=image, entrypoint="sh", args=("-c", script)),)
        self.build = Build(id=self.id, steps=steps, **fields)
        self.engine = engine
        self.settings = Settings(git=GitSettings(cache=str(tmp_path / "cache")))
        self.labels = {LABEL_BUILD: self.id}
        self.log = Log()
        self.events = []
        self.plans = []
        self.cancel = CancelToken()

    def plan(self, checkout):
        context = PlanContext(built_ins=with_commit(BuiltIns(build_id=self.id), checkout))
        resolved = resolve(self.build, context=context)
        plan = plan_resolved(resolved, context=context)
        options = RunOptions(network=f"test-{self.id}", labels=self.labels)
        return PlannedBuild(build=resolved.build, plan=plan, options=options)

    def execute(self, planner=None, local=None, policy=None):
        execution = BuildExecution(
            settings=self.settings,
            engine=self.engine,
            sink=self.log,
            on_event=self.events.append,
            on_planned=self.plans.append,
            cancel=self.cancel,
            source_policy=policy,
        )
        request = BuildRequest(build=self.build, local=local)
        return execution.execute(request, planner or self.plan)

    def left_behind(self):
        owned = self.engine.list_owned(self.labels)
        return [*owned.containers, *owned.volumes]


@pytest.fixture
def source(tmp_path):
    repository = Repository(tmp_path / "served")
    repository.tip = repository.commit({"README": b"one\n"})
    repository.push("main")
    repository.source = Source(git_source=GitSource(url=f"file://{repository.path}"))
    return repository


@pytest.fixture
def make(docker_engine, busybox, tmp_path):
    def made(script, **fields):
        return Run(docker_engine, busybox, tmp_path, script, **fields)

    return made


def test_a_git_source_is_fetched_planned_and_run(make, source):
    run = make("cat README; echo $COMMIT_SHA", source=source.source)
    executed = run.execute()
    assert executed.error is None
    assert executed.outcome.status is Status.SUCCESS, run.log.text
    assert f"one\n{source.tip}\n" in run.log.text
    assert run.log.text.count("FETCHSOURCE") == 1
    assert [type(event) for event in run.events[:2]] == [BuildStarted, PhaseStarted]
    assert sum(isinstance(event, BuildStarted) for event in run.events) == 1
    assert isinstance(run.events[-1], BuildFinished)
    finished = apply_outcome(run.plans[0].build, executed.outcome)
    assert finished.source_provenance.resolved_git_source.revision == source.tip
    assert finished.timing["FETCHSOURCE"].start_time == finished.start_time
    assert run.left_behind() == []


def test_a_source_that_policy_refuses_is_not_fetched(make, source):
    run = make("true", source=source.source)
    outcome = run.execute(policy=SourcePolicy()).outcome
    assert outcome.failure_type is FailureType.FETCH_SOURCE_FAILED
    assert "are not allowed here" in outcome.error
    assert run.plans == []


def test_what_cannot_be_planned_once_it_is_fetched_is_a_failure(make, source):
    run = make("true", source=source.source)

    def refuse(_checkout):
        raise ConfigError([Problem("is wrong", file="cloudbuild.yaml", line=1, column=2)])

    executed = run.execute(refuse)
    assert executed.outcome.status is Status.FAILURE
    assert executed.outcome.failure_type is None
    assert isinstance(executed.error, ConfigError)
    assert run.log.text.endswith("ERROR\nERROR: cloudbuild.yaml:1:2: is wrong\n")
    cache = wiring.git_mirror(run.settings)
    assert cache.trim() > 0  # and the checkout is nobody's: the next build may change it


def test_a_folder_and_nothing_need_no_fetch(make, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README").write_text("local\n")
    run = make("cat README")
    local = LocalSource(folder=str(tmp_path / "folder"))
    assert run.execute(local=local).outcome.status is Status.SUCCESS
    assert "\nlocal\n" in run.log.text
    empty = make("ls -A; echo end", dependencies=(Dependency(empty=True),))
    assert empty.execute(local=local).outcome.status is Status.SUCCESS
    assert "README" not in empty.log.text
    assert empty.left_behind() == []
