"""Texts of times, sizes and states on pages. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from buildrunner.engine.deployments import with_short_digest
from buildrunner.logs.console.outputs import without_controls
from buildrunner.plan.build_plan import StepPlan

# A sign in addition to the colour, for colour-blind users.
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
_SHORT = 0.095  # below this, a tenth of a second is too coarse
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_KIB = 1024


def instant(text: str | None) -> datetime | None:
    """Parse an instant of the API's JSON; None for none."""
    return datetime.fromisoformat(text) if text else None


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Return the seconds from one instant to another; None unless both are set."""
    first, last = instant(start), instant(end)
    return (last - first).total_seconds() if first and last else None


def duration(seconds: float | None) -> str:
    """Format a duration: ``40 ms``, ``1.2 s``, ``3 min 4 s``, ``2 h 5 min``; a dash for None."""
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
    """Format a past time: ``5 min ago``; a dash for None."""
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
    """Format a size: ``1.5 MiB``; a dash for None."""
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
    """Return a sign for a status, which is shown in addition to its colour."""
    return SIGNS.get(status, "?")


def words(status: str) -> str:
    """Return a status in words: ``INTERNAL_ERROR`` -> ``internal error``."""
    return status.replace("_", " ").lower()


def short(text: str) -> str:
    """Return the first characters of an id or a commit."""
    return text[:8]


def shortened(text: str) -> str:
    """Shorten a commit, a digest or a long text for a narrow column."""
    if _SUM.fullmatch(text):
        return text.removeprefix("sha256:")[:12]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def expected(estimate: Estimate) -> str:
    """Return the expected end: ``about 2 min left``, or the usual time if that is over."""
    if estimate.left_s > 0:
        return f"about {rough(estimate.left_s)} left"
    return f"usually {rough(estimate.usual_s)}"


def rough(seconds: float) -> str:
    """Format an estimate: ``20 s``, ``4 min``, ``2 h``."""
    if seconds < _MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < _HOUR:
        return f"{round(seconds / _MINUTE)} min"
    return f"{seconds / _HOUR:.1f} h"


def argv(step: StepPlan) -> str:
    """Return the command of a step, quoted for a shell."""
    return shlex.join([*([step.entrypoint] if step.entrypoint else []), *(step.args or ())])


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "ago": ago,
    "size": size,
    "sign": sign,
    "words": words,
    "short": short,
    "short_digest": with_short_digest,
    "shortened": shortened,
    "expected": expected,
    "argv": argv,
}


# Sequences that remain after cursor moves are removed: colours; control characters; characters that
# reverse the direction of text, with which a line could look like another text.
_UNPRINTED = re.compile("\x1b\\[[0-9;:]*m|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown_text(line: bytes | str) -> str:
    """Return the text of a line without colours, with only the last state of a progress bar."""
    data = line if isinstance(line, bytes) else line.encode("utf-8", "replace")
    drawn = data.rstrip(b"\r").rpartition(b"\r")[2]
    return _UNPRINTED.sub("", without_controls(drawn).decode("utf-8", "replace"))


class Estimate(msgspec.Struct, frozen=True):
    """The expected duration of a build.

    Attributes:
        usual_s: median duration of recent successful builds of its trigger.
        so_far_s: its duration so far.
    """

    usual_s: float
    so_far_s: float

    @property
    def left_s(self) -> float:
        """Return the seconds until the expected end; negative after it."""
        return self.usual_s - self.so_far_s

    @property
    def percent(self) -> int:
        """Return the elapsed percentage of the usual time, at most 99."""
        if self.usual_s <= 0:
            return 99
        return min(99, max(0, int(self.so_far_s / self.usual_s * 100)))
