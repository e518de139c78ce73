from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.containers.fake import FakeContainer, FakeEngine
from buildrunner.containers.protocol import (
    LABEL_BUILD,
    ContainerSpec,
    ImageInfo,
    Mount,
)
from buildrunner.engine.deployments import Deployment
from buildrunner.engine.events import (
    BuildEvent,
    BuildFinished,
    BuildStarted,
    ImageReady,
    PullFinished,
    PullStarted,
    StepFinished,
    StepRunning,
    StepStarted,
)
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import (
    ContainerStartError,
    EngineError,
    EngineUnavailable,
    ImagePullError,
    ImagePushError,
    SourceError,
)
from buildrunner.plan.build_plan import SecretReference, StepPlan, VolumeMount
from buildrunner.spec.model.build import Status
from buildrunner.spec.model.results import FailureType
from buildrunner.workspace.protocol import Preparation, PreparedWorkspace, volume_name
from buildrunner.workspace.volume import EmptyWorkspace
from tests.unit.engine.conftest import BUILD_ID, QUICK, Build, MemorySink, Secrets, step

DIGEST = "sha256:" + "1" * 64


def info(name: str, digest: str = DIGEST) -> ImageInfo:
    return ImageInfo(id=f"sha256:{name}", digest=digest)


def containers_of(build: Build, name: str) -> list[FakeContainer]:
    """The containers whose name begins so, in order of creation."""
    return [one for one in build.engine.containers.values() if one.spec.name.startswith(name)]


def test_events_tell_the_whole_story_in_order() -> None:
    build = Build(step(0), step(1))
    build.run()
    names = [type(event).__name__ for event in build.events]
    assert names[0] == "BuildStarted"
    assert names[-1] == "BuildFinished"
    story = [
        (type(event).__name__, event.step)
        for event in build.events
        if isinstance(event, StepStarted | StepRunning | StepFinished)
    ]
    assert story == [
        ("StepStarted", 0),
        ("StepRunning", 0),
        ("StepFinished", 0),
        ("StepStarted", 1),
        ("StepRunning", 1),
        ("StepFinished", 1),
    ]
    started, finished = build.events[0], build.events[-1]
    assert isinstance(started, BuildStarted)
    assert isinstance(finished, BuildFinished)
    assert (started.build_id, started.steps) == (BUILD_ID, 2)
    assert (finished.status, finished.error) == ("SUCCESS", "")


def test_a_resumed_build_keeps_the_numbers_of_its_steps() -> None:
    build = Build(step(2, "OUTPUT=two\n", depends_on=()), step(4, "OUTPUT=four\n", depends_on=(0,)))
    outcome = build.run()
    assert "Step #2: two" in build.sink.lines
    assert "Step #4: four" in build.sink.lines
    assert [event.step for event in build.events if isinstance(event, StepFinished)] == [2, 4]
    assert [one.index for one in outcome.steps] == [2, 4]


def test_a_step_gets_what_the_hosted_service_gives_it() -> None:
    build = Build(
        step(
            0,
            "A=1",
            args=("echo", "$HOME"),
            workdir="/workspace/sub",
            volumes=(VolumeMount("cache", "/cache"),),
        ),
        volumes=("cache",),
    )
    build.run()
    (spec,) = [one.spec for one in build.engine.containers.values()]
    assert spec.name == f"step_0-{BUILD_ID}"
    assert spec.env == ("HOME=/builder/home", "BUILDER_OUTPUT=/builder/outputs", "A=1")
    assert spec.cmd == ("echo", "$HOME")
    assert spec.entrypoint is None
    assert spec.workdir == "/workspace/sub"
    assert spec.network == "cloudbuild"
    assert not spec.privileged
    assert [(mount.source, mount.target, mount.bind) for mount in spec.mounts] == [
        ("/var/run/docker.sock", "/var/run/docker.sock", True),
        (f"buildrunner-{BUILD_ID}-workspace", "/workspace", False),
        (f"buildrunner-{BUILD_ID}-home", "/builder/home", False),
        (f"buildrunner-{BUILD_ID}-outputs-0", "/builder/outputs", False),
        (f"buildrunner-{BUILD_ID}-volume-cache", "/cache", False),
    ]


def test_a_step_gets_the_socket_of_the_engine_that_it_runs_on() -> None:
    build = Build(step(0))
    build.engine.socket_path = "/run/user/1000/docker.sock"
    build.run()
    (spec,) = [one.spec for one in build.engine.containers.values()]
    assert spec.mounts[0] == Mount(
        source="/run/user/1000/docker.sock", target="/var/run/docker.sock", bind=True
    )


def test_where_the_engines_socket_is_not_known_steps_get_none_and_the_build_warns() -> None:
    build = Build(step(0))
    build.engine.socket_path = ""
    outcome = build.run()
    (spec,) = [one.spec for one in build.engine.containers.values()]
    assert "docker.sock" not in repr(spec.mounts)
    assert outcome.warnings == ("Steps can't use the container engine: it has no socket",)
    assert outcome.status is Status.SUCCESS


def test_without_the_socket_a_step_does_not_get_it() -> None:
    build = Build(step(0, "HOME=/root"), docker_socket=False)
    build.run()
    (spec,) = [one.spec for one in build.engine.containers.values()]
    assert "docker.sock" not in repr(spec.mounts)
    assert spec.env == ("BUILDER_OUTPUT=/builder/outputs", "HOME=/root")


# -- secrets -----------------------------------------------------------------------------------


