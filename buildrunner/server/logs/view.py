"""Lines of a log for viewers: numbered, with time and step, long lines cut."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final

import msgspec

from buildrunner.errors import NotFound
from buildrunner.logs.files.log_file import log_folder
from buildrunner.logs.files.reader import LogFileReader, LogLine
from buildrunner.logs.files.retention import check_not_removed
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import ApiError, unavailable
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.model.builds import StoredBuild

MOST_RUNS = 5000
LONGEST_LINE: Final = 1_000_000
MOST_PAGE_BYTES: Final = 8 << 20


def lines_answer(
    reader: LogFileReader,
    *,
    start: int,
    count: int,
    since: datetime | None = None,
    step: int | None = None,
    width: int = LONGEST_LINE,
) -> dict[str, Any]:
    """Return the body of ``/log/lines``.

    Args:
        reader: the log.
        start: number of the first line; a negative one counts from the end.
        count: the most lines.
        since: begin with the first line at or after this time, in place of ``start``.
        step: only lines of this step.
        width: the size to which long lines are cut, in bytes.

    Returns:
        ``lines``, fewer than ``count`` if they exceed `MOST_PAGE_BYTES`. ``next`` is then the
        number of the first omitted line, else None.
    """
    if since is not None:
        found = reader.lines_since(since, only_step=step)
    else:
        if start < 0:
            start = max(0, reader.line_count() + start)
        found = reader.lines(start, only_step=step)
    lines: list[dict[str, Any]] = []
    room, left_out = MOST_PAGE_BYTES, None
    for line, length in islice(_joined(found, width), count):
        room -= len(line.text)
        if lines and room < 0:
            left_out = line.number
            break
        lines.append(_line(line) if length <= width else {**_line(line), "bytes": length})
    size, line_count = reader.size(), reader.line_count()
    is_open = size > 0 and reader.read(size - 1, 1) != b"\n"
    answer = {"lines": lines, "lineCount": line_count, "open": is_open, "size": size}
    return answer | {"next": left_out}


def step_runs(reader: LogFileReader) -> dict[str, Any]:
    """Return the body of ``/log/steps``: the step of each run of lines.

    Returns:
        ``runs``: ``[step, first line, line after the last]`` in log order, -1 for the build's own
        lines; None when steps alternate more than 5,000 times.
    """
    runs: list[list[int]] | None = []
    begin = 0
    for _, record in reader.chunks(0, reader.size()):
        if runs is not None and record.lines > begin:
            if runs and runs[-1][0] == record.step:
                runs[-1][2] = record.lines
            else:
                runs.append([record.step, begin, record.lines])
            if len(runs) > MOST_RUNS:
                runs = None
                break
        begin = record.lines
    return {"runs": runs}


def tail(reader: LogFileReader, count: int, width: int, most_bytes: int) -> list[LogLine]:
    """Return the last ``count`` lines, each cut to ``width`` bytes, up to a total size."""
    start = max(0, reader.line_count() - count)
    lines = [line for line, _ in _joined(reader.lines(start), width)][-count:]
    total = 0
    for at in range(len(lines) - 1, -1, -1):
        total += len(lines[at].text)
        if total > most_bytes:
            return lines[at + 1 :]
    return lines


def _line(line: LogLine) -> dict[str, Any]:
    text = line.text.decode("utf-8", "replace")
    return {
        "number": line.number,
        "offset": line.offset,
        "at": line.at,
        "step": line.step,
        "text": text,
    }


def _joined(found: Iterable[LogLine], width: int) -> Iterator[tuple[LogLine, int]]:
    """Yield each line once, cut, with its length; pieces of a long line are joined."""
    begun: LogLine | None = None
    length, last = 0, b""
    for line in found:
        if begun is not None and line.number == begun.number:
            length += len(line.text)
            last = line.text
            continue
        if begun is not None:
            yield _cut(begun, last, length, width), length
        begun, length, last = line, len(line.text), line.text
    if begun is not None:
        yield _cut(begun, last, length, width), length


def _cut(line: LogLine, last_piece: bytes, length: int, width: int) -> LogLine:
    if length <= width:
        return line
    head, drawn = line.text[:width], b""
    if b"\r" in last_piece:
        # A progress bar: keep its last state, and its beginning, which has the step's name.
        drawn = b"\r" + last_piece.rstrip(b"\r").rpartition(b"\r")[2][:width]
        head = head.partition(b"\r")[0]
    return msgspec.structs.replace(line, text=head + drawn)


class KeptLogs:
    """Finds the stored logs of builds.

    Args:
        context: the server's context.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def folder(self, build: str) -> str:
        """Return the folder of a build's log, if this server has it."""
        return log_folder(self._context.data_folder, build)

    def reader(self, project: str, build: str) -> LogFileReader:
        """Return a reader of the log of a build.

        Raises:
            NotFound: no such build.
            ApiError: this server does not have its log. The message says why.
        """
        return self.reader_of(self._context.store.builds.get(project, build))

    def reader_of(self, stored: StoredBuild) -> LogFileReader:
        """Return a reader of the log of a stored build.

        Raises:
            ApiError: this server does not have its log. The message says why.
        """
        self._check_kept(stored)
        logging = stored.document.get("options", {}).get("logging")
        if logging == "NONE" and stored.status in FINAL_STATUSES:
            raise ApiError(404, f"build {stored.id} has no log: its options say logging: NONE")
        self._check_here(stored)
        return LogFileReader(self.folder(stored.id))

    def check(self, project: str, build: str) -> None:
        """Refuse a build that does not exist, or whose log was deleted.

        Raises:
            NotFound: no such build.
            ApiError: its log was deleted.
        """
        self._check_kept(self._context.store.builds.get(project, build))

    def _check_here(self, stored: StoredBuild) -> None:
        """Check that this server has the log, which may be on another server (see `LogHome`).

        Raises:
            ApiError: it is on another server, which does not answer, or its server is unknown.
        """
        if os.path.isdir(self.folder(stored.id)):
            return
        home = self._context.store.servers.log_home(stored.id)
        if home not in ("", self._context.settings.worker):
            raise unavailable(
                f"the log of build {stored.id} is on the server {home}, which does not answer"
            )
        if stored.status in FINAL_STATUSES and "startTime" in stored.document:
            raise ApiError(404, f"the log of build {stored.id} is not on this server any more")

    def _check_kept(self, stored: StoredBuild) -> None:
        try:
            check_not_removed(self.folder(stored.id), stored.id)
        except NotFound as error:
            raise ApiError(404, str(error)) from None
