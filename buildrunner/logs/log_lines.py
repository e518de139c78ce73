"""From chunks back to lines."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from buildrunner.logs.log_index import NO_STEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.logs.log_index import LogIndex

_LONGEST_LINE = 1 << 20


class LogLine(msgspec.Struct, frozen=True):
    """One line of a log.

    Attributes:
        number: from 0.
        offset: of its first byte in the log.
        at: when its chunk arrived.
        step: index of its step, None for the build's own lines.
        text: the line without its newline, as it was written; a line of more than 1 MiB comes in
            pieces of the same number.
    """

    number: int
    offset: int
    at: datetime
    step: int | None
    text: bytes


def walk_lines(
    log: int, index: LogIndex, at: int, count: int, only_step: int | None
) -> Iterator[LogLine]:
    """Lines of the chunks ``at`` .. ``count`` - 1.

    Args:
        log: descriptor of the text.
        index: its index.
        at: first chunk; a line begins with it.
        count: of chunks.
        only_step: leave out those of other steps; -1 is the build itself, None leaves out none.
    """
    before = index[at - 1]
    number, offset = before.lines, before.end
    begun: LogLine | None = None  # a line whose newline has not come yet
    for record in index.walk(at, count):
        if only_step is not None and record.step != only_step:
            number, offset = record.lines, record.end
            continue
        moment = datetime.fromtimestamp(record.at_us / 1_000_000, UTC)
        step = None if record.step == NO_STEP else record.step
        while offset < record.end:
            data = os.pread(log, min(_LONGEST_LINE, record.end - offset), offset)
            if not data:
                return  # removed meanwhile
            # Not splitlines: it breaks at carriage returns too, which are part of a line here.
            *whole, rest = data.split(b"\n")
            for text in whole:
                yield _joined(begun, LogLine(number, offset, moment, step, text))
                begun = None
                number, offset = number + 1, offset + len(text) + 1
            if rest:
                begun = _joined(begun, LogLine(number, offset, moment, step, rest))
                offset += len(rest)
                if len(begun.text) >= _LONGEST_LINE:
                    yield begun
                    begun = None
    if begun is not None:
        yield begun


def _joined(begun: LogLine | None, line: LogLine) -> LogLine:
    if begun is None:
        return line
    return msgspec.structs.replace(begun, text=begun.text + line.text)