def test_a_secret_reaches_its_step_and_never_the_log() -> None:
    reference = SecretReference(env="KEY", kind="secretManager", name="projects/p/secrets/key")
    build = Build(
        step(0, "OUTPUT=it is hunter22\n", secrets=(reference,)),
        step(1, "OUTPUT=still hunter22\n", "WRITE=/builder/outputs/output=hunter22"),
    )
    build.secrets = Secrets({reference.name: "hunter22"})
    outcome = build.run()
    first, second = [one.spec for one in containers_of(build, "step_")]
    assert first.env[-1] == "KEY=hunter22"
    assert not any(entry.startswith("KEY=") for entry in second.env)
    assert "Step #0: it is ***" in build.sink.lines
    assert "Step #1: still ***" in build.sink.lines
    assert outcome.steps[1].output == b"***"
    assert build.secrets.requested == [reference.name]


# -- deployments -------------------------------------------------------------------------------

REPORT = "WRITE=/builder/outputs/deployments.jsonl="


def test_a_step_that_succeeded_deployed_what_it_reported() -> None:
    build = Build(
        step(0),
        step(1, REPORT + '{"target": "run://p/r/web", "images": ["app@sha256:1"]}'),
    )
    outcome = build.run()
    deployment = Deployment(target="run://p/r/web", images=("app@sha256:1",), reported=True)
    assert [one.deployments for one in outcome.steps] == [(), (deployment,)]
    ended = [event for event in build.events if isinstance(event, StepFinished)]
    assert [event.deployments for event in ended] == [(), (deployment,)]
    assert outcome.steps[1].output == b""


def test_a_step_that_failed_deployed_what_it_reported_and_not_what_its_command_suggests() -> None:
    build = Build(step(0, REPORT + '{"target": "run://p/r/web"}', "EXIT_CODE=1"))
    assert [one.target for one in build.run().steps[0].deployments] == ["run://p/r/web"]
    failing = step(0, "EXIT_CODE=1", entrypoint="kubectl", args=("apply", "-f", "k8s"))
    assert Build(failing).run().steps[0].deployments == ()


def test_a_report_that_can_not_be_read_is_named_in_the_log_and_fails_nothing() -> None:
    build = Build(step(0, REPORT + "no JSON"))
    outcome = build.run()
    assert outcome.status is Status.SUCCESS
    assert any("line 1 of $BUILDER_OUTPUT/deployments.jsonl" in one for one in build.sink.lines)


def test_no_secret_is_in_a_deployment() -> None:
    reference = SecretReference(env="KEY", kind="secretManager", name="key")
    report = '{"target": "run://p/r/web", "version": "hunter22"}'
    build = Build(step(0, REPORT + report, secrets=(reference,)))
    build.secrets = Secrets({"key": "hunter22"})
    (deployment,) = build.run().steps[0].deployments
    assert deployment.version == "***"


def test_without_a_report_the_command_of_the_step_suggests_a_target() -> None:
    deploy = step(0, entrypoint="kubectl", args=("set", "image", "deploy/web", "web=app:1"))
    (deployment,) = Build(deploy).run().steps[0].deployments
    assert not deployment.reported
    assert deployment.target == "kubernetes://-/default/Deployment/web"


class Released(EmptyWorkspace):
    """A workspace that notes its release."""

    released = False

    def release(self) -> None:
        self.released = True
        super().release()


@pytest.mark.parametrize("deploys", [True, False])
def test_the_workspace_of_a_build_that_deployed_is_released_also_where_others_clean_up(
    deploys: bool,
) -> None:
    build = Build(step(0, *([REPORT + '{"target": "run://p/r/web"}'] if deploys else [])))
    build.workspace = workspace = Released()
    try:
        build.run(msgspec.structs.replace(QUICK, leave_cleanup_to_guardian=True))
    except AssertionError:  # what is left behind is the guardian's
        assert not deploys
    assert workspace.released is deploys


ONE, TWO = (f"app@sha256:{digit * 64}" for digit in "12")


@pytest.mark.parametrize(("deployed", "status"), [(ONE, Status.SUCCESS), (TWO, Status.FAILURE)])
def test_a_rollback_that_deployed_another_image_fails(deployed: str, status: Status) -> None:
    report = f'{{"target": "run://p/r/web", "images": ["{deployed}"]}}'
    outcome = Build(step(0, REPORT + report, pinned_images=(ONE,))).run()
    assert outcome.status is status
    assert len(outcome.steps[0].deployments) == 1  # it runs there, whatever was wanted
    if status is Status.FAILURE:
        error = f"the rollback is to {ONE}, but run://p/r/web runs {TWO} now"
        assert outcome.steps[0].error == error
        assert outcome.failing_step == 0


def test_a_missing_secret_fails_the_build_before_any_step() -> None:
    reference = SecretReference(env="KEY", kind="secretManager", name="projects/p/secrets/key")
    build = Build(step(0, secrets=(reference,)))
    outcome = build.run()
    assert outcome.status is Status.FAILURE
    assert outcome.error == "no secret projects/p/secrets/key"
    assert not build.called("start_container")


def test_short_secrets_are_warned_about() -> None:
    reference = SecretReference(env="KEY", kind="secretManager", name="n")
    build = Build(step(0, secrets=(reference,)))
    build.secrets = Secrets({"n": "no"})
    assert "can't be hidden" in build.run().warnings[0]


def test_all_missing_secrets_are_named_at_once() -> None:
    references = tuple(
        SecretReference(env=env, kind="secretManager", name=f"projects/p/secrets/{env}")
        for env in ("A", "B", "C")
    )
    build = Build(step(0, secrets=references))
    build.secrets = Secrets({references[1].name: "value"})
    assert build.run().error == "no secret projects/p/secrets/A; no secret projects/p/secrets/C"


@pytest.mark.parametrize("error", [EngineError, EngineUnavailable, ContainerStartError])
def test_what_the_engine_says_of_a_start_is_masked_everywhere(error: type[EngineError]) -> None:
    class Quoting(FakeEngine):
        def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
            raise error("invalid variable KEY=hunter22")

    reference = SecretReference(env="KEY", kind="secretManager", name="n")
    build = Build(step(0, secrets=(reference,)))
    build.engine = Quoting(["busybox"])
    build.secrets = Secrets({"n": "hunter22"})
    outcome = build.run()
    assert outcome.status is not Status.SUCCESS
    for told in (repr(outcome), repr(build.events), build.sink.data.decode()):
        assert "hunter22" not in told


