"""A build whose process dies at any moment is gone on with by the next one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import (
    LABEL_BUILD,
    LABEL_STEP,
    ContainerSpec,
    FoundContainer,
)
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.events import (
    BuildEvent,
    BuildStarted,
    PhaseStarted,
    StepFinished,
    StepRunning,
    StepStarted,
    Warned,
)
from buildrunner.engine.log.pipeline import LogChunk, StoredLog
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.resume import ResumeState, resume_state
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.running_build import RunContext
from buildrunner.engine.step_container import container_name
from buildrunner.errors import EngineUnavailable
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.spec.model.build import Status
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.model.source import StorageSource
from buildrunner.workspace.kept import (
    NotedWorkspace,
    ResumedWorkspace,
    decode_prepared,
    encode_prepared,
)
from buildrunner.workspace.protocol import PreparedWorkspace
from buildrunner.workspace.volume import EmptyWorkspace
from tests.unit.engine.conftest import BUILD_ID, HastyClock, Secrets, step

OPTIONS = RunOptions(
    keep_logs=True, cancel_grace_s=0.0, failure_grace_s=0.0, timeout_grace_s=0.0, cleanup_s=5.0
)


class Died(BaseException):
    """What a SIGKILL is for the test: nothing of the process has any effect after it."""


class MortalEngine:
    """The engine as one process sees it: after the process's death, no call reaches it."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.dead = False

    def __getattr__(self, name: str) -> object:
        if self.dead:
            raise EngineUnavailable("the process is dead")
        value = getattr(self._engine, name)
        return self._guarded(value) if callable(value) else value

    def _guarded(self, call: Callable[..., object]) -> Callable[..., object]:
        def guarded(*arguments: object, **named: object) -> object:
            if self.dead:
                raise EngineUnavailable("the process is dead")
            return call(*arguments, **named)

        return guarded


class LaterClock(HastyClock):
    """Shows a time that is to come."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead = timedelta(seconds=ahead_s)

    def now(self) -> datetime:
        return super().now() + self._ahead


class Crashing:
    """A build, its engine, and all that survives its processes."""

    def __init__(self, *steps: StepPlan, **fields: object) -> None:
        self.plan = BuildPlan(build_id=BUILD_ID, project_id="p1", steps=steps, **fields)  # type: ignore[arg-type]
        self.engine = FakeEngine(["busybox"])
        self.events: list[bytes] = []
        self.chunks: list[LogChunk] = []
        self.prepared: PreparedWorkspace | None = None
        self.secrets = Secrets({"key": "hunter22"})
        self.cancel = CancelToken()
        self.clock = HastyClock()

    def run(
        self, *, events: int = 10_000, chunks: int = 10_000, stored: bool = True
    ) -> BuildOutcome:
        """One process. It dies at an event (behind it, or when not ``stored`` before), or a chunk.

        Raises:
            Died: it did.
        """
        engine = MortalEngine(self.engine)
        state = self.state()
        lock = threading.Lock()

        class Sink:
            def write(_, chunk: LogChunk) -> None:  # noqa: N805
                with lock:
                    if not engine.dead:
                        self.chunks.append(chunk)
                        engine.dead = len(self.chunks) >= chunks

            def close(_) -> None:  # noqa: N805
                pass

        def on_event(event: BuildEvent) -> None:
            if engine.dead:
                raise Died
            last = len(self.events) + 1 >= events
            if stored or not last:
                self.events.append(msgspec.json.encode(event))
            if last:
                engine.dead = True
                raise Died

        def note(prepared: PreparedWorkspace) -> None:
            self.prepared = decode_prepared(encode_prepared(prepared))

        workspace = NotedWorkspace(EmptyWorkspace(), note)
        return run_build(
            self.plan,
            RunContext(
                engine=engine,  # type: ignore[arg-type]
                workspace=workspace if state is None else ResumedWorkspace(self.prepared),  # type: ignore[arg-type]
                secrets=self.secrets,
                sink=Sink(),
                on_event=on_event,
                cancel=self.cancel,
                options=OPTIONS,
                clock=self.clock,
                resume=state,
            ),
        )

    def state(self) -> ResumeState | None:
        output: Counter[tuple[int, bool]] = Counter()
        for chunk in self.chunks:
            if chunk.step is not None:
                output[chunk.step, chunk.error] += chunk.output
        log = StoredLog(
            output=dict(output),
            said=frozenset(chunk.data for chunk in self.chunks if not chunk.output),
            is_torn=bool(self.chunks) and not self.chunks[-1].data.endswith(b"\n"),
        )
        events = (msgspec.json.decode(one, type=BuildEvent) for one in self.events)
        return resume_state(events, log)

    def survive(self, **death: object) -> BuildOutcome:
        """Die once, and go on; from the beginning where no step's turn had come."""
        try:
            return self.run(**death)  # type: ignore[arg-type]
        except Died:
            pass
        if self.state() is None:
            self.sweep()
            self.events.clear()
            self.chunks.clear()
        return self.run()

    def sweep(self) -> None:
        owned = self.engine.list_owned({LABEL_BUILD: BUILD_ID})
        for container in owned.containers:
            self.engine.remove_container(container)
        for volume in owned.volumes:
            self.engine.remove_volume(volume)

    @property
    def starts(self) -> Counter[str]:
        return Counter(what for name, what in self.engine.calls if name == "start_container")

    @property
    def lines(self) -> Counter[bytes]:
        return Counter(b"".join(chunk.data for chunk in self.chunks).splitlines())

    def check_nothing_is_left(self) -> None:
        owned = self.engine.list_owned({LABEL_BUILD: BUILD_ID})
        assert (owned.containers, owned.volumes, owned.networks) == ((), (), ())


