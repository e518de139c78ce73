"""The steps of a running build: start them, prepare later ones, and record each outcome.

Belongs to the loop's thread, to which the runs of the steps report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial

from msgspec.structs import replace

from buildrunner.containers.protocol import LABEL_STEP, FoundContainer
from buildrunner.engine.events import StepRunning, StepStarted
from buildrunner.engine.outcome import (
    CANCELLED,
    Decision,
    Span,
    StepOutcome,
    failed_step,
    lost_container,
    step_finished,
)
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.running_build import RunningBuild
from buildrunner.engine.step_run import StepRun
from buildrunner.plan.build_plan import StepPlan
from buildrunner.plan.step_graph import StepGraph, StopReason
from buildrunner.spec.model.build import Status


class StepRuns:
    """Runs the graph of the steps. A step is identified by its position in the plan.

    Args:
        build: the running build. `RunningBuild.decide` is called if a step fails the build, and
            when all steps have ended.
    """

    def __init__(self, build: RunningBuild) -> None:
        self._build = build
        self._tell = build.inbox.tell
        self._emit = build.emit
        self._warn = build.warn
        self._decide = build.decide
        self._plan = build.plan
        self._graph = StepGraph(build.plan.steps)
        self._runs: dict[int, StepRun] = {}
        self._deadlines: dict[int, float] = {}
        self._started_containers: set[int] = set()
        self._turns: dict[int, Span] = {}
        self._ahead = StepsAhead(build.plan.steps, self._graph, self._runs, self._new_run)
        self.outcomes = [StepOutcome(index=step.index) for step in build.plan.steps]
        """The outcome of each step so far."""

    @property
    def running(self) -> bool:
        """Return whether any step runs."""
        return bool(self._graph.running)

    @property
    def deadline(self) -> float:
        """Return the earliest time at which a running step times out (monotonic seconds)."""
        return min(self._deadlines.values(), default=float("inf"))

    def create_first(self) -> None:
        """Create the containers of the steps that start first, during the setup."""
        self._ahead.create_first()

    def begin(self) -> None:
        """Start the first steps, after the setup."""
        self._launch_ready()
        self._create_next()
        if self._graph.is_over:  # the build was resumed after its last step
            self._decide(None)

    def resume(self, state: ResumeState, found: Sequence[FoundContainer]) -> Decision | None:
        """Restore the state of an earlier process of the build. `begin` continues from there.

        Args:
            state: the stored events of the earlier process.
            found: containers of steps that were started, and whose end is not stored.

        Returns:
            The decision, if the restored steps decide the build; else None.
        """
        positions = {step.index: at for at, step in enumerate(self._plan.steps)}
        containers = {positions[int(one.labels[LABEL_STEP])]: one for one in found}
        ended = {positions[index]: outcome for index, outcome in state.outcomes.items()}
        bad = [
            at for at, one in ended.items() if not (one.status is Status.SUCCESS or one.forgiven)
        ]
        for position in sorted(ended.keys() - set(bad)):
            self._graph.start(position)
            self._restore(position, ended[position])
        for position in (*bad, *containers):
            self._graph.start(position)
        for position, container in containers.items():
            index = self._plan.steps[position].index
            self._go_on(position, container, state.begun.get(index, state.started_at))
        for position in bad:
            self._restore(position, ended[position])
        for position in bad:
            if ended[position].status is not Status.CANCELLED:
                return failed_step(self._plan.steps[position], ended[position])
        lost = [positions[index] for index in state.ran if positions[index] not in containers]
        if lost and not bad:
            return lost_container(self._plan.steps[min(lost)])
        return CANCELLED if bad else None

    def _restore(self, position: int, outcome: StepOutcome) -> None:
        self._ahead.forget(position)
        self._graph.finish(position, outcome.status, exit_code=outcome.exit_code)
        self.outcomes[position] = outcome

    def _go_on(self, position: int, container: FoundContainer, began: datetime) -> None:
        step = self._plan.steps[position]
        self._turns[position] = Span(began)
        run = self._new_run(position)
        if step.timeout_s:
            ran_s = (self._build.clock.now() - began).total_seconds()
            self._deadlines[position] = self._build.clock.monotonic() + step.timeout_s - ran_s
        run.resume(container.id, began, unwatched=container.has_ended)

    def stop(self, reason: StopReason, why: Status, grace_s: float) -> None:
        """Start no more steps, and kill the running ones."""
        self._graph.stop(reason)
        self._deadlines.clear()
        for position in self._graph.running:
            self._runs[position].stop(why, grace_s)

    def stop_overdue(self, now: float) -> None:
        """Kill the steps that have exceeded their own timeout."""
        for position, deadline in tuple(self._deadlines.items()):
            if now >= deadline:
                del self._deadlines[position]
                grace_s = self._build.options.timeout_grace_s
                self._runs[position].stop(Status.TIMEOUT, grace_s)

    def abandon(self) -> None:
        """Record running steps as cancelled, because the engine does not answer."""
        for position in tuple(self._graph.running):
            turn = self._turns[position]
            self._on_end(
                position,
                StepOutcome(
                    index=self._plan.steps[position].index,
                    status=Status.CANCELLED,
                    timing=Span(turn.start, self._build.clock.now()),
                    error="its container could not be stopped",
                ),
            )

    def discard_rest(self) -> None:
        """Remove the containers of steps that never started. Waits for the removal."""
        for position, status in enumerate(self._graph.statuses):
            if status is Status.QUEUED and position in self._runs:
                self._runs.pop(position).discard()

    # -- start and end of a step -----------------------------------------------------------------

    def _launch_ready(self) -> None:
        for position in self._graph.ready():
            self._launch(position)

    def _launch(self, position: int) -> None:
        step = self._plan.steps[position]
        self._graph.start(position)
        if step.depends_on:
            self._ahead.turn_comes(position)
        run = self._runs.get(position) or self._new_run(position)
        now = self._build.clock.now()
        self._turns[position] = Span(now)
        pulls = self._build.pulls.is_pulling(step)
        self._emit(StepStarted(at=now, step=step.index, pulls=pulls))
        if self._plan.names_steps:
            self._build.log.line_once(f"Starting {step.label}")
        run.begin(pulls=pulls)

    def _new_run(self, position: int) -> StepRun:
        run = StepRun(
            self._plan.steps[position],
            self._build,
            on_running=partial(self._tell, self._on_running, position),
            on_end=partial(self._tell, self._on_end, position),
        )
        self._runs[position] = run
        return run

    def _create_next(self) -> None:
        """Create containers of later steps, unless a step is starting: that would slow it down."""
        starting = self._graph.running - self._started_containers
        if not starting and self._graph.stop_reason is None:
            self._ahead.create_next()

    def _on_running(self, position: int) -> None:
        step = self._plan.steps[position]
        self._started_containers.add(position)
        if position not in self._graph.running:
            return
        self._emit(StepRunning(at=self._build.clock.now(), step=step.index))
        if step.timeout_s and self._graph.stop_reason is None:
            deadline = self._build.clock.monotonic() + step.timeout_s
            self._deadlines.setdefault(position, deadline)
        self._create_next()

    def _on_end(self, position: int, result: StepOutcome | BaseException) -> None:
        if isinstance(result, BaseException):
            raise result
        if position not in self._graph.running:
            return  # `abandon` recorded it before
        self._deadlines.pop(position, None)
        self._ahead.forget(position)
        self._build.pulls.step_ended()
        stopped_before = self._graph.stop_reason
        if result.infrastructure:
            self._graph.stop(StopReason.INTERNAL_ERROR)
        self._graph.finish(position, result.status, exit_code=result.exit_code)
        outcome = self._as_recorded(position, result)
        self.outcomes[position] = outcome
        self._emit(step_finished(outcome, self._build.clock.now()))
        if self._build.options.keep_logs:  # the event of its end is stored
            self._runs[position].dispose()
        if outcome.forgiven:
            self._warn(f"{self._plan.steps[position].label} was allowed to fail: {outcome.error}")
        step = self._plan.steps[position]
        if stopped_before is None and self._graph.stop_reason is not None:
            self._decide(failed_step(step, result))
        elif self._graph.stop_reason is None:
            self._launch_ready()
            if self._graph.is_over:
                self._decide(None)

    def _as_recorded(self, position: int, result: StepOutcome) -> StepOutcome:
        """Return the outcome with the status that the graph gives the step in the whole build."""
        status = self._graph.statuses[position]
        if result.infrastructure and status is Status.CANCELLED:
            status = result.status
        forgiven = self._graph.is_forgiven(position)
        if status is Status.CANCELLED and result.status is not Status.CANCELLED:
            return replace(result, status=status, exit_code=None, forgiven=False, last_lines=())
        return replace(result, status=status, forgiven=forgiven)


_MOST_FIRST = 16
_MOST_AHEAD = 8  # each waiting container takes about 10 MB of memory


class StepsAhead:
    """Creates and starts the containers of later steps. Belongs to the loop's thread.

    Args:
        steps: all steps of the plan.
        graph: the state of the steps.
        runs: the runs so far, by the position of their step.
        new_run: makes the run of a step.
    """

    def __init__(
        self,
        steps: Sequence[StepPlan],
        graph: StepGraph,
        runs: Mapping[int, StepRun],
        new_run: Callable[[int], StepRun],
    ) -> None:
        self._graph = graph
        self._runs = runs
        self._new_run = new_run
        self._unfinished_before = _all_before(steps)
        self._levels = 2  # enough if steps take longer than the start of a container

    def create_first(self) -> None:
        """Create the containers of the steps that start first."""
        for position in self._graph.ready()[:_MOST_FIRST]:
            self._new_run(position).create_ahead(start=False)

    def create_next(self) -> None:
        """Start the containers of the next steps, and of the steps after these."""
        reached = set(self._graph.running)
        for _ in range(self._levels):
            reached |= self._create_behind(reached)

    def turn_comes(self, position: int) -> None:
        """Prepare more steps from now on if the container of a starting step is not ready."""
        run = self._runs.get(position)
        if run is not None and run.is_being_made:
            self._levels = min(self._levels + 1, _MOST_AHEAD)

    def forget(self, ended: int) -> None:
        """Record that a step has ended: no later step waits for it."""
        for waits in self._unfinished_before:
            waits.discard(ended)

    def _create_behind(self, reached: AbstractSet[int]) -> set[int]:
        """Start the containers of steps that wait only for ``reached``; return these steps."""
        level = set()
        statuses = self._graph.statuses
        ahead = sum(statuses[position] is Status.QUEUED for position in self._runs)
        for position, status in enumerate(statuses):
            if status is not Status.QUEUED or not self._unfinished_before[position] <= reached:
                continue
            run = self._runs.get(position)
            if run is None and ahead < _MOST_AHEAD:
                run = self._new_run(position)
                ahead += 1
            if run is not None:
                run.create_ahead(start=True)
                level.add(position)
        return level


def _all_before(steps: Sequence[StepPlan]) -> list[set[int]]:
    """Return, for each step, all steps that must end before it can start."""
    before: list[set[int]] = []
    for step in steps:
        before.append(set(step.depends_on).union(*(before[one] for one in step.depends_on)))
    return before
