"""CEL expressions of triggers, evaluated with limits of time and size.

The sender of an event controls its size, and an expression may compare each part with each other
part. Without a limit, one delivery could block all others.
"""

from __future__ import annotations

import enum
import time
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

from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.triggers.events import Rule


class TooLong(Exception):
    """The evaluation exceeded its time limit."""


class Deadline:
    """A time limit for work.

    Args:
        now: returns the time of a monotonic clock, in seconds.
        seconds: the time limit, from now on.
    """

    def __init__(self, now: Callable[[], float], seconds: float) -> None:
        self._now = now
        self._until = now() + seconds
        self._text = f"it takes longer than {seconds:g} seconds"

    def check(self) -> None:
        """Raise `TooLong` after the time limit."""
        if self._now() > self._until:
            raise TooLong(self._text)


def timed_runner(deadline: Deadline) -> type[InterpretedRunner]:
    """Return a runner, for celpy's ``Environment``, that evaluates expressions until a deadline."""

    class TimedEvaluator(Evaluator):
        """Checks the deadline at each part of the expression."""

        def sub_evaluator(self, ast: Any) -> Evaluator:
            return TimedEvaluator(ast, activation=self.activation)

        def visit_children(self, tree: Any) -> Any:
            deadline.check()
            return super().visit_children(tree)

    class TimedRunner(InterpretedRunner):
        """Evaluates with `TimedEvaluator`."""

        def evaluate(self, context: Any) -> Any:
            return TimedEvaluator(self.ast, activation=self.new_activation()).evaluate(context)

    return TimedRunner


def cel_of_json(value: Any, deadline: Deadline) -> Any:
    """Return parsed JSON as CEL values. Raises `TooLong`."""
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
    """A message: a map whose unset fields have zero values.

    Args:
        message: type of the message.
        document: its JSON in camelCase; unknown fields are dropped.
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
        """Return whether a field exists and is set."""
        field = self._field(key)
        return field is not None and StringType(field.name) in self

    def _field(self, key: str) -> Field | None:
        fields = fields_of(self._message)
        return next((field for field in fields if key in (field.name, field.json)), None)


def message_runner(deadline: Deadline) -> type[InterpretedRunner]:
    """Return a runner for expressions with messages, with a deadline."""

    class Reader(Evaluator):
        """Implements ``has`` for messages; checks the deadline at each part."""

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
        """Evaluates with `Reader`."""

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


MAX_LENGTH = 4096
LONGEST_S = 5.0
LONGEST_CHECK_S = 0.5
_MOST_SHOWN = 100


def filter_problem(text: str, values: Mapping[str, str]) -> str:
    """Return the problem of a trigger's filter; empty if it is valid.

    Args:
        text: the expression; not empty.
        values: the trigger's substitutions.
    """
    return check_filter(text) or values_answer(text, values)


def check_filter(text: str) -> str:
    """Return the problem of the expression; empty if it is valid."""
    if len(text) > MAX_LENGTH:
        return f"the filter is longer than {MAX_LENGTH} characters"
    from celpy import Environment
    from celpy.celparser import CELParseError

    try:
        Environment().compile(text)
    except CELParseError as error:
        return f"{text!r} is no CEL expression: it goes wrong{_place(error)}"
    except RecursionError:
        return "the filter is nested too deeply"
    return ""


def filter_rule(
    text: str,
    values: Mapping[str, str],
    body: Any,
    longest_s: float = LONGEST_S,
    now: Callable[[], float] = time.monotonic,
) -> Rule:
    """Return whether the filter lets a trigger fire. A filter that can't be evaluated does not.

    Args:
        text: the expression; empty for none.
        values: the trigger's substitutions, bindings filled in.
        body: the event's payload as parsed JSON.
        longest_s: time limit in seconds.
        now: returns the time of a monotonic clock, in seconds.
    """
    if not text:
        return Rule(name="filter", passed=None, text="there is no filter")
    wrong = check_filter(text)
    if wrong:
        return Rule(name="filter", passed=False, text=wrong)

    deadline = Deadline(now, longest_s)
    variables = {name: json_to_cel(value) for name, value in values.items()}
    if "body" in text:  # otherwise the filter does not read the body, which can be large
        try:
            variables["body"] = cel_of_json(body, deadline)
        except TooLong as error:
            why = f"the filter can't be evaluated for this event: {error}"
            return Rule(name="filter", passed=False, text=why)
    return evaluated_rule(text, variables, "this event", timed_runner(deadline))


def evaluated_rule(
    text: str, variables: Mapping[str, Any], about: str, runner: type[Any] | None = None
) -> Rule:
    """Return a rule that passes if a valid expression is true.

    Args:
        text: the expression.
        variables: CEL's values by name.
        about: the subject, for the message if the expression can't be evaluated.
        runner: the class that evaluates it; None for celpy's own.
    """
    try:
        result = _evaluated(text, variables, runner)
    except MemoryError:  # under a memory limit, a caller handles this error
        raise
    except Exception as error:  # noqa: BLE001  (any error: a filter that fails does not match)
        why = f"the filter can't be evaluated for {about}: {_reason(error)}"
        return Rule(name="filter", passed=False, text=why)
    wrong = _no_answer(result)
    if wrong:
        return Rule(name="filter", passed=False, text=wrong)
    answer = "true" if result else "false"
    return Rule(name="filter", passed=bool(result), text=f"the filter is {answer}: {text}")


def values_answer(text: str, values: Mapping[str, str]) -> str:
    """Return `check_answer` of a trigger's filter; empty if the filter reads the body."""
    if "body" in text:
        return ""

    variables = {name: json_to_cel(value) for name, value in values.items()}
    return check_answer(text, variables, timed_runner(Deadline(time.monotonic, LONGEST_CHECK_S)))


def check_answer(text: str, variables: Mapping[str, Any], runner: type[Any] | None = None) -> str:
    """Return the problem of an expression's value: empty for yes, no, and values not known yet.

    Args:
        text: a valid expression.
        variables: sample values.
        runner: see `evaluated_rule`.
    """
    try:
        return _no_answer(_evaluated(text, variables, runner))
    except Exception:  # noqa: BLE001  (the filter may have a value for other events)
        return ""


def _evaluated(text: str, variables: Mapping[str, Any], runner: type[Any] | None) -> object:
    from celpy import Environment

    environment = Environment(runner_class=runner)
    result: object = environment.program(environment.compile(text)).evaluate(dict(variables))
    return result


def _no_answer(result: object) -> str:
    """Return why a value is no answer; empty for true and false."""
    if isinstance(result, BoolType | bool):
        return ""
    shown = repr(str(result)) if isinstance(result, str) else str(result)
    return f"the filter gives {shown[:_MOST_SHOWN]}, which is neither true nor false"


def _place(error: Any) -> str:
    if error.line is None or error.column is None:
        return ""
    return f" at line {error.line}, column {error.column}"


def _reason(error: Exception) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.partition(" (in activation")[0]
