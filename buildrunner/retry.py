"""Pauses between retries: doubled after each try, or as long as a busy server requests.

Source: RFC 9110, section 10.2.3 (``Retry-After``: seconds, or a date).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

LONGEST_WAIT_S = 60.0
"""The longest wait that a server may request; longer ones are shortened."""

_MOST_DOUBLINGS = 20

Pause = TypeVar("Pause", float, timedelta)


def backoff(failures: int, first: Pause, longest: Pause) -> Pause:
    """Return the pause after so many failures in a row: ``first``, then doubled each time."""
    return min(first * (1 << min(max(failures, 1) - 1, _MOST_DOUBLINGS)), longest)


def asked_wait_s(headers: Iterable[tuple[str, str]]) -> float:
    """Return the requested wait in seconds, at most `LONGEST_WAIT_S`.

    Returns 0 without a valid ``Retry-After`` header.

    Args:
        headers: names, in any case, and values of the answer's headers. A date in
            ``Retry-After`` is compared with the answer's own ``Date``.
    """
    found = {name.lower(): value.strip() for name, value in headers}
    requested = found.get("retry-after", "")
    if requested.isascii() and requested.isdecimal():
        return min(float(requested), LONGEST_WAIT_S)
    try:
        wait = parsedate_to_datetime(requested) - parsedate_to_datetime(found.get("date", ""))
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, min(wait.total_seconds(), LONGEST_WAIT_S))
