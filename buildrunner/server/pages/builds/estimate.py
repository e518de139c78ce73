"""How long a build will take, from how long the ones before it took. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from buildrunner.server.pages.wording import seconds_between

LOOKED_AT = 7


def usual_seconds(documents: Iterable[Mapping[str, Any]]) -> float | None:
    """How long builds usually take; None without any that succeeded.

    Args:
        documents: Builds as JSON, newest first, as lists have them.
    """
    times = [
        seconds
        for one in documents
        if one.get("status") == "SUCCESS"
        and (seconds := seconds_between(one.get("startTime"), one.get("finishTime"))) is not None
    ]
    return median(times[:LOOKED_AT]) if times else None