def test_of_a_worker_that_was_lost_before_a_step_ran_nothing_counts() -> None:
    first, later = datetime(2024, 5, 31, 12, tzinfo=UTC), datetime(2024, 5, 31, 13, tzinfo=UTC)
    lost: list[BuildEvent] = [
        BuildStarted(at=first, build_id=BUILD_ID, steps=2),
        PhaseStarted(at=first, phase="BUILD"),
        Warned(at=first, text="a warning"),
        StepStarted(at=first, step=0, pulls=True),
        StepStarted(at=first, step=1, pulls=True),
        BuildStarted(at=later, build_id=BUILD_ID, steps=2),
    ]
    assert resume_state(lost, StoredLog()) is None
    state = resume_state([*lost, StepStarted(at=later, step=0)], StoredLog())
    assert state == ResumeState(started_at=later, begun={0: later})


def graph(kinds: list[tuple[str, bool]]) -> tuple[StepPlan, ...]:
    made = []
    for index, (kind, parallel) in enumerate(kinds):
        before = made[-1].depends_on if parallel and made else tuple(range(index))
        code = "0" if kind == "good" else "3"
        made.append(
            step(
                index,
                f"OUTPUT=out {index}\nhunter22 {index}\n",
                f"ERRORS=err {index}\n",
                f"EXIT_CODE={code}",
                f"WRITE=/builder/outputs/output=result {index}",
                depends_on=before,
                allow_failure=kind == "forgiven",
                secrets=(SecretReference(env="KEY", kind="secretManager", name="key"),),
            )
        )
    return tuple(made)


GRAPHS = st.lists(
    st.tuples(st.sampled_from(["good", "good", "good", "forgiven", "bad"]), st.booleans()),
    min_size=1,
    max_size=5,
).map(graph)


@settings(max_examples=100, deadline=None)
@given(
    steps=GRAPHS,
    death=st.one_of(
        st.fixed_dictionaries({"events": st.integers(1, 40), "stored": st.booleans()}),
        st.fixed_dictionaries({"chunks": st.integers(1, 40)}),
    ),
)
def test_it_ends_as_if_nothing_had_happened(
    steps: tuple[StepPlan, ...], death: dict[str, int]
) -> None:
    whole, crashed = Crashing(*steps), Crashing(*steps)
    wanted = whole.run()
    outcome = crashed.survive(**death)
    assert outcome.status is wanted.status
    in_step = all(one.depends_on == tuple(range(one.index)) for one in steps)
    if in_step or wanted.status is Status.SUCCESS:  # which step a failure meets is chance else
        assert outcome.error == wanted.error
        assert [one.status for one in outcome.steps] == [one.status for one in wanted.steps]
        assert [one.output for one in outcome.steps] == [one.output for one in wanted.steps]
    assert max(crashed.starts.values(), default=0) <= 1
    for line, count in crashed.lines.items():
        assert count == 1, line
        assert b"hunter22" not in line
    for result in outcome.steps:
        if result.status in (Status.SUCCESS, Status.FAILURE):
            prefix = b"Step #%d: " % result.index if len(steps) > 1 else b""
            for text in (b"out %d", b"*** %d", b"err %d"):
                assert crashed.lines[prefix + text % result.index] == 1
    crashed.check_nothing_is_left()


