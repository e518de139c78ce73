"""Evaluates CEL for so long and no longer.

Whoever sends an event decides how large it is, and an expression may look at each part of it for
each other part: without an end, one delivery could hold up all others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from celpy import InterpretedRunner
from celpy.adapter import json_to_cel
from celpy.celtypes import (
    BoolType,
    DurationType,
    IntType,
    ListType,
    MapType,
    StringType,
    TimestampType,
)
from celpy.evaluation import Evaluator

from buildrunner.spec.model.message import Message
from buildrunner.spec.model.shapes import LIST, MAP, SCALARS, Field, fields_of, type_named


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


_ZEROS: Final[dict[str, Any]] = {
    "bool": False,
    "int": 0,
    "Int64": 0,
    "datetime": datetime(1970, 1, 1, tzinfo=UTC),
    "timedelta": "0s",
}


class MessageValue(MapType):
    """A message: a map whose unset fields have values, too.

    Args:
        message: what it is.
        document: in camelCase; what the message does not have is left out.
    """

    def __init__(self, message: type[Message], document: Mapping[str, Any]) -> None:
        super().__init__()
        self._message = message
        for field in fields_of(message):
            if field.json in document:
                self[StringType(field.name)] = _value(field, message, document[field.json])

    def __getitem__(self, key: Any) -> Any:
        field = self._field(str(key))
        if field is None:
            raise KeyError(key)
        if self.has(field.name):
            return super().__getitem__(StringType(field.name))
        return _zero(field, self._message)

    def has(self, key: str) -> bool:
        """Whether a field is there and set."""
        field = self._field(key)
        return field is not None and StringType(field.name) in self

    def _field(self, key: str) -> Field | None:
        fields = fields_of(self._message)
        return next((field for field in fields if key in (field.name, field.json)), None)


def message_runner(deadline: Deadline) -> type[InterpretedRunner]:
    """What evaluates expressions in which messages may occur, until a deadline."""

    class Reader(Evaluator):
        """Knows what ``has`` asks of a message; looks at the clock at each part."""

        is_set = True

        def sub_evaluator(self, ast: Any) -> Evaluator:
            return Reader(ast, activation=self.activation)

        def visit_children(self, tree: Any) -> Any:
            deadline.check()
            return super().visit_children(tree)

        def member_dot(self, tree: Any) -> Any:
            found = super().member_dot(tree)
            member = self.visit(tree.children[0])
            is_message = isinstance(member, MessageValue)
            self.is_set = not is_message or member.has(tree.children[1].value)
            return found

        def macro_has_eval(self, exprlist: Any) -> BoolType:
            self.is_set = True
            answer = super().macro_has_eval(exprlist)
            return BoolType(bool(answer) and self.is_set)

    class MessageRunner(InterpretedRunner):
        """Evaluates with it."""

        def evaluate(self, context: Any) -> Any:
            return Reader(ast=self.ast, activation=self.new_activation()).evaluate(context)

    return MessageRunner


def _value(field: Field, message: type[Message], given: Any) -> Any:
    if field.form == LIST:
        return ListType([_item(field, message, one) for one in given])
    if field.form == MAP:
        items = {StringType(key): _item(field, message, one) for key, one in given.items()}
        return MapType(items)
    return _item(field, message, given)


def _item(field: Field, message: type[Message], given: Any) -> Any:
    if field.type_name in SCALARS:
        return _scalar(field.type_name, given)
    kind = type_named(field.type_name, message)
    return StringType(given) if issubclass(kind, enum.Enum) else MessageValue(kind, given)


def _zero(field: Field, message: type[Message]) -> Any:
    if field.form == LIST:
        return ListType([])
    if field.form == MAP:
        return MapType()
    if field.type_name in SCALARS:
        return _scalar(field.type_name, _ZEROS.get(field.type_name, ""))
    kind = type_named(field.type_name, message)
    if issubclass(kind, enum.Enum):
        return StringType(next(iter(kind)).name)
    return MessageValue(kind, {})


def _scalar(kind: str, given: Any) -> Any:
    match kind:
        case "bool":
            return BoolType(given)
        case "int" | "Int64":
            return IntType(int(given))
        case "datetime":
            return TimestampType(given)
        case "timedelta":
            return DurationType(given)
        case _:
            return StringType(given)