def test_why_a_container_could_not_start_is_the_last_line_of_its_step() -> None:
    build = Build(step(0, "START_FAIL=nothere: not found"))
    build.run()
    ended = next(event for event in build.events if isinstance(event, StepFinished))
    assert ended.exit_code == 127
    assert ended.last_lines == ("the container can't start: nothere: not found",)


def test_a_bug_that_quotes_a_secret_is_reported_without_it() -> None:
    class Broken(FakeEngine):
        def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
            raise ZeroDivisionError(f"{self.containers[container_id].spec.env[-1]}")

    build = Build(step(0, secrets=(SecretReference(env="KEY", kind="secretManager", name="n"),)))
    build.engine = Broken(["busybox"])
    build.secrets = Secrets({"n": "hunter22"})
    with pytest.raises(ZeroDivisionError, match=r"^KEY=\*\*\*$"):
        build.run()


def test_a_cancelled_build_waits_for_nobody_who_looks_for_secrets() -> None:
    requested, released = threading.Event(), threading.Event()

    class Slow(Secrets):
        def resolve(self, reference: SecretReference, plan: object = None) -> str:
            requested.set()
            released.wait(60)
            return "too late"

    build = Build(step(0, secrets=(SecretReference(env="KEY", kind="secretManager", name="n"),)))
    build.secrets = Slow({})
    canceller = threading.Thread(target=lambda: requested.wait(60) and build.cancel.cancel())
    canceller.start()
    assert build.run().status is Status.CANCELLED
    assert not released.is_set()
    released.set()
    canceller.join()


# -- images ------------------------------------------------------------------------------------


def test_missing_images_are_pulled_once_each_ahead_of_need() -> None:
    build = Build(
        step(0, image="app:1"),
        step(1, image="app:1"),
        step(2, image="tool"),
        step(3, image="app:1"),
    )
    build.engine.registry = {"app:1": info("app"), "tool:latest": info("tool")}
    outcome = build.run()
    assert outcome.status is Status.SUCCESS
    assert sorted(build.called("pull_image")) == ["app:1", "tool"]
    assert build.sink.lines[4:8] == [
        "Starting Step #0",
        "Step #0: Pulling image: app:1",
        f"Step #0: Digest: {DIGEST}",
        "Step #0: Status: Downloaded newer image for app:1",
    ]
    assert "Step #1: Already have image (with digest): app:1" in build.sink.lines
    assert "Step #2: Status: Downloaded newer image for tool:latest" in build.sink.lines
    assert [one.image_digest for one in outcome.steps] == [DIGEST] * 4
    pulls = [event for event in build.events if isinstance(event, PullStarted | PullFinished)]
    assert {event.image for event in pulls} == {"app:1", "tool"}


def test_a_container_starts_once_its_listener_knows_that_the_pull_has_ended() -> None:
    """Until then, the stored build says that none was started: another worker may run it."""
    build = Build(step(0, image="app"), step(1))
    build.engine.registry = {"app:latest": info("app")}
    begun, started = threading.Event(), threading.Event()
    pull, start = build.engine.pull_image, build.engine.start_container

    def held_pull(*args: object, **named: object) -> ImageInfo:
        assert begun.wait(10)
        return pull(*args, **named)  # type: ignore[arg-type]

    def watched_start(*args: object, **named: object) -> Iterator[bytes]:
        started.set()
        return start(*args, **named)  # type: ignore[arg-type]

    build.engine.pull_image = held_pull  # type: ignore[method-assign]
    build.engine.start_container = watched_start  # type: ignore[method-assign]

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepStarted):
            begun.set()
        if isinstance(event, ImageReady):
            assert not started.wait(0.2)

    assert build.run(on_event=on_event).status is Status.SUCCESS
    story = [
        (type(event).__name__, event.step, getattr(event, "pulls", None))
        for event in build.events
        if isinstance(event, StepStarted | ImageReady | StepRunning)
    ]
    assert story == [
        ("StepStarted", 0, True),
        ("ImageReady", 0, None),
        ("StepRunning", 0, None),
        ("StepStarted", 1, False),
        ("StepRunning", 1, None),
    ]


def test_a_pull_is_tried_again_when_that_may_help() -> None:
    build = Build(step(0, image="app"))
    build.engine.registry = {"app:latest": info("app")}
    build.engine.pull_errors = {"app": [ImagePullError("502", transient=True)] * 10}
    assert build.run().status is Status.SUCCESS
    assert len(build.called("pull_image")) == 11


def test_a_pull_is_given_up_after_eleven_tries() -> None:
    build = Build(step(0, image="app"), step(1))
    error = ImagePullError("502", transient=True, hint="Is it reachable?")
    build.engine.pull_errors = {"app": [error] * 20}
    outcome = build.run()
    assert len(build.called("pull_image")) == 11
    assert outcome.error == 'error pulling build step 0 "app": 502. Is it reachable?'
    assert [one.status for one in outcome.steps] == [Status.FAILURE, Status.QUEUED]
    assert "Step #0: ERROR: failed to pull because we ran out of retries." in build.sink.lines
    assert "Finished Step #0" not in build.sink.lines
    assert outcome.steps[0].timing == outcome.steps[0].pull_timing


def test_a_failed_pull_says_what_could_serve_the_image() -> None:
    advice = {"app": "`buildrunner builders install app` makes a drop-in for it"}
    build = Build(step(0, image="app"))
    outcome = build.run(RunOptions(image_advice=advice))
    assert outcome.error.endswith(". `buildrunner builders install app` makes a drop-in for it")


