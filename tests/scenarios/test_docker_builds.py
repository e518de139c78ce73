"""Builds on Docker whose circumstances a folder of scenario files can't say."""

from __future__ import annotations

import subprocess
import threading
import uuid

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.events import BuildEvent, StepRunning
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.running_build import RunContext
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.spec.model.build import Status
from buildrunner.spec.model.results import FailureType
from buildrunner.workspace.volume import EmptyWorkspace
from tests.conftest import Registry, busybox_tar, remove_image
from tests.contract.test_container_engine import is_podman

pytestmark = pytest.mark.docker


class MemorySink:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def write(self, chunk: LogChunk) -> None:
        self.chunks.append(chunk.data)

    def close(self) -> None:
        pass

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks)


class Secrets:
    def resolve(self, reference: SecretReference, plan: object = None) -> str:
        return f"value of {reference.name}"


class DockerBuild:
    def __init__(self, engine: DockerEngine, *steps: StepPlan, **fields: object) -> None:
        build_id = str(uuid.uuid4())
        self.plan = BuildPlan(build_id=build_id, project_id="p1", steps=steps, **fields)  # type: ignore[arg-type]
        self.engine = engine
        self.sink = MemorySink()
        self.cancel = CancelToken()

    def run(self, on_event: object = None, **options: object) -> BuildOutcome:
        def nothing(event: BuildEvent) -> None: ...

        try:
            return run_build(
                self.plan,
                RunContext(
                    engine=self.engine,
                    workspace=EmptyWorkspace(),
                    secrets=Secrets(),
                    sink=self.sink,
                    on_event=on_event or nothing,  # type: ignore[arg-type]
                    cancel=self.cancel,
                    options=RunOptions(**options),  # type: ignore[arg-type]
                ),
            )
        finally:
            owned = self.engine.list_owned({LABEL_BUILD: self.plan.build_id})
            assert not owned.containers
            assert not owned.volumes


def a_row(image: str, *commands: tuple[str, ...]) -> tuple[StepPlan, ...]:
    return tuple(
        StepPlan(index=index, image=image, args=args, depends_on=tuple(range(index)))
        for index, args in enumerate(commands)
    )


def test_images_are_pushed_and_the_registry_has_them(
    docker_engine: DockerEngine, busybox: str, registry: Registry
) -> None:
    name = f"{registry.address}/engine-{uuid.uuid4().hex[:8]}"
    for tag in ("v1", "latest"):
        subprocess.run(["docker", "tag", busybox, f"{name}:{tag}"], check=True)
    try:
        build = DockerBuild(
            docker_engine, *a_row(busybox, ("true",)), images=(f"{name}:v1", f"{name}:latest", name)
        )
        outcome = build.run()
        assert outcome.status is Status.SUCCESS, build.sink.data
        assert [image.name for image in outcome.images] == [
            f"{name}:v1",
            name,
            f"{name}:latest",
            name,
            f"{name}:latest",
            f"{name}:v1",
        ]
        (digest,) = {image.digest for image in outcome.images}
        log = build.sink.data.decode()
        first = f"{name}:v1" if is_podman(docker_engine) else name
        assert f"\nPUSH\nPushing {name}:v1\nThe push refers to repository [{first}]\n" in log
        assert f"\nv1: digest: {digest} size: " in log
    finally:
        for tag in ("v1", "latest"):
            remove_image(f"{name}:{tag}")
    pulled = docker_engine.pull_image(
        f"{name}@{digest}", on_progress=lambda _: None, cancel=threading.Event()
    )
    try:
        assert pulled.digest == digest
        build = DockerBuild(
            docker_engine, *a_row(f"{name}@{digest}", ("echo", "from the registry"))
        )
        outcome = build.run()
        assert outcome.steps[0].image_digest == digest
        assert f"Already have image (with digest): {name}@{digest}\nfrom the reg".encode() in (
            build.sink.data
        )
    finally:
        remove_image(f"{name}@{digest}")


def test_a_step_image_is_pulled_from_a_registry(
    docker_engine: DockerEngine, registry: Registry
) -> None:
    name = f"{registry.address}/pulled-{uuid.uuid4().hex[:8]}:v1"
    tar = [busybox_tar()]
    docker_engine.import_image(name, tar, env=["PATH=/bin"])  # by no other name: Podman notes all
    pushed = docker_engine.push_image(name, on_progress=lambda _: None, cancel=threading.Event())
    remove_image(name)
    try:
        build = DockerBuild(docker_engine, *a_row(name, ("echo", "one"), ("echo", "two")))
        outcome = build.run()
        assert [step.image_digest for step in outcome.steps] == [pushed.digest] * 2
        log = build.sink.data.decode()
        assert f"Step #0: Pulling image: {name}\nStep #0: Digest: {pushed.digest}\n" in log
        assert f"Step #1: Already have image (with digest): {name}\n" in log
    finally:
        remove_image(name)


