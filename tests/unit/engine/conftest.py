"""Runs plans on the engine in memory, for the tests of this folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.pipeline import LogChunk, LogSink
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.running_build import RunContext
from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.workspace.protocol import Workspace
from buildrunner.workspace.volume import EmptyWorkspace

BUILD_ID = "6f0b1c9e-5d0a-4c1c-9a55-0a2c2f1c7a11"
QUICK = RunOptions(cancel_grace_s=0.0, failure_grace_s=0.0, timeout_grace_s=0.0)


class HastyClock(Clock):
    """The real time, but retries don't wait: chance takes all of the delay away."""

    def chance(self) -> float:
        return 2.5


class Halt(threading.Event):
    """Nobody halts; what it is asked to wait is noted and not waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return False


class MemorySink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, chunk: LogChunk) -> None:
        self.data += chunk.data

    def close(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        return self.data.decode().splitlines()


class Secrets:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.requested: list[str] = []

    def resolve(self, reference: SecretReference, plan: object = None) -> str:
        self.requested.append(reference.name)
        if reference.name not in self._values:
            raise SecretError(f"no secret {reference.name}")
        return self._values[reference.name]


def step(index: int = 0, *env: str, image: str = "busybox", **fields: object) -> StepPlan:
    """A step that waits for all before it unless ``depends_on`` is given."""
    fields.setdefault("depends_on", tuple(range(index)))
    return StepPlan(index=index, image=image, env=env, **fields)  # type: ignore[arg-type]


class Build:
    """One build on the engine in memory; `run` runs it and checks that nothing is left behind."""

    def __init__(self, *steps: StepPlan, **fields: object) -> None:
        self.plan = BuildPlan(build_id=BUILD_ID, project_id="p1", steps=steps, **fields)  # type: ignore[arg-type]
        self.engine = FakeEngine(["busybox"])
        self.sink = MemorySink()
        self.events: list[BuildEvent] = []
        self.cancel = CancelToken()
        self.secrets = Secrets({})
        self.workspace: Workspace = EmptyWorkspace()
        self.clock: Clock = HastyClock()

    def run(
        self,
        options: RunOptions = QUICK,
        *,
        on_event: Callable[[BuildEvent], None] | None = None,
        sink: LogSink | None = None,
    ) -> BuildOutcome:
        def record(event: BuildEvent) -> None:
            self.events.append(event)
            if on_event is not None:
                on_event(event)

        try:
            return run_build(
                self.plan,
                RunContext(
                    engine=self.engine,
                    workspace=self.workspace,
                    secrets=self.secrets,
                    sink=sink or self.sink,
                    on_event=record,
                    cancel=self.cancel,
                    options=options,
                    clock=self.clock,
                ),
            )
        finally:
            owned = self.engine.list_owned({LABEL_BUILD: BUILD_ID})
            assert not owned.containers
            assert not owned.volumes
            assert not owned.networks or self.engine.running()

    def called(self, method: str) -> list[str]:
        return [what for name, what in self.engine.calls if name == method]