def test_one_error_names_all_images_that_cant_be_pulled_and_the_command_for_them() -> None:
    build = Build(step(0, image="app"), step(1), step(2, image="tool"), step(3, image="own"))
    options = RunOptions(
        image_advice={"app": "install app", "tool": "install tool"},
        install_command="buildrunner builders install --for build.yaml",
    )
    assert build.run(options).error.endswith(
        "not found. These images can't be pulled either: tool, own. "
        "`buildrunner builders install --for build.yaml` makes images for app, tool"
    )


def test_an_image_that_can_be_pulled_is_not_named_as_missing() -> None:
    build = Build(step(0, image="app"), step(1, image="there"))
    build.engine.registry = {"there:latest": info("there")}
    assert build.run().error.endswith('"app": the image app can\'t be pulled: not found')


def test_a_registry_whose_host_has_no_address_is_tried_twice() -> None:
    build = Build(step(0, image="app"))
    lost = ImagePullError("no such host", transient=True, unresolved=True)
    build.engine.pull_errors = {"app": [lost] * 20}
    assert build.run().status is Status.FAILURE
    assert len(build.called("pull_image")) == 2
    assert not any("out of retries" in line for line in build.sink.lines)


def test_a_registry_that_had_an_address_before_is_tried_on() -> None:
    build = Build(step(0, image="app"))
    lost = ImagePullError("no such host", transient=True, unresolved=True)
    build.engine.pull_errors = {"app": [ImagePullError("502", transient=True), *[lost] * 9]}
    build.engine.registry = {"app:latest": info("app")}
    assert build.run().status is Status.SUCCESS
    assert len(build.called("pull_image")) == 11


def test_an_engine_that_breaks_off_during_a_pull_is_no_fault_of_the_image() -> None:
    build = Build(step(0, image="app"))
    gone = EngineUnavailable("the engine broke off", hint="Look at its log.")
    build.engine.pull_errors = {"app": [gone]}
    outcome = build.run(RunOptions(image_advice={"app": "another image"}))
    assert outcome.status is Status.INTERNAL_ERROR
    assert outcome.error == (
        'error pulling build step 0 "app": the engine broke off. Look at its log.'
    )
    assert build.called("pull_image") == ["app"]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_step_that_fails_while_its_engine_ends_did_not_fail_by_itself(allowed: bool) -> None:
    class Ending(FakeEngine):
        def ping(self, *, anew: bool = False) -> None:
            raise EngineUnavailable("no engine answers")

    build = Build(step(0, "EXIT_CODE=1", allow_failure=allowed), step(1))
    build.engine = Ending(["busybox"])
    outcome = build.run()
    assert outcome.status is Status.INTERNAL_ERROR
    assert outcome.error == 'build step 0 "busybox" failed: no engine answers'
    assert (outcome.steps[0].exit_code, outcome.steps[0].forgiven) == (None, False)
    assert outcome.steps[1].status is not Status.SUCCESS


def test_a_refused_pull_is_not_tried_again() -> None:
    build = Build(step(0, image="app"))
    assert build.run().status is Status.FAILURE
    assert build.called("pull_image") == ["app"]
    assert build.sink.lines[-2:] == [
        "ERROR",
        'ERROR: error pulling build step 0 "app": the image app can\'t be pulled: not found',
    ]


@pytest.mark.parametrize(("codes", "status"), [((), "SUCCESS"), ((1,), "FAILURE")])
def test_allow_failure_forgives_a_pull_and_exit_codes_do_not(
    codes: tuple[int, ...], status: str
) -> None:
    build = Build(step(0, image="app", allow_failure=True, allow_exit_codes=codes), step(1))
    outcome = build.run()
    assert outcome.status.name == status
    assert outcome.steps[0].status is Status.FAILURE
    assert outcome.steps[0].forgiven == (status == "SUCCESS")


def test_an_image_that_an_earlier_step_builds_is_not_pulled() -> None:
    build = Build(step(0, args=("build", "-t", "local/app", ".")), step(1, image="local/app"))
    build.engine.registry = {"local/app:latest": info("old")}

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning) and event.step == 0:
            build.engine.add_image("local/app")

    outcome = build.run(on_event=on_event)
    assert outcome.status is Status.SUCCESS
    assert not build.called("pull_image")
    assert "Step #1: Already have image: local/app" in build.sink.lines
    assert outcome.steps[1].image_digest == ""


def test_a_failed_prefetch_is_no_error_when_the_image_appears_in_time() -> None:
    """Nothing in the config tells that step 0 builds it."""
    build = Build(step(0, "SLEEP=built", args=("make",)), step(1, image="app"))

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, PullFinished):
            assert event.error
            build.engine.add_image("app")
            build.engine.release("built")

    assert build.run(on_event=on_event).status is Status.SUCCESS
    assert build.called("pull_image") == ["app"]


def test_a_failed_prefetch_is_repeated_for_an_image_that_an_earlier_step_pushed() -> None:
    build = Build(step(0, "SLEEP=pushed", args=("make",)), step(1, image="app"))

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, PullFinished) and event.error:
            build.engine.registry = {"app:latest": info("app")}
            build.engine.release("pushed")

    assert build.run(on_event=on_event).status is Status.SUCCESS
    assert build.called("pull_image") == ["app", "app"]


def test_an_image_that_a_step_removed_is_pulled_again() -> None:
    build = Build(step(0, image="app"), step(1), step(2, image="app"))
    build.engine.registry = {"app:latest": info("app")}

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepFinished) and event.step == 0:
            with build.engine._lock:
                del build.engine._images["app:latest"]

    assert build.run(on_event=on_event).status is Status.SUCCESS
    assert build.called("pull_image") == ["app", "app"]


