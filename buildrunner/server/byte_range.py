"""The ``Range`` header, as Cloud Storage honours it. Pure.

Source: RFC 9110 section 14; a header of another form, or with several ranges, is ignored, and the
whole object is answered.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_FORM: Final = re.compile(r"bytes=(\d*)-(\d*)")


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes ``start`` .. ``end`` - 1."""

    start: int
    end: int


def parse_range(header: str, size: int) -> ByteRange | None:
    """The part of ``size`` bytes that is asked for; None for all of them.

    Raises:
        ValueError: nothing of it is there (416).
    """
    match = _FORM.fullmatch(header.strip())
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise ValueError(header)
    return ByteRange(start, end)
