"""A copy of a build's log and events grows to the same bytes, whatever is sent twice or lost."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from buildrunner.engine.events import BuildStarted
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import StoreError
from buildrunner.logs.files.copies import (
    OffsetMismatch,
    append_to_events,
    append_to_log,
    copied_bytes,
    events_piece,
    log_piece,
)
from buildrunner.logs.files.events import EVENTS_NAME, EventLog
from buildrunner.logs.files.log_file import INDEX_NAME, LOG_NAME, LogFileSink

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log folder of a build that wrote 200 chunks and 50 events."""
    folder = tmp_path / "log"
    sink, events = LogFileSink(str(folder)), EventLog(str(folder))
    for number in range(200):
        data = f"line {number}\n".encode() * (number % 7 + 1)
        sink.write(LogChunk(data, number % 3, NOW, len(data), error=number % 2 == 0))
    for _ in range(50):
        events.on_event(BuildStarted(at=NOW, build_id="b", steps=1))
    sink.close()
    events.close()
    return folder


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (LOG_NAME, INDEX_NAME, EVENTS_NAME)]


@pytest.mark.parametrize("seed", range(5))
def test_the_copy_is_the_same_whatever_is_sent_twice_or_lost(
    log: Path, tmp_path: Path, seed: int
) -> None:
    chance, copy = random.Random(seed), str(tmp_path / "copy")
    for piece_of, append, at in (
        (log_piece, append_to_log, 0),
        (events_piece, append_to_events, 0),
    ):
        offset = at
        while (piece := piece_of(str(log), offset, chance.randrange(1, 900)))[0]:
            answered = append(copy, offset, piece[0])
            assert answered == piece[1]
            if chance.random() < 0.3:  # the answer is lost, and the piece sent again
                with pytest.raises(OffsetMismatch) as refused:
                    append(copy, offset, piece[0])
                assert refused.value.size == answered
            offset = answered
    assert files(Path(copy)) == files(log)
    assert copied_bytes(copy) == (
        (log / LOG_NAME).stat().st_size,
        (log / EVENTS_NAME).stat().st_size,
    )


def test_a_piece_out_of_turn_changes_nothing(log: Path, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy")
    first, end = log_piece(str(log), 0, 100)
    later, _ = log_piece(str(log), end, 100)
    with pytest.raises(OffsetMismatch) as refused:
        append_to_log(copy, end, later)
    assert refused.value.size == 0
    append_to_log(copy, 0, first)
    assert copied_bytes(copy)[0] == end


def test_a_log_that_ends_has_no_further_piece(log: Path, tmp_path: Path) -> None:
    size = (log / LOG_NAME).stat().st_size
    assert log_piece(str(log), size) == (b"", size)
    assert log_piece(str(tmp_path / "nothing"), 0) == (b"", 0)
    assert events_piece(str(tmp_path / "nothing"), 0) == (b"", 0)


def test_half_an_event_waits_for_its_other_half(tmp_path: Path) -> None:
    (tmp_path / EVENTS_NAME).write_bytes(b'{"sequence":1}\n{"sequ')
    assert events_piece(str(tmp_path), 0) == (b'{"sequence":1}\n', 15)
    assert events_piece(str(tmp_path), 15) == (b"", 15)


@pytest.mark.parametrize("damage", ["", "short", "text", "records", "order"])
def test_what_is_no_piece_is_refused(log: Path, tmp_path: Path, damage: str) -> None:
    piece, _ = log_piece(str(log), 0, 100)
    broken = {
        "": b"",
        "short": piece[:30],
        "text": piece[:-1],
        "records": b"\xff\xff\xff\x7f" + piece[4:],
        "order": piece[:4] + piece[44:84] + piece[4:44] + piece[84:],
    }[damage]
    copy = str(tmp_path / "copy")
    with pytest.raises(StoreError, match=r"no piece|continue"):
        append_to_log(copy, 0, broken)
    assert copied_bytes(copy) == (0, 0)


@pytest.mark.parametrize("lines", [b"", b"half", b"[]\n", b'{"sequence":1,"event":"none"}\n'])
def test_what_is_no_event_is_refused(tmp_path: Path, lines: bytes) -> None:
    with pytest.raises(StoreError, match=r"no event|half a line"):
        append_to_events(str(tmp_path), 0, lines)