def test_a_step_whose_image_was_rebuilt_meanwhile_runs_the_new_one() -> None:
    """Its container was created ahead, with the image of that time."""
    build = Build(step(0, "SLEEP=rebuilt"), step(1, image="app"))
    build.engine.add_image("app")
    old = build.engine.find_image("app")
    ahead = threading.Event()
    create = build.engine.create_container

    def creating(spec: object) -> str:
        made = create(spec)  # type: ignore[arg-type]
        if "step_1" in spec.name:  # type: ignore[attr-defined]
            ahead.set()
        return made

    build.engine.create_container = creating  # type: ignore[method-assign]

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning) and event.step == 0:
            threading.Thread(target=rebuild).start()

    def rebuild() -> None:
        assert ahead.wait(30)
        build.engine.add_image("app:new")
        with build.engine._lock:
            images = build.engine._images
            images["app:latest"] = images["app:new"]
        build.engine.release("rebuilt")

    assert build.run(on_event=on_event).status is Status.SUCCESS
    new = build.engine.find_image("app")
    specs = [one for one in build.engine.containers.values() if "step_1" in one.spec.name]
    assert old is not None
    assert new is not None
    assert [one.spec.image for one in specs] == [old.id, new.id]
    assert [one.state for one in specs] == ["exited", "exited"]
    assert build.called("start_container").count(f"step_1-{BUILD_ID}") == 1


def test_an_alias_serves_the_image_and_the_log_keeps_the_name() -> None:
    build = Build(
        step(0, image="gcr.io/cloud-builders/docker:20.10", args=("version",)),
        step(1, image="gcr.io/cloud-builders/gcb-internal", args=("docker", "build", ".")),
    )
    build.engine.add_image("docker:cli")
    options = RunOptions(
        image_aliases={
            "gcr.io/cloud-builders/docker": "docker:cli",
            "gcr.io/cloud-builders/gcb-internal": "docker:cli",
        }
    )
    assert build.run(options).status is Status.SUCCESS
    assert (
        "Step #0: Already have image: gcr.io/cloud-builders/docker:20.10 (alias of docker:cli)"
        in build.sink.lines
    )
    specs = [one.spec for one in containers_of(build, "step_")]
    commands = [(*(one.entrypoint or ()), *(one.cmd or ())) for one in specs]
    assert commands == [("version",), ("build", ".")]


# -- push --------------------------------------------------------------------------------------


def pushing(*names: str, **fields: object) -> Build:
    build = Build(step(0), images=names, **fields)
    for name in ("r.test:5000/app:v1", "r.test:5000/app:latest", "r.test:5000/other:v2"):
        build.engine.add_image(name)
    return build


@pytest.mark.parametrize(
    ("images", "results"),
    [
        (("r.test:5000/app:v1",), ["r.test:5000/app:v1"]),
        (("r.test:5000/app:latest",), ["r.test:5000/app", "r.test:5000/app:latest"]),
        (
            ("r.test:5000/app",),
            ["r.test:5000/app", "r.test:5000/app:latest", "r.test:5000/app:v1"],
        ),
        (("r.test:5000/app:v1", "r.test:5000/app:v1"), ["r.test:5000/app:v1"] * 2),
        (
            ("r.test:5000/other", "r.test:5000/app:v1"),
            ["r.test:5000/other:v2", "r.test:5000/app:v1"],
        ),
    ],
)
def test_results_name_what_was_pushed(images: tuple[str, ...], results: list[str]) -> None:
    build = pushing(*images)
    outcome = build.run()
    assert outcome.status is Status.SUCCESS
    assert [image.name for image in outcome.images] == results
    timings = {image.digest: image.timing for image in outcome.images}
    assert all(timings[image.digest] == image.timing for image in outcome.images)
    assert "PUSH" in outcome.phases


def test_an_image_that_is_missing_keeps_all_from_being_pushed() -> None:
    build = pushing("r.test:5000/app:v1", "r.test:5000/none", "r.test:5000/app:v3")
    outcome = build.run()
    assert outcome.failure_type is FailureType.PUSH_IMAGE_NOT_FOUND
    assert outcome.failing_step is None
    assert outcome.steps[0].status is Status.SUCCESS
    assert build.sink.lines[-2:] == [
        "ERROR",
        "ERROR: failed to find one or more images after execution of build steps: "
        '["r.test:5000/none", "r.test:5000/app:v3"]',
    ]
    assert not build.called("push_image")
    assert "PUSH" not in outcome.phases


def test_a_push_is_tried_ten_times() -> None:
    build = pushing("r.test:5000/app:v1", "r.test:5000/app:latest")
    build.engine.push_errors = {
        "r.test:5000/app:v1": [ImagePushError("i/o timeout", transient=True)] * 20
    }
    outcome = build.run()
    assert outcome.failure_type is FailureType.PUSH_FAILED
    assert outcome.error == 'error pushing image "r.test:5000/app:v1": i/o timeout'
    assert len(build.called("push_image")) == 10
    log = build.sink.lines
    assert log.count("Pushing r.test:5000/app:v1") == 10
    assert "ERROR: push attempt 1 detected failure, retrying: i/o timeout" in log
    assert "ERROR: failed to push because we ran out of retries." in log
    assert "Pushing r.test:5000/app:latest" not in log


def test_a_refused_push_is_not_tried_again_and_what_was_pushed_stays() -> None:
    build = pushing("r.test:5000/app:v1", "r.test:5000/other:v2")
    build.engine.push_errors = {
        "r.test:5000/other:v2": [ImagePushError("denied", unauthorized=True)]
    }
    outcome = build.run()
    assert outcome.failure_type is FailureType.PUSH_NOT_AUTHORIZED
    assert [image.name for image in outcome.images] == ["r.test:5000/app:v1"]
    assert len(build.called("push_image")) == 2


