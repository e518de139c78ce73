"""How times, sizes and states are written on pages. Pure."""

from __future__ import annotations

import re
import shlex
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.plan.build_plan import StepPlan
    from buildrunner.server.pages.estimate import Estimate

# A sign besides the colour: not everybody tells red from green.
SIGNS = {
    "SUCCESS": "✓",
    "FAILURE": "✗",
    "INTERNAL_ERROR": "‼",
    "TIMEOUT": "◷",
    "CANCELLED": "⊘",
    "EXPIRED": "⌛",
    "WORKING": "▶",
    "QUEUED": "…",
    "PENDING": "‖",
    "NOT_RUN": "·",
}
NOTHING = "\N{EN DASH}"

_SUM = re.compile(r"(sha256:)?[0-9a-f]{40,64}")
_SHOWN = 400
_SHORT = 0.095  # below, a tenth of a second says too little
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_KIB = 1024


def instant(text: str | None) -> datetime | None:
    """An instant of the API's JSON; None for none."""
    return datetime.fromisoformat(text) if text else None


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds from one instant to another; None unless both are there."""
    first, last = instant(start), instant(end)
    return (last - first).total_seconds() if first and last else None


def duration(seconds: float | None) -> str:
    """``40 ms``, ``1.2 s``, ``3 min 4 s``, ``2 h 5 min``; a dash for None."""
    if seconds is None:
        return NOTHING
    if seconds < _SHORT:
        return f"{seconds * 1000:.0f} ms" if seconds > 0 else "0 s"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < _HOUR:
        rest = f" {whole % _MINUTE} s" if whole % _MINUTE else ""
        return f"{whole // _MINUTE} min{rest}"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def ago(text: str | None, now: datetime) -> str:
    """``5 min ago``; a dash for None."""
    moment = instant(text)
    if moment is None:
        return NOTHING
    seconds = max(0.0, (now - moment).total_seconds())
    if seconds < _MINUTE:
        return "just now"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min ago"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h ago"
    return f"{seconds // _DAY:.0f} d ago"


def size(count: float | None) -> str:
    """``1.5 MiB``; a dash for None."""
    if count is None:
        return NOTHING
    if count < _KIB:
        return f"{count:.0f} B"
    value, units = count / _KIB, ["KiB", "MiB", "GiB"]
    while value >= _KIB and len(units) > 1:
        value /= _KIB
        del units[0]
    return f"{value:.1f} {units[0]}"


def sign(status: str) -> str:
    """A sign for a status, for those who don't see its colour."""
    return SIGNS.get(status, "?")


def words(status: str) -> str:
    """``INTERNAL_ERROR`` -> ``internal error``."""
    return status.replace("_", " ").lower()


def short(text: str) -> str:
    """The first characters of an id or a commit."""
    return text[:8]


def shortened(text: str) -> str:
    """A value for a narrow column: of a commit or digest its beginning, of a long text some."""
    if _SUM.fullmatch(text):
        return text.removeprefix("sha256:")[:12]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def expected(estimate: Estimate) -> str:
    """When a build will have ended: ``about 2 min left``, or that it takes longer than usual."""
    if estimate.left_s > 0:
        return f"about {rough(estimate.left_s)} left"
    return f"usually {rough(estimate.usual_s)}"


def rough(seconds: float) -> str:
    """A time that nobody knows exactly: ``20 s``, ``4 min``, ``2 h``."""
    if seconds < _MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < _HOUR:
        return f"{round(seconds / _MINUTE)} min"
    return f"{seconds / _HOUR:.1f} h"


def argv(step: StepPlan) -> str:
    """What a step runs, as one would type it."""
    return shlex.join([*([step.entrypoint] if step.entrypoint else []), *(step.args or ())])


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "ago": ago,
    "size": size,
    "sign": sign,
    "words": words,
    "short": short,
    "shortened": shortened,
    "expected": expected,
    "argv": argv,
}
