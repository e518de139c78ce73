"""A build whose engine is told to end while a step runs, as when the Pod of both is deleted."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import pytest

from buildrunner import wiring
from buildrunner.addresses import Egress
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.events import BuildEvent, StepRunning
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.running_build import RunContext
from buildrunner.plan.resolve import PlanContext
from buildrunner.sandboxes import pod as pod_sandbox
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.workspace.volume import EmptyWorkspace
from tests.conftest import busybox_tar, needs_root
from tests.plans import plan_build
from tests.scenarios.test_scenarios import MemorySink, NoSecrets
from tests.security.test_pod_logins import Pod, engine_image, running_pod  # noqa: F401  (a fixture)

pytestmark = [needs_root, pytest.mark.docker]


@pytest.fixture
def pod(engine_image: str) -> Iterator[Pod]:  # noqa: F811
    with running_pod(engine_image, "capabilities", Egress()) as running:
        yield running


def ended(pod: Pod, script: str, monkeypatch: pytest.MonkeyPatch) -> BuildOutcome:
    """The end of a build of one step, whose engine is stopped as soon as the step runs."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pod.socket}")
    sandbox = wiring.sandbox("pod", data_folder="", labels={}, settings=Settings())
    build_id = str(uuid.uuid4())
    place = sandbox.open(build_id)
    place.engine.import_image("shell", [busybox_tar()], cmd=("sh",), env=("PATH=/bin",))
    sink = MemorySink()
    stopping: list[subprocess.Popen[bytes]] = []

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning):
            argv = ["docker", "--host=unix:///var/run/docker.sock", "stop", "--time=30", pod.name]
            stopping.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL))

    build = Build(steps=(BuildStep(name="shell", script=f"#!/bin/sh\n{script}"),))
    try:
        return run_build(
            plan_build(build, context=PlanContext(built_ins=BuiltIns(build_id=build_id))),
            RunContext(
                engine=place.engine,
                workspace=EmptyWorkspace(),
                secrets=NoSecrets(),
                sink=sink,
                on_event=on_event,
                cancel=CancelToken(),
                options=RunOptions(keep_logs=True),
            ),
        )
    finally:
        for process in stopping:
            process.wait()
        place.close()
        sandbox.close()


@pytest.mark.parametrize(
    "reaction",
    [
        "sleep 600",  # a shell with a child dies by SIGKILL only
        "trap 'exit 0' TERM; sleep 600 & wait",
        "trap 'exit 1' TERM; sleep 600 & wait",
    ],
)
def test_a_step_that_ends_since_its_engine_was_told_to_end_has_not_failed(
    pod: Pod, reaction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_sandbox, "_POD_ENDS_S", 1.0)
    outcome = ended(pod, reaction, monkeypatch)
    assert outcome.status is Status.INTERNAL_ERROR, outcome.error
    assert "container engine" in outcome.error
