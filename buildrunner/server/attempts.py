"""Trying a build again, whole or from one of its steps: what is noted of it in labels. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildrunner.plan.from_step import reused_steps
from buildrunner.server.errors import invalid_argument
from buildrunner.store.attempt_labels import FROM_BUILD, FROM_STEP, REUSED_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.store.stored_build import StoredBuild


def going_on(old: StoredBuild, name: str) -> dict[str, str]:
    """The labels of a build that goes on with an old one: from which step, and what is reused.

    Args:
        old: the build that failed.
        name: id or index of one of its steps.

    Raises:
        ApiError: it has no such step.
    """
    steps: Sequence[dict[str, Any]] = old.document.get("steps", ())
    first = _index_of(steps, name)
    if first is None:
        known = ", ".join(step["id"] for step in steps[:20] if step.get("id"))
        message = f"build {old.id} has no step {name}: it has {len(steps)}, counted from 0"
        raise invalid_argument(f"{message}; ids: {known}" if known else message, field="fromStep")
    earlier = tuple(map(int, filter(None, old.labels.get(REUSED_STEPS, "").split(","))))
    reused = reused_steps([step.get("status", "") for step in steps], first, earlier)
    return {
        FROM_BUILD: old.id,
        FROM_STEP: steps[first].get("id") or f"#{first}",
        REUSED_STEPS: ",".join(map(str, reused)),
    }


def _index_of(steps: Sequence[dict[str, Any]], name: str) -> int | None:
    """The step with that id; else the one at that index."""
    for index, step in enumerate(steps):
        if step.get("id") == name:
            return index
    if name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < len(steps):
        return int(name)
    return None
