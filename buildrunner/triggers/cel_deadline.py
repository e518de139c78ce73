"""Evaluates CEL for so long and no longer.

Whoever sends an event decides how large it is, and an expression may look at each part of it for
each other part: without an end, one delivery could hold up all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celpy import InterpretedRunner
from celpy.adapter import json_to_cel
from celpy.celtypes import ListType, MapType, StringType
from celpy.evaluation import Evaluator

if TYPE_CHECKING:
    from collections.abc import Callable


class TooLong(Exception):
    """The evaluation was given up."""


class Deadline:
    """Until when work may go on.

    Args:
        now: a clock that never goes back, in seconds.
        seconds: from now on.
    """

    def __init__(self, now: Callable[[], float], seconds: float) -> None:
        self._now = now
        self._until = now() + seconds
        self._text = f"it takes longer than {seconds:g} seconds"

    def check(self) -> None:
        """Raise `TooLong` when it is over."""
        if self._now() > self._until:
            raise TooLong(self._text)


def timed_runner(deadline: Deadline) -> type[InterpretedRunner]:
    """What evaluates an expression until a deadline, for celpy's ``Environment``."""

    class TimedEvaluator(Evaluator):
        """Looks at the clock at each part of the expression."""

        def sub_evaluator(self, ast: Any) -> Evaluator:
            return TimedEvaluator(ast, activation=self.activation)

        def visit_children(self, tree: Any) -> Any:
            deadline.check()
            return super().visit_children(tree)

    class TimedRunner(InterpretedRunner):
        """Evaluates with it."""

        def evaluate(self, context: Any) -> Any:
            return TimedEvaluator(self.ast, activation=self.new_activation()).evaluate(context)

    return TimedRunner


def cel_of_json(value: Any, deadline: Deadline) -> Any:
    """Parsed JSON as CEL has it. Raises `TooLong`."""
    if isinstance(value, dict):
        deadline.check()
        return MapType({StringType(key): cel_of_json(one, deadline) for key, one in value.items()})
    if isinstance(value, list):
        deadline.check()
        return ListType([cel_of_json(one, deadline) for one in value])
    return json_to_cel(value)
