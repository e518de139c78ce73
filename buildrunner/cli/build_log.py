"""Showing the log of a build, also of one that still runs in another process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from buildrunner.errors import EXIT_SUCCESS, NotFound
from buildrunner.logs.log_file import log_folder
from buildrunner.logs.log_reader import LogFileReader
from buildrunner.logs.screen import coloured, without_controls, write_all
from buildrunner.settings import terminal
from buildrunner.store.build_store import FINAL_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.store.build_store import BuildStore

_POLL_S = 0.1
_OUTPUT = 1


def show_log(store: BuildStore, data_folder: str, build_id: str, *, follow: bool) -> int:
    """Write the log to standard output.

    Args:
        store: knows the build, and whether it has ended.
        data_folder: where logs are.
        build_id: id or unique beginning of one.
        follow: go on until the build has ended.

    Returns:
        The exit code.

    Raises:
        NotFound: no such build, or it has no log (``logging: NONE``).
        Conflict: several builds begin so.
    """
    document = store.get(build_id)
    full_id = document["id"]
    reader = LogFileReader(log_folder(data_folder, full_id))
    ended = document["status"] in FINAL_STATUSES
    if ended and not reader.size():
        raise NotFound(
            f"build {full_id} has no log", hint="logging: NONE in its options keeps none"
        )
    show = log_shower()
    offset = _copy(reader, 0, show)
    while follow and not ended:
        _pause(_POLL_S)
        # The status first: what was written before the end is then read after it.
        ended = store.get(full_id)["status"] in FINAL_STATUSES
        offset = _copy(reader, offset, show)
    return EXIT_SUCCESS


def _copy(reader: LogFileReader, offset: int, show: Callable[[bytes], None]) -> int:
    while lines := _whole_lines(reader.read(offset)):
        show(lines)
        offset += len(lines)
    return offset


def _whole_lines(block: bytes) -> bytes:
    # A line longer than a block is shown in pieces.
    return block[: block.rfind(b"\n") + 1] or block


def log_shower() -> Callable[[bytes], None]:
    """What writes pieces of a log to standard output, coloured where it is a terminal."""
    is_terminal = os.isatty(_OUTPUT)
    look = terminal(output_is_terminal=is_terminal, encoding=sys.stdout.encoding or "ascii")

    def show(lines: bytes) -> None:
        if is_terminal:
            lines = without_controls(lines)
        write_all(_OUTPUT, coloured(lines) if look.colour else lines)

    return show


def _pause(duration_s: float) -> None:
    import time

    time.sleep(duration_s)
