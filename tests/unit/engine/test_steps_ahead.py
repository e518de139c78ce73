"""How far ahead of the running steps containers are started."""

from __future__ import annotations

from typing import cast

import pytest

from buildrunner.engine.step_run import StepRun
from buildrunner.engine.step_runs import StepsAhead
from buildrunner.plan.step_graph import StepGraph
from buildrunner.spec.model.build import Status
from tests.unit.engine.conftest import step


class Run:
    """Stands for a `StepRun` whose container is never quite started, or started at once."""

    def __init__(self, *, is_being_made: bool) -> None:
        self.is_being_made = is_being_made

    def create_ahead(self, *, start: bool) -> None:
        assert start


class Chain:
    """A build of steps that run one after the other.

    Args:
        is_slow: whether the container of a step is still being started when its turn comes.
    """

    def __init__(self, steps: int, *, is_slow: bool) -> None:
        plans = [step(index) for index in range(steps)]
        self._is_slow = is_slow
        self._graph = StepGraph(plans)
        self._runs: dict[int, StepRun] = {}
        self._ahead = StepsAhead(plans, self._graph, self._runs, self._new_run)

    def _new_run(self, position: int) -> StepRun:
        run = self._runs[position] = cast(StepRun, Run(is_being_made=self._is_slow))
        return run

    def reach(self, position: int) -> int:
        """Run up to a step; return how many steps behind it have containers."""
        for current in range(position + 1):
            if current:
                self._graph.finish(current - 1, Status.SUCCESS, exit_code=0)
                self._ahead.forget(current - 1)
            self._graph.start(current)
            self._ahead.turn_comes(current)
            if current not in self._runs:
                self._new_run(current)
            self._ahead.create_next()
        return max(self._runs) - position


@pytest.mark.parametrize("position", [0, 1, 7])
def test_steps_that_last_have_two_containers_ahead(position: int) -> None:
    assert Chain(30, is_slow=False).reach(position) == 2


@pytest.mark.parametrize(("position", "ahead"), [(0, 2), (1, 3), (2, 4), (6, 8), (20, 8), (28, 1)])
def test_steps_shorter_than_a_start_have_more_containers_ahead(position: int, ahead: int) -> None:
    assert Chain(30, is_slow=True).reach(position) == ahead
