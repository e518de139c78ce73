"""Filters of triggers, evaluated within bounds: they are their projects' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from buildrunner.server.bounded.calls import BoundedCalls, Bug, TooMuch
from buildrunner.triggers.cel import filter_rule
from buildrunner.triggers.events import Rule

_COMPILE_S: Final = 1.0
_MEMORY_MIB: Final = 1024  # a payload of 25 MB takes twenty times that as CEL's values


class BoundedFilters:
    """Evaluates the filters of one project's triggers. Thread-safe.

    Args:
        calls: evaluates.
        project: whose.
    """

    def __init__(self, calls: BoundedCalls, project: str) -> None:
        self._calls = calls
        self._project = project

    def rule(self, text: str, values: Mapping[str, str], body: Any, longest_s: float) -> Rule:
        """See `cel.filter_rule`.

        Raises:
            Busy: the project has too many others under way, and that does not change soon.
        """
        if not text:
            return filter_rule(text, values, body)
        asked = [text, dict(values), body if "body" in text else None, longest_s]
        try:
            found = self._calls.call(
                "trigger_filter",
                asked,
                owner=f"{self._project}'s events",
                cpu_s=longest_s + _COMPILE_S,
                memory_mib=_MEMORY_MIB,
                patience_s=longest_s,
            )
        except (TooMuch, Bug) as error:
            why = f"the filter can't be evaluated for this event: {error}"
            return Rule(name="filter", passed=False, text=why)
        return msgspec.convert(found, Rule)

    def problem(self, text: str, values: Mapping[str, str]) -> str:
        """See `cel.filter_problem`.

        Raises:
            Busy: the project has too many others under way.
        """
        asked = [text, dict(values)]
        try:
            found: str = self._calls.call("check_trigger_filter", asked, owner=self._project)
        except TooMuch as error:
            return f"the filter can't be evaluated: {error}"
        return found