def test_a_registry_that_is_not_there_fails_the_push(
    docker_engine: DockerEngine, busybox: str
) -> None:
    name = f"127.0.0.1:1/engine-{uuid.uuid4().hex[:8]}:v1"
    subprocess.run(["docker", "tag", busybox, name], check=True)
    try:
        build = DockerBuild(docker_engine, *a_row(busybox, ("true",)), images=(name,), timeout_s=60)

        def on_event(event: BuildEvent) -> None:
            if type(event).__name__ == "PushStarted" and event.attempt == 2:  # type: ignore[union-attr]
                build.cancel.cancel()

        outcome = build.run(on_event)
        log = build.sink.data.decode()
        assert outcome.status is Status.CANCELLED
        assert "ERROR: push attempt 1 detected failure, retrying: " in log
    finally:
        remove_image(name)


def test_a_cancel_kills_what_does_not_listen(docker_engine: DockerEngine, busybox: str) -> None:
    deaf = ("sh", "-c", "trap '' TERM; touch /workspace/x; while true; do sleep 0.1; done")
    steps = [StepPlan(index=index, image=busybox, args=deaf) for index in range(4)]
    build = DockerBuild(docker_engine, *steps)
    running: set[int] = set()

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning):
            running.add(event.step)
            if len(running) == len(steps):
                build.cancel.cancel()

    outcome = build.run(on_event)
    assert outcome.status is Status.CANCELLED
    assert {step.status for step in outcome.steps} == {Status.CANCELLED}


def test_secrets_are_in_the_environment_and_not_in_the_log(
    docker_engine: DockerEngine, busybox: str
) -> None:
    secret = SecretReference(env="KEY", kind="secretManager", name="secret")
    step = StepPlan(
        index=0,
        image=busybox,
        args=("sh", "-c", 'echo "$KEY" | sed "s/value/VALUE/"; echo "$KEY"; echo "$KEY" | base64'),
        secrets=(secret,),
    )
    build = DockerBuild(docker_engine, step)
    assert build.run().status is Status.SUCCESS
    assert b"\nVALUE of secret\n***\n***" in build.sink.data
    assert b"value of secret" not in build.sink.data


def test_containers_that_steps_leave_on_the_network_are_removed(
    docker_engine: DockerEngine, busybox: str
) -> None:
    name = f"stray-{uuid.uuid4()}"
    build = DockerBuild(docker_engine, *a_row(busybox, ("true",)))

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning):
            spec = ContainerSpec(
                name=name, image=busybox, cmd=("sleep", "600"), network=build_network
            )
            docker_engine.start_container(docker_engine.create_container(spec), attach=False)

    build_network = f"test-{uuid.uuid4().hex[:8]}"
    try:
        assert build.run(on_event, network=build_network).status is Status.SUCCESS
        left = subprocess.run(
            ["docker", "ps", "--all", "--quiet", "--filter", f"name={name}"],
            capture_output=True,
            check=True,
        )
        assert left.stdout == b""
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)
        docker_engine.remove_network(build_network)


def test_an_image_without_permission_to_run_is_named_by_the_step(
    docker_engine: DockerEngine, busybox: str
) -> None:
    step = StepPlan(index=0, image=busybox, entrypoint="/etc/passwd")
    outcome = DockerBuild(docker_engine, step).run()
    assert outcome.failure_type is FailureType.USER_BUILD_STEP
    assert outcome.steps[0].exit_code == 126


def test_every_line_arrives_whole_and_in_order(docker_engine: DockerEngine, busybox: str) -> None:
    lines = 200_000
    command = ("sh", "-c", f"seq -w 1 {lines}")
    build = DockerBuild(docker_engine, *a_row(busybox, command, ("true",)))
    build.run()
    numbers = [
        int(line.removeprefix(b"Step #0: "))
        for line in build.sink.data.split(b"\n")
        if line.startswith(b"Step #0: ") and line[9:].isdigit()
    ]
    assert numbers == list(range(1, lines + 1))