def test_no_push_leaves_the_phase_empty() -> None:
    build = pushing("r.test:5000/app:v1", "r.test:5000/none")
    outcome = build.run(RunOptions(push=False))
    assert outcome.status is Status.SUCCESS
    assert build.sink.lines[-2:] == ["PUSH", "DONE"]
    assert "PUSH" not in outcome.phases


def test_a_cancel_frees_a_push_that_hangs() -> None:
    build = pushing("r.test:5000/app:v1")
    build.engine.stalled = {"r.test:5000/app:v1"}

    def on_event(event: BuildEvent) -> None:
        if type(event).__name__ == "PushStarted":
            build.cancel.cancel()

    outcome = build.run(on_event=on_event)
    assert outcome.status is Status.CANCELLED
    assert outcome.steps[0].status is Status.SUCCESS


# -- stopping ----------------------------------------------------------------------------------


def test_a_cancel_before_the_start_starts_nothing() -> None:
    build = Build(step(0))
    build.cancel.cancel()
    outcome = build.run()
    assert outcome.status is Status.CANCELLED
    assert outcome.steps[0].status is Status.QUEUED
    assert outcome.steps[0].timing is None
    assert not build.called("start_container")


def test_a_cancel_frees_a_pull_that_hangs() -> None:
    build = Build(step(0, image="app"))
    build.engine.stalled = {"app"}

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepStarted):
            build.cancel.cancel()

    outcome = build.run(on_event=on_event)
    assert outcome.status is Status.CANCELLED
    assert outcome.steps[0].status is Status.CANCELLED


def test_the_build_timeout_counts_from_the_start_of_all() -> None:
    class Slow(EmptyWorkspace):
        def prepare(self, wanted: Preparation) -> PreparedWorkspace:
            assert wanted.cancel.wait(30)
            raise SourceError("the fetch was cancelled")

    build = Build(step(0), timeout_s=0.05)
    build.workspace = Slow()
    outcome = build.run()
    assert outcome.status is Status.TIMEOUT
    assert build.sink.lines[-2:] == ["TIMEOUT", "ERROR: context deadline exceeded"]
    assert outcome.failure_type is None


def test_a_source_that_cannot_be_fetched_fails_the_build() -> None:
    class Broken(EmptyWorkspace):
        def prepare(self, wanted: Preparation) -> PreparedWorkspace:
            super().prepare(wanted)
            raise SourceError("no such commit")

    build = Build(step(0))
    build.workspace = Broken()
    outcome = build.run()
    assert outcome.status is Status.FAILURE
    assert outcome.failure_type is FailureType.FETCH_SOURCE_FAILED
    assert build.sink.lines == [
        f'starting build "{BUILD_ID}"',
        "",
        "FETCHSOURCE",
        "ERROR",
        "ERROR: no such commit",
    ]


def test_a_listener_that_breaks_ends_the_build_and_leaves_nothing() -> None:
    build = Build(step(0, "SLEEP=ever"), step(1))

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepRunning):
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        build.run(on_event=on_event)


def test_a_sink_that_breaks_fails_the_build_and_leaves_nothing() -> None:
    class Full(MemorySink):
        def write(self, chunk: LogChunk) -> None:
            if chunk.step is not None:
                raise OSError("no space left on device")

    build = Build(step(0, "OUTPUT=text\n", "SLEEP=ever"), step(1))
    outcome = build.run(sink=Full())
    assert outcome.status is Status.FAILURE
    assert outcome.failure_type is FailureType.LOGGING_FAILURE
    assert outcome.error == "the build's log can't be written: no space left on device"


def test_an_engine_that_goes_away_is_our_fault_not_the_steps() -> None:
    build = Build(step(0), step(1))

    def gone(container: str) -> None:
        raise EngineUnavailable("the engine does not answer")

    build.engine.wait_container = gone  # type: ignore[assignment,method-assign]
    outcome = build.run()
    assert outcome.status is Status.INTERNAL_ERROR
    assert outcome.failure_type is None
    assert "does not answer" in outcome.error


def test_what_cannot_be_removed_is_a_warning() -> None:
    build = Build(step(0))
    remove = build.engine.remove_volume
    refused: list[str] = []

    def refuse_once(name: str) -> None:
        if name.endswith("home") and not refused:
            refused.append(name)
            raise EngineUnavailable("busy")
        remove(name)

    build.engine.remove_volume = refuse_once  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        build.run()
    warnings = [event.text for event in build.events if type(event).__name__ == "Warned"]  # type: ignore[union-attr]
    assert warnings == ["something of the build was left behind: busy"]


def test_an_engine_that_is_gone_at_the_end_is_told_once() -> None:
    build = Build(step(0), step(1))

    def refuse(_name: str) -> None:
        raise EngineUnavailable("no engine answers")

    build.engine.remove_volume = refuse  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        build.run()
    warnings = [event.text for event in build.events if type(event).__name__ == "Warned"]  # type: ignore[union-attr]
    assert warnings == ["something of the build was left behind: no engine answers"]


def test_cleaning_up_that_takes_too_long_says_what_it_is_at() -> None:
    build = Build(step(0))
    remove, over = build.engine.remove_volume, threading.Event()
    home = volume_name(BUILD_ID, "home")

    def stand_still(name: str) -> None:
        if name == home:
            over.wait()
        remove(name)

    build.engine.remove_volume = stand_still  # type: ignore[method-assign]

    with pytest.raises(AssertionError):
        build.run(msgspec.structs.replace(QUICK, cleanup_s=0.2))
    over.set()
    warnings = [event.text for event in build.events if type(event).__name__ == "Warned"]  # type: ignore[union-attr]
    assert warnings == [
        "something of the build was left behind: cleaning up took longer than 0.2s; "
        f"it was still removing files, removing the volume {home}"
    ]


def start_stray(build: Build, name: str) -> None:
    made = build.engine.create_container(
        ContainerSpec(image="busybox", name=name, network="cloudbuild", env=("SLEEP=ever",))
    )
    build.engine.start_container(made, attach=False)


