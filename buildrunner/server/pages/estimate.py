"""How long a build will take, from how long the ones before it took. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.server.pages.wording import seconds_between

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LOOKED_AT = 7


class Estimate(msgspec.Struct, frozen=True):
    """What is to be expected of a build.

    Attributes:
        usual_s: how long successful builds of its trigger took lately (the median).
        so_far_s: how long it has run.
    """

    usual_s: float
    so_far_s: float

    @property
    def left_s(self) -> float:
        """How long it has still to run; negative when it runs longer than usual."""
        return self.usual_s - self.so_far_s

    @property
    def percent(self) -> int:
        """How much of the usual time is over, at most 99."""
        if self.usual_s <= 0:
            return 99
        return min(99, max(0, int(self.so_far_s / self.usual_s * 100)))


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
