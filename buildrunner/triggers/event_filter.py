"""The CEL expression ``filter`` of a trigger.

Variables are the trigger's substitutions by name, as text, and ``body``, the event.

Source: semantics 9.6, and Cloud Build's "Filter triggers by event"; full CEL is more than the
hosted service documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from buildrunner.triggers.events import Rule

MAX_LENGTH = 4096
LONGEST_S = 5.0
LONGEST_CHECK_S = 0.5
_MOST_SHOWN = 100


def filter_problem(text: str, values: Mapping[str, str]) -> str:
    """What is wrong with a trigger's filter; empty when nothing is.

    Args:
        text: the expression; not empty.
        values: the trigger's substitutions.
    """
    return check_filter(text) or values_answer(text, values)


def check_filter(text: str) -> str:
    """What is wrong with the expression; empty when nothing is."""
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
    """Whether the filter lets a trigger fire. What can't be evaluated does not fire.

    Args:
        text: the expression; empty for none.
        values: the trigger's substitutions, bindings filled in.
        body: the event's payload as parsed JSON.
        longest_s: when it is given up.
        now: the clock for that, in seconds.
    """
    if not text:
        return Rule(name="filter", passed=None, text="there is no filter")
    wrong = check_filter(text)
    if wrong:
        return Rule(name="filter", passed=False, text=wrong)
    from celpy.adapter import json_to_cel

    from buildrunner.triggers.cel import Deadline, TooLong, cel_of_json, timed_runner

    deadline = Deadline(now, longest_s)
    variables = {name: json_to_cel(value) for name, value in values.items()}
    if "body" in text:  # else nobody looks at it, however large it is
        try:
            variables["body"] = cel_of_json(body, deadline)
        except TooLong as error:
            why = f"the filter can't be evaluated for this event: {error}"
            return Rule(name="filter", passed=False, text=why)
    return evaluated_rule(text, variables, "this event", timed_runner(deadline))


def evaluated_rule(
    text: str, variables: Mapping[str, Any], about: str, runner: type[Any] | None = None
) -> Rule:
    """What an expression that can be read says.

    Args:
        text: the expression.
        variables: CEL's values by name.
        about: what it is asked about, for the sentence when it can't be evaluated.
        runner: what evaluates it; None for CEL's own.
    """
    try:
        result = _evaluated(text, variables, runner)
    except MemoryError:  # where there is a limit to memory, somebody waits for it
        raise
    except Exception as error:  # noqa: BLE001  (anything may come: whatever fails is no "yes")
        why = f"the filter can't be evaluated for {about}: {_reason(error)}"
        return Rule(name="filter", passed=False, text=why)
    wrong = _no_answer(result)
    if wrong:
        return Rule(name="filter", passed=False, text=wrong)
    answer = "true" if result else "false"
    return Rule(name="filter", passed=bool(result), text=f"the filter is {answer}: {text}")


def values_answer(text: str, values: Mapping[str, str]) -> str:
    """`check_answer` of a trigger's filter that looks at the trigger's values alone."""
    if "body" in text:
        return ""
    from celpy.adapter import json_to_cel

    from buildrunner.triggers.cel import Deadline, timed_runner

    variables = {name: json_to_cel(value) for name, value in values.items()}
    return check_answer(text, variables, timed_runner(Deadline(time.monotonic, LONGEST_CHECK_S)))


def check_answer(text: str, variables: Mapping[str, Any], runner: type[Any] | None = None) -> str:
    """What is wrong with what an expression gives: empty for yes, no, and what nobody can say yet.

    Args:
        text: an expression that can be read.
        variables: some that it may meet.
        runner: see `evaluated_rule`.
    """
    try:
        return _no_answer(_evaluated(text, variables, runner))
    except Exception:  # noqa: BLE001  (of other events it may say something)
        return ""


def _evaluated(text: str, variables: Mapping[str, Any], runner: type[Any] | None) -> object:
    from celpy import Environment

    environment = Environment(runner_class=runner)
    result: object = environment.program(environment.compile(text)).evaluate(dict(variables))
    return result


def _no_answer(result: object) -> str:
    """Why it is no answer; empty for true and false."""
    from celpy.celtypes import BoolType

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