def test_containers_that_a_step_left_running_are_removed_and_others_are_not() -> None:
    build = Build(step(0), step(1))
    build.engine.ensure_network("cloudbuild", {})
    start_stray(build, "somebody-elses")

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepFinished) and event.step == 0:
            start_stray(build, "server-under-test")

    assert build.run(on_event=on_event).status is Status.SUCCESS
    assert build.engine.running() == ("somebody-elses",)


def test_while_another_build_runs_strays_are_left_alone() -> None:
    build = Build(step(0))

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepFinished):
            start_stray(build, "whose-is-it")
            labels = {LABEL_BUILD: "another"}
            spec = ContainerSpec(
                image="busybox", network="cloudbuild", env=("SLEEP=ever",), labels=labels
            )
            build.engine.start_container(build.engine.create_container(spec), attach=False)

    build.run(on_event=on_event)
    assert "whose-is-it" in build.engine.running()


# -- started ahead ------------------------------------------------------------------------------


def ahead(build: Build) -> set[str]:
    """The steps whose containers were started ahead."""
    return {name.partition("-")[0] for name in build.called("start_ahead")}


def test_later_steps_wait_behind_a_gate_each_in_a_namespace_of_its_own() -> None:
    build = Build(step(0), step(1), step(2, args=("a", "b"), entrypoint="run"))
    build.run()
    first, *later = containers_of(build, "step_")
    assert ahead(build) == {"step_1", "step_2"}
    assert not first.spec.gate
    for one in later:
        assert one.spec.network == "cloudbuild"
        assert one.spec.mounts[-1].read_only
    assert later[-1].spec.entrypoint == ("run",)
    assert later[-1].spec.cmd == ("a", "b")


@pytest.mark.parametrize("steps", [(step(0),), (step(0), step(1, depends_on=()))])
def test_a_build_whose_steps_wait_for_nothing_has_no_gate(steps: tuple[StepPlan, ...]) -> None:
    build = Build(*steps)
    build.run()
    assert ahead(build) == set()
    assert not any(name.endswith("gate") for name in build.called("create_volume"))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_step_runs_before_those_it_waits_for_have_ended(data: st.DataObject) -> None:
    edges = [
        data.draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        for index in range(data.draw(st.integers(1, 9)))
    ]
    build = Build(
        *(step(index, depends_on=tuple(sorted(before))) for index, before in enumerate(edges))
    )
    start = build.engine.start_container

    def starting(container: str, *, attach: bool) -> Iterator[bytes]:
        containers = build.engine.containers.values()
        name = build.engine.containers[container].spec.name
        states = {one.spec.name.partition("-")[0]: one.state for one in containers}
        before = edges[int(name.partition("-")[0].removeprefix("step_"))]
        assert all(states[f"step_{index}"] == "exited" for index in before)
        return start(container, attach=attach)

    build.engine.start_container = starting  # type: ignore[method-assign]
    outcome = build.run()
    assert outcome.status is Status.SUCCESS
    assert {one.status for one in outcome.steps} == {Status.SUCCESS}
    for index, before in enumerate(edges):
        for earlier in before:
            first, second = outcome.steps[earlier].timing, outcome.steps[index].timing
            assert first is not None
            assert second is not None
            assert first.end is not None
            assert first.end <= second.start


def test_a_step_that_can_not_start_says_the_same_whether_started_ahead_or_not() -> None:
    outcomes, logs = [], []
    for before in ((), (0,)):
        build = Build(step(0), step(1, "START_FAIL=no such program", depends_on=before))
        outcome = build.run()
        outcomes.append(msgspec.structs.replace(outcome.steps[1], timing=None, pull_timing=None))
        logs.append([line for line in build.sink.lines if line.startswith("Step #1")])
        assert ahead(build) == ({"step_1"} if before else set())
    first, second = ((one.status, one.exit_code, one.error, one.last_lines) for one in outcomes)
    assert first == second
    assert first[1] == 127
    assert logs[0] == logs[1]
    assert any("no such program" in line for line in logs[0])


def while_step_0_runs(build: Build, act: Callable[[], None]) -> None:
    """Run a build; call ``act`` in its first step, once step 1 waits behind its gate."""
    waits = threading.Event()
    start_ahead = build.engine.start_ahead
    start = build.engine.start_container

    def starting_ahead(container: str) -> None:
        start_ahead(container)
        if build.engine.containers[container].spec.name.startswith("step_1"):
            waits.set()

    def starting(container: str, *, attach: bool) -> Iterator[bytes]:
        output = start(container, attach=attach)
        if not build.engine.containers[container].spec.name.startswith("step_0"):
            return output

        def followed() -> Iterator[bytes]:
            assert waits.wait(30)
            act()
            yield from output

        return followed()

    build.engine.start_ahead = starting_ahead  # type: ignore[method-assign]
    build.engine.start_container = starting  # type: ignore[method-assign]


def test_a_container_that_is_killed_or_removed_before_its_turn_is_replaced() -> None:
    for method in ("kill_container", "remove_container"):
        build = Build(step(0), step(1, "OUTPUT=here\n"))

        def act(build: Build = build, method: str = method) -> None:
            (waiting,) = containers_of(build, "step_1")
            getattr(build.engine, method)(waiting.id)

        while_step_0_runs(build, act)
        assert build.run().status is Status.SUCCESS
        killed, replacement = containers_of(build, "step_1")
        assert killed.spec.gate
        assert not replacement.spec.gate
        assert "Step #1: here" in build.sink.lines


def test_a_container_whose_image_an_earlier_step_replaces_never_runs() -> None:
    build = Build(step(0), step(1, "OUTPUT=here\n", image="app"))
    for name in ("app", "newer"):
        build.engine.add_image(name)

    def replace_image() -> None:
        newer = build.engine.find_image("newer")
        assert newer is not None
        build.engine.tag_image(newer.id, "app")

    while_step_0_runs(build, replace_image)
    assert build.run().status is Status.SUCCESS
    old, new = containers_of(build, "step_1")
    assert old.spec.image != new.spec.image
    assert build.called("start_container").count(new.spec.name) == 1


