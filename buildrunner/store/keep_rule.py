"""Retention of a project's builds: by number and by age. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

import msgspec

from buildrunner.errors import UsageError

ALL_PROJECTS: Final = "*"
_AGE: Final = re.compile(r"([0-9]{1,5})([dhw])")
_COUNT: Final = re.compile(r"[0-9]{1,9}")
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


class KeepRule(msgspec.Struct, frozen=True):
    """The retention of a project's builds; builds beyond either limit are deleted.

    Attributes:
        max_age: maximum time since the end of a build; None for no limit.
        max_count: maximum number of ended builds; None for no limit.
    """

    max_age: timedelta | None = None
    max_count: int | None = None


def parse_keep_rule(text: str) -> KeepRule:
    """Read a rule: ``90d``, ``1000``, ``90d,1000`` or ``all``.

    Raises:
        UsageError: the rule has another form.
    """
    if text == "all":
        return KeepRule()
    rule = KeepRule()
    for part in text.split(","):
        age = _AGE.fullmatch(part)
        if age and rule.max_age is None:
            span = timedelta(**{_UNITS[age[2]]: int(age[1])})
            rule = msgspec.structs.replace(rule, max_age=span)
        elif _COUNT.fullmatch(part) and rule.max_count is None:
            rule = msgspec.structs.replace(rule, max_count=int(part))
        else:
            raise UsageError(
                f"{text!r} does not say which builds are kept",
                hint="write an age such as 90d, a number of builds such as 1000, 90d,1000, or all",
            )
    return rule
