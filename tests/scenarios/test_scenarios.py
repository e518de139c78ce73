"""Whole builds: each folder holds a config and what must come of it, on the fake and on Docker.

Keys of expected.json: ``status``, ``steps`` (statuses), ``exitCodes``, ``forgiven`` and
``oomKilled`` (indexes), ``failureType``, ``failingStep``, ``error`` / ``errorStarts``, ``outputs``,
``outputSizes``, ``warnings`` (parts), ``log`` / ``notLog`` (parts), ``order`` (parts, in this
order), ``engines`` (both without), and how to drive it: ``cancelWhenRunning`` (indexes),
``memoryMiB``, ``release`` (index of a step that runs -> name of sleepers that the fake lets go),
``fastRetries``. The environment of a step tells the fake what the command would do.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerEngine
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent, StepFinished, StepRunning
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.running_build import RunContext
from buildrunner.plan.build_plan import BuildPlan, ResourceLimits, SecretReference
from buildrunner.plan.resolve import PlanContext
from buildrunner.spec.reading.decode import load_build
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.workspace.volume import EmptyWorkspace
from tests.contract.test_container_engine import keeps_manifests
from tests.plans import plan_build

SCENARIOS = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))


class MemorySink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, chunk: LogChunk) -> None:
        self.data += chunk.data

    def close(self) -> None:
        pass


class NoSecrets:
    def resolve(self, reference: SecretReference, plan: object = None) -> str:
        raise AssertionError(reference)


class HastyClock(Clock):
    """Retries don't wait: chance takes all of the delay away, up to its 40 per cent, and more."""

    def chance(self) -> float:
        return 2.5


class Run:
    """One run of a scenario."""

    def __init__(self, folder: Path) -> None:
        self.expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
        loaded = load_build((folder / "cloudbuild.yaml").read_bytes(), file="cloudbuild.yaml")
        assert not loaded.problems, loaded.problems
        built_ins = BuiltIns(project_id="p1", build_id=str(uuid.uuid4()))
        self.plan: BuildPlan = plan_build(loaded.build, context=PlanContext(built_ins=built_ins))
        if memory := self.expected.get("memoryMiB"):
            limits = ResourceLimits(memory_bytes=memory * 2**20)
            self.plan = msgspec.structs.replace(self.plan, limits=limits)
        self.sink = MemorySink()
        self.digests_count = True
        self.events: list[BuildEvent] = []
        self.cancel = CancelToken()

    def on(
        self, engine: ContainerEngine, image: str, release: Callable[[str], None]
    ) -> BuildOutcome:
        awaited = set(self.expected.get("cancelWhenRunning", ()))
        releases = dict(self.expected.get("release", {}))

        def on_event(event: BuildEvent) -> None:
            self.events.append(event)
            if isinstance(event, StepRunning):
                if str(event.step) in releases:
                    release(releases[str(event.step)])
                if event.step in awaited:
                    awaited.discard(event.step)
                    if not awaited:
                        self.cancel.cancel()

        return run_build(
            self.plan,
            RunContext(
                engine=engine,
                workspace=EmptyWorkspace(),
                secrets=NoSecrets(),
                sink=self.sink,
                on_event=on_event,
                cancel=self.cancel,
                options=RunOptions(
                    image_aliases={"busybox": image} if image != "busybox" else {},
                    cancel_grace_s=0.2,
                    failure_grace_s=0.2,
                    timeout_grace_s=0.2,
                ),
                clock=HastyClock() if self.expected.get("fastRetries") else Clock(),
            ),
        )

    def check(self, outcome: BuildOutcome) -> None:
        expected, steps = self.expected, outcome.steps
        log = self.sink.data.decode()
        if not self.digests_count:
            log = log.replace("Already have image (with digest): ", "Already have image: ")
        seen = {
            "status": outcome.status.name,
            "steps": [step.status.name for step in steps],
            "exitCodes": [step.exit_code for step in steps],
            "forgiven": [step.index for step in steps if step.forgiven],
            "oomKilled": [step.index for step in steps if step.oom_killed],
            "failureType": outcome.failure_type.name if outcome.failure_type else "",
            "failingStep": outcome.failing_step,
            "error": outcome.error,
            "outputSizes": [len(step.output) for step in steps],
            "outputs": [step.output.decode() for step in steps],
        }
        if not any(step.output for step in steps):
            seen["outputs"] = []
        wanted = {key: value for key, value in expected.items() if key in seen}
        assert {key: seen[key] for key in wanted} == wanted, log
        assert outcome.error.startswith(expected.get("errorStarts", ""))
        for part in expected.get("warnings", ()):
            assert any(part in warning for warning in outcome.warnings)
        assert len(outcome.warnings) == len(seen["forgiven"]), outcome.warnings
        self.check_log(log)
        self.check_times(outcome)

    def check_log(self, log: str) -> None:
        for part in self.expected.get("log", ()):
            assert f"\n{part}" in log or part in log, log
        for part in self.expected.get("notLog", ()):
            assert part not in log.replace(self.plan.build_id, "ID"), log
        place = 0
        for part in self.expected.get("order", ()):
            place = log.find(part, place)
            assert place >= 0, f"{part} is missing or too early in\n{log}"
            place += len(part)

    def check_times(self, outcome: BuildOutcome) -> None:
        assert outcome.started_at <= outcome.finished_at
        for step in outcome.steps:
            if step.status.name == "QUEUED":
                assert step.timing is None
                assert step.pull_timing is None
            else:
                assert step.timing is not None
                assert step.timing.end is not None
                assert step.timing.start <= step.timing.end
        for span in outcome.phases.values():
            assert span.end is not None
        finished = [event.step for event in self.events if isinstance(event, StepFinished)]
        assert len(finished) == len(set(finished))


def name_of(folder: Path) -> str:
    return folder.name


def runs_on(engine: str) -> list[Path]:
    return [
        folder
        for folder in SCENARIOS
        if engine in json.loads((folder / "expected.json").read_text()).get("engines", (engine,))
    ]


@pytest.mark.parametrize("folder", runs_on("fake"), ids=name_of)
def test_on_the_engine_in_memory(folder: Path) -> None:
    run = Run(folder)
    engine = FakeEngine(["busybox"])
    run.check(run.on(engine, "busybox", engine.release))
    owned = engine.list_owned({LABEL_BUILD: run.plan.build_id})
    assert not owned.containers
    assert not owned.volumes
    assert not owned.networks


@pytest.mark.docker
@pytest.mark.parametrize("folder", runs_on("docker"), ids=name_of)
def test_on_docker(folder: Path, docker_engine: DockerEngine, busybox: str) -> None:
    run = Run(folder)
    if run.plan.limits.memory_bytes and not docker_engine.info().limits_resources:
        pytest.skip("this engine can't limit memory")
    run.digests_count = not keeps_manifests(docker_engine)
    run.check(run.on(docker_engine, busybox, lambda _name: None))
    owned = docker_engine.list_owned({LABEL_BUILD: run.plan.build_id})
    assert not owned.containers
    assert not owned.volumes