@pytest.mark.parametrize("tag", ["app:v1", "other:v1"])
def test_an_image_that_an_earlier_step_builds_is_not_started_ahead(tag: str) -> None:
    build = Build(
        step(0, args=("build", "-t", tag, ".")), step(1, image="app:v1"), docker_socket=True
    )
    build.engine.add_image("app:v1")
    build.run()
    assert ahead(build) == ({"step_1"} if tag == "other:v1" else set())


def test_a_build_is_cancelled_while_a_step_waits_behind_its_gate() -> None:
    build = Build(step(0, "SLEEP=ever"), step(1))
    while_step_0_runs(build, build.cancel.cancel)
    outcome = build.run()
    assert outcome.status is Status.CANCELLED
    assert not any(name.startswith("step_1") for name in build.called("start_container"))


def test_what_can_not_be_started_ahead_starts_at_its_turn() -> None:
    build = Build(step(0), step(1))

    def refuse(_: str) -> None:
        raise EngineError("the container can't start: no matching entries in passwd file")

    build.engine.start_ahead = refuse  # type: ignore[method-assign]
    assert build.run().status is Status.SUCCESS


class Creations:
    """Lets a step run until the engine has created a certain container."""

    def __init__(self, build: Build, *, while_runs: str, waits_for: str) -> None:
        self.names: list[str] = []
        self.names_then: list[str] = []
        self._while_runs, self._waits_for = while_runs, waits_for
        self._there = threading.Event()
        self._engine = build.engine
        self._create, self._start = build.engine.create_container, build.engine.start_container
        build.engine.create_container = self.create  # type: ignore[method-assign]
        build.engine.start_container = self.start  # type: ignore[method-assign]

    def create(self, spec: ContainerSpec) -> str:
        made = self._create(spec)
        self.names.append(spec.name.partition("-")[0])
        if self.names[-1] == self._waits_for:
            self._there.set()
        return made

    def start(self, container: str, *, attach: bool) -> Iterator[bytes]:
        yields = self._start(container, attach=attach)
        name = self._engine.containers[container].spec.name
        return self._follow(yields) if name.startswith(self._while_runs) else yields

    def _follow(self, output: Iterator[bytes]) -> Iterator[bytes]:
        assert self._there.wait(30)
        self.names_then = list(self.names)
        yield from output


def test_the_next_two_containers_are_created_while_a_step_runs() -> None:
    build = Build(*(step(index, depends_on=tuple(range(index))) for index in range(6)))
    creations = Creations(build, while_runs="step_0", waits_for="step_2")
    assert build.run().status is Status.SUCCESS
    assert "step_3" not in creations.names_then
    assert len([name for name in creations.names if name]) == 6  # and none was made twice


def test_a_container_of_an_image_that_was_built_meanwhile_is_created_ahead_after_all() -> None:
    build = Build(step(0), step(1, depends_on=(0,)), step(2, image="built", depends_on=(0, 1)))
    creations = Creations(build, while_runs="step_1", waits_for="step_2")

    def on_event(event: BuildEvent) -> None:
        if isinstance(event, StepFinished) and event.step == 0:
            build.engine.add_image("built")

    assert build.run(on_event=on_event).status is Status.SUCCESS
    assert "step_2" in creations.names_then


# -- the log as a whole ------------------------------------------------------------------------


def test_the_log_is_byte_exact() -> None:
    """The worked sample of the semantics document, as far as the engine in memory can act it."""
    build = Build(
        step(0, "OUTPUT=Successfully installed flask-3.0.0\n", id="deps", image="python:3.12-slim"),
        step(1, "OUTPUT=no end of line", id="lint"),
        step(2, "OUTPUT=Successfully built 4f5e6a7b8c9d\n", id="image", image="docker"),
        images=("registry.local/app:abc1234",),
    )
    build.engine.registry = {"python:3.12-slim": info("python")}
    build.engine.add_image("docker", digest="sha256:" + "3" * 64)
    build.engine.add_image("registry.local/app:abc1234")
    outcome = build.run()
    (pushed,) = outcome.images
    assert (
        build.sink.data.decode()
        == f"""\
starting build "{BUILD_ID}"

FETCHSOURCE
BUILD
Starting Step #0 - "deps"
Step #0 - "deps": Pulling image: python:3.12-slim
Step #0 - "deps": Digest: {DIGEST}
Step #0 - "deps": Status: Downloaded newer image for python:3.12-slim
Step #0 - "deps": Successfully installed flask-3.0.0
Finished Step #0 - "deps"
Starting Step #1 - "lint"
Step #1 - "lint": Already have image: busybox
Step #1 - "lint": no end of line
Finished Step #1 - "lint"
Starting Step #2 - "image"
Step #2 - "image": Already have image (with digest): docker
Step #2 - "image": Successfully built 4f5e6a7b8c9d
Finished Step #2 - "image"
PUSH
Pushing registry.local/app:abc1234
The push refers to repository [registry.local/app:abc1234]
abc1234: digest: {pushed.digest} size: 100
DONE
"""
    )


def test_the_log_of_one_step_is_byte_exact() -> None:
    build = Build(step(0, "OUTPUT=hello\n", image="tool"))
    build.engine.registry = {"tool:latest": info("tool")}
    build.run(QUICK)
    assert (
        build.sink.data.decode()
        == f"""\
starting build "{BUILD_ID}"

FETCHSOURCE
BUILD
Pulling image: tool
Digest: {DIGEST}
Status: Downloaded newer image for tool:latest
hello
PUSH
DONE
"""
    )
