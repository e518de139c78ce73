"""Instants as the store has them: microseconds since 1970, as exact as documents are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Microseconds from 1970 to an aware instant."""
    return (instant - _EPOCH) // _MICROSECOND


def instant_of(value: int) -> datetime:
    """The instant of that many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value)


def parse_instant(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time or date; without an offset it is UTC.

    Raises:
        ValueError: it is neither.
    """
    instant = datetime.fromisoformat(text)
    return microseconds(instant if instant.tzinfo else instant.replace(tzinfo=UTC))