@pytest.fixture
def sleeper() -> Iterator[Crashing]:
    build = Crashing(step(0, "OUTPUT=up\n", "SLEEP=x", "EXIT_CODE=0"), step(1, "OUTPUT=second\n"))
    yield build
    build.engine.release("x")


def die_while_it_sleeps(build: Crashing) -> None:
    with pytest.raises(Died):
        build.run(events=number_of(build, StepRunning))
    assert build.engine.running() == (f"step_0-{BUILD_ID}",)


def events_of(build: Crashing) -> list[BuildEvent]:
    """The events of a run of the same build that nothing disturbs."""
    other = Crashing(*build.plan.steps)
    other.engine.release("x")
    other.run()
    return [msgspec.json.decode(one, type=BuildEvent) for one in other.events]


def number_of(build: Crashing, kind: type) -> int:
    """At which event of a run the first one of that kind comes."""
    return [type(event) for event in events_of(build)].index(kind) + 1


def test_a_step_that_still_runs_is_followed_to_its_end(sleeper: Crashing) -> None:
    die_while_it_sleeps(sleeper)
    threading.Timer(0.05, sleeper.engine.release, ("x",)).start()
    outcome = sleeper.run()
    assert outcome.status is Status.SUCCESS
    assert sleeper.starts[f"step_0-{BUILD_ID}"] == 1
    assert sleeper.lines[b"Step #0: up"] == 1
    assert outcome.started_at < outcome.steps[0].timing.end  # type: ignore[union-attr,operator]
    sleeper.check_nothing_is_left()


class WaitingEngine(FakeEngine):
    """Its first step lasts until the container of the second waits behind its gate."""

    def start_ahead(self, container_id: str) -> None:
        super().start_ahead(container_id)
        self.release("x")


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_whose_container_waits_behind_its_gate_runs_once(
    sleeper: Crashing, stored: bool
) -> None:
    """It dies when the second step's turn comes: that step has not run, whatever is stored."""
    sleeper.engine = WaitingEngine(["busybox"])
    turns = [
        at
        for at, event in enumerate(events_of(sleeper), start=1)
        if isinstance(event, StepStarted) and event.step == 1
    ]
    with pytest.raises(Died):
        sleeper.run(events=turns[0], stored=stored)
    assert [one.state for one in sleeper.engine.containers.values()].count("waiting") == 1
    assert sleeper.run().status is Status.SUCCESS
    assert sleeper.lines[b"Step #1: second"] == 1
    names = [one.spec.name for one in sleeper.engine.containers.values()]
    assert names.count(f"step_1-{BUILD_ID}") == (1 if stored else 2)
    sleeper.check_nothing_is_left()


class LaggingEngine(FakeEngine):
    """Its lists tell of containers as they were before a start that is under way."""

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        return tuple(
            msgspec.structs.replace(one, was_started=False, has_ended=False)
            for one in super().find_containers(labels)
        )


def test_a_step_that_begins_at_the_moment_of_the_death_runs_once(sleeper: Crashing) -> None:
    sleeper.engine = LaggingEngine(["busybox"])
    with pytest.raises(Died):
        sleeper.run(events=number_of(sleeper, StepRunning), stored=False)
    threading.Timer(0.05, sleeper.engine.release, ("x",)).start()
    assert sleeper.run().status is Status.SUCCESS
    assert sleeper.starts[f"step_0-{BUILD_ID}"] == 1
    assert sleeper.lines[b"Step #0: up"] == 1
    sleeper.check_nothing_is_left()


class LateEngine(FakeEngine):
    """Makes a container that a dead process asked for only when its successor has looked."""

    late: ContainerSpec | None = None

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        found = super().find_containers(labels)
        if self.late is not None:
            self.create_container(self.late)
            self.late = None
        return found


