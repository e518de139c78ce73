"""The CEL filter of a notifier, which selects builds.

``build`` is the Build message: its fields have the names of the proto (snake_case; those of the
JSON are accepted, too), an unset field has its type's zero, and ``has()`` tests whether it is set.
An enum's value is its name, also that of ``Build.Status.FAILURE``.

Source: semantics 12.2
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.model.message import ONE, SCALARS, fields_of, type_named
from buildrunner.spec.reading.findings import suggestion
from buildrunner.triggers import cel
from buildrunner.triggers.events import Rule

_STRING: Final = re.compile(r"""\"(?:\\.|[^"\\\n])*\"|'(?:\\.|[^'\\\n])*'""")
_STATUS: Final = re.compile(r"\bBuild\.Status\.(\w+)")
# build.a.b, without a called method: .size() is no field.
_PATH: Final = re.compile(r"(?<![\w.])(?:build|previous)((?:\.[A-Za-z_]+(?![\w(]))+)")


def check_filter(text: str) -> str:
    """Return the problem of the expression; empty if it is valid or empty."""
    if not text:
        return ""
    return cel.check_filter(text) or _unknown(_STRING.sub('""', text))


def _unknown(text: str) -> str:
    """Return the problem of the first unknown field or status; empty if all are known."""
    for status in _STATUS.findall(text):
        if status not in Status.__members__:
            known = ", ".join(Status.__members__)
            return f"there is no Build.Status.{status}; there are {known}"
    for path in _PATH.findall(text):
        message: type[Any] = Build
        for name in path[1:].split("."):
            field = next((one for one in fields_of(message) if name in (one.name, one.json)), None)
            if field is None:
                hint = suggestion(name, [one.name for one in fields_of(message)])
                known = f"{message.__name__} has no field {name}"
                return f"{known}; {hint}" if hint else known
            if field.form != ONE or field.type_name in SCALARS:
                break
            message = type_named(field.type_name, message)
            if issubclass(message, enum.Enum):
                break
    return ""


def build_rule(
    text: str,
    build: Mapping[str, Any],
    others: Mapping[str, Any],
    longest_s: float = cel.LONGEST_S,
) -> Rule:
    """Return whether the filter matches a build. A filter that can't be evaluated does not.

    Args:
        text: the expression; empty for none.
        build: the Build, as JSON.
        others: further variables by name: texts, None, and Builds.
        longest_s: time limit in seconds.
    """
    if not text:
        return Rule(name="filter", passed=None, text="there is no filter")
    wrong = check_filter(text)
    if wrong:
        return Rule(name="filter", passed=False, text=wrong)
    runner = _runner(longest_s)
    variables = _variables(build, others)
    return cel.evaluated_rule(text, variables, "this build", runner)


def check_answer(text: str, others: Mapping[str, Any]) -> str:
    """Return the problem of a filter's value; empty for yes, no, and values not known yet.

    Args:
        text: an expression that `check_filter` accepts.
        others: see `build_rule`.
    """
    runner = _runner(cel.LONGEST_CHECK_S)
    return cel.check_answer(text, _variables({}, others), runner)


def _runner(longest_s: float) -> type[Any]:
    from buildrunner.triggers.cel import Deadline, message_runner

    return message_runner(Deadline(time.monotonic, longest_s))


def _variables(build: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    from celpy.adapter import json_to_cel

    from buildrunner.triggers.cel import MessageValue

    variables: dict[str, Any] = {
        "build": MessageValue(Build, build),
        "Build": json_to_cel({"Status": {name: name for name in Status.__members__}}),
    }
    for name, value in others.items():
        is_build = isinstance(value, Mapping)
        variables[name] = MessageValue(Build, value) if is_build else json_to_cel(value)
    return variables
