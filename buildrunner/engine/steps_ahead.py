"""Which steps have their containers created before their turn comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.spec.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from buildrunner.engine.namespaces import NamespacePool
    from buildrunner.engine.step_life import StepLife
    from buildrunner.plan.build_plan import StepPlan
    from buildrunner.plan.step_graph import StepGraph

_MOST_AHEAD = 16
_LEVELS_AHEAD = 2  # one would do if steps took longer than it takes to create a container


class StepsAhead:
    """Looks ahead of the steps that run. Belongs to the loop's thread.

    Where namespaces are shared, it creates only for steps that have one for sure: the network of a
    container can't be changed later.

    Args:
        steps: all of them.
        graph: how far they are.
        lives: those that were made, by the position of their step.
        new_life: makes one for a step, which waits for others.
        pool: the network namespaces of the build.
    """

    def __init__(
        self,
        steps: Sequence[StepPlan],
        graph: StepGraph,
        lives: Mapping[int, StepLife],
        new_life: Callable[[int, Collection[int]], StepLife],
        pool: NamespacePool,
    ) -> None:
        self._graph = graph
        self._lives = lives
        self._new_life = new_life
        self._pool = pool
        self._unfinished_before = _all_before(steps)

    def create_first(self) -> None:
        """Create for the steps that start first."""
        for position in self._graph.ready()[:_MOST_AHEAD]:
            self._new_life(position, ()).create_ahead()

    def create_next(self) -> None:
        """Create for the steps that come behind those that run, and for those behind them.

        So the next one is there when its turn comes, however short the steps are.
        """
        reached = set(self._graph.running)
        for _ in range(_LEVELS_AHEAD):
            reached |= self._create_behind(reached)

    def forget(self, ended: int) -> None:
        """Nobody waits for that step any more."""
        for waits in self._unfinished_before:
            waits.discard(ended)

    def _create_behind(self, reached: AbstractSet[int]) -> set[int]:
        """Create containers for steps that wait for no other than ``reached``; which those are."""
        level = set()
        statuses = self._graph.statuses
        ahead = sum(statuses[position] is Status.QUEUED for position in self._lives)
        for position, status in enumerate(statuses):
            if status is not Status.QUEUED or not self._unfinished_before[position] <= reached:
                continue
            life = self._lives.get(position)
            if life is None and ahead < _MOST_AHEAD:
                life = self._next_life(position)
                ahead += life is not None
            if life is not None:
                life.create_ahead()
                level.add(position)
        return level

    def _next_life(self, position: int) -> StepLife | None:
        before = self._unfinished_before[position]
        if self._pool and not self._pool.has_for(before):
            return None
        return self._new_life(position, before)


def _all_before(steps: Sequence[StepPlan]) -> list[set[int]]:
    """For each step all those that end before it can start."""
    before: list[set[int]] = []
    for step in steps:
        before.append(set(step.depends_on).union(*(before[one] for one in step.depends_on)))
    return before