def test_a_container_that_was_being_created_at_the_moment_of_the_death_is_in_nobodys_way() -> None:
    engine = LateEngine(["busybox"])
    build = Crashing(step(0, "OUTPUT=first\n"), step(1, "OUTPUT=second\n"))
    build.engine = engine
    with pytest.raises(Died):
        build.run(events=number_of(build, StepFinished))
    for one in engine.find_containers({"buildrunner.step": "1"}):
        engine.remove_container(one.id)
    engine.late = ContainerSpec(
        name=container_name(BUILD_ID, 1),
        image="busybox",
        labels={LABEL_BUILD: BUILD_ID, LABEL_STEP: "1"},
    )
    assert build.run().status is Status.SUCCESS
    assert engine.late is None
    assert build.lines[b"Step #1: second"] == 1
    build.check_nothing_is_left()


def test_a_step_that_ended_meanwhile_is_taken_as_it_ended(sleeper: Crashing) -> None:
    die_while_it_sleeps(sleeper)
    sleeper.engine.release("x")
    assert sleeper.run().status is Status.SUCCESS
    assert sleeper.starts[f"step_0-{BUILD_ID}"] == 1


def test_it_is_cancelled_while_it_is_gone_on_with(sleeper: Crashing) -> None:
    die_while_it_sleeps(sleeper)
    sleeper.cancel.cancel()
    outcome = sleeper.run()
    assert outcome.status is Status.CANCELLED
    assert [one.status for one in outcome.steps] == [Status.CANCELLED, Status.QUEUED]
    sleeper.check_nothing_is_left()


def test_its_time_goes_on_while_nobody_watches(sleeper: Crashing) -> None:
    sleeper.plan = msgspec.structs.replace(sleeper.plan, timeout_s=600.0)
    die_while_it_sleeps(sleeper)
    sleeper.clock = LaterClock(601)
    assert sleeper.run().status is Status.TIMEOUT


def test_the_own_time_of_a_step_goes_on_too() -> None:
    build = Crashing(step(0, "SLEEP=x", timeout_s=600.0))
    with pytest.raises(Died):
        build.run(events=number_of(build, StepRunning))
    build.clock = LaterClock(601)
    outcome = build.run()
    assert outcome.steps[0].status is Status.TIMEOUT
    build.check_nothing_is_left()


def test_a_container_that_somebody_removed_meanwhile_ends_the_build(sleeper: Crashing) -> None:
    die_while_it_sleeps(sleeper)
    (container,) = [one.id for one in sleeper.engine.find_containers({"buildrunner.step": "0"})]
    sleeper.engine.remove_container(container)
    outcome = sleeper.run()
    assert outcome.status is Status.INTERNAL_ERROR
    assert "its container was removed" in outcome.error
    assert sleeper.starts[f"step_0-{BUILD_ID}"] == 1
    sleeper.check_nothing_is_left()


def test_a_container_that_was_killed_meanwhile_is_no_failure_of_its_step(
    sleeper: Crashing,
) -> None:
    die_while_it_sleeps(sleeper)
    (container,) = [one.id for one in sleeper.engine.find_containers({"buildrunner.step": "0"})]
    sleeper.engine.kill_container(container)
    outcome = sleeper.run()
    assert outcome.status is Status.INTERNAL_ERROR
    assert "137 (killed while no process of the build watched it" in outcome.error
    sleeper.check_nothing_is_left()


def test_a_container_that_ended_badly_meanwhile_is_a_failure_of_its_step() -> None:
    build = Crashing(step(0, "EXIT_CODE=3"))
    with pytest.raises(Died):
        build.run(events=number_of(build, StepFinished), stored=False)
    outcome = build.run()
    assert outcome.status is Status.FAILURE
    assert "non-zero status: 3" in outcome.error


def test_a_container_stays_until_the_end_of_its_step_is_stored() -> None:
    build = Crashing(step(0))
    with pytest.raises(Died):
        build.run(events=number_of(build, StepFinished), stored=False)
    assert len(build.engine.find_containers({"buildrunner.step": "0"})) == 1
    assert build.run().status is Status.SUCCESS
    assert build.starts[f"step_0-{BUILD_ID}"] == 1


def test_a_build_that_began_no_step_has_nothing_to_go_on_with() -> None:
    build = Crashing(step(0))
    with pytest.raises(Died):
        build.run(events=2)
    assert build.state() is None


def test_what_is_noted_of_a_workspace_keeps_its_provenance() -> None:
    prepared = PreparedWorkspace(
        volume="v",
        files=3,
        size_bytes=10,
        way="archive",
        provenance=SourceProvenance(
            resolved_storage_source=StorageSource(bucket="b", object="o.tgz", generation=17)
        ),
    )
    assert decode_prepared(encode_prepared(prepared)) == prepared
