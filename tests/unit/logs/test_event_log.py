"""Events on disk: numbered without a gap, whatever crashes."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from buildrunner.engine.events import BuildStarted, StepFinished, StepStarted, TransferMoved
from buildrunner.errors import StoreError
from buildrunner.logs.files.events import EVENTS_NAME, EventLog, EventLogReader

START = datetime(2024, 5, 31, 12, tzinfo=UTC)


def test_events_are_read_as_they_were_written(tmp_path):
    events = [
        BuildStarted(at=START, build_id="b1", steps=1),
        StepStarted(at=START, step=0),
        StepFinished(at=START, step=0, status="SUCCESS", output=b"\x00\xff", exit_code=0),
    ]
    log = EventLog(str(tmp_path))
    for event in events:
        log.on_event(event)
    log.close()
    found = EventLogReader(str(tmp_path)).read()
    assert [one.event() for one in found] == events
    assert [one.sequence for one in found] == [1, 2, 3]


def test_reading_goes_on_where_it_stopped(tmp_path):
    log = EventLog(str(tmp_path))
    reader = EventLogReader(str(tmp_path))
    for step in range(10):
        log.on_event(StepStarted(at=START, step=step))
    first = reader.read(limit=4)
    assert [one.sequence for one in first] == [1, 2, 3, 4]
    assert [one.sequence for one in reader.read(first[-1].end)] == [5, 6, 7, 8, 9, 10]
    assert [one.sequence for one in reader.read(after=8)] == [9, 10]
    assert reader.read(reader.read()[-1].end) == []
    log.close()


def test_a_log_without_events_has_none(tmp_path):
    assert EventLogReader(str(tmp_path / "nothing")).read() == []


def test_a_torn_event_is_not_read_and_dropped_by_the_next_writer(tmp_path):
    log = EventLog(str(tmp_path))
    log.on_event(StepStarted(at=START, step=0))
    log.close()
    with open(tmp_path / EVENTS_NAME, "ab") as file:
        file.write(b'{"sequence":2,"event":"stepSta')
    reader = EventLogReader(str(tmp_path))
    assert len(reader.read()) == 1
    log = EventLog(str(tmp_path))
    log.on_event(StepStarted(at=START, step=1))
    log.close()
    assert [(one.sequence, one.event().step) for one in reader.read()] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("torn", [b"", b'{"sequence":', b"x" * (1 << 19)])
@pytest.mark.parametrize("sizes", [[], [10], [300_000], [10, 700_000], [262_144, 1, 5]])
def test_the_next_writer_goes_on_behind_the_last_whole_event(tmp_path, sizes, torn):
    log = EventLog(str(tmp_path))
    for size in sizes:
        log.on_event(StepFinished(at=START, step=0, status="SUCCESS", output=bytes(size)))
    whole = log.size
    log.close()
    with open(tmp_path / EVENTS_NAME, "ab") as file:
        file.write(torn)
    log = EventLog(str(tmp_path))
    assert log.size == whole == (tmp_path / EVENTS_NAME).stat().st_size
    log.on_event(StepStarted(at=START, step=1))
    log.close()
    found = EventLogReader(str(tmp_path)).read()
    assert [one.sequence for one in found] == list(range(1, len(sizes) + 2))


def test_damaged_events_are_reported(tmp_path):
    (tmp_path / EVENTS_NAME).write_bytes(b"\0" * 9 + b"\n")
    with pytest.raises(StoreError, match="are damaged"):
        EventLog(str(tmp_path))


def test_of_a_transfer_two_events_a_second_are_kept_and_its_end(tmp_path):
    log = EventLog(str(tmp_path))
    for tenth in range(11):
        log.on_event(
            TransferMoved(
                at=START + timedelta(seconds=tenth / 10),
                direction="pull",
                image="busybox",
                current_bytes=tenth * 10,
                total_bytes=100,
            )
        )
    log.close()
    events = [one.event() for one in EventLogReader(str(tmp_path)).read()]
    assert [event.current_bytes for event in events] == [0, 50, 100]


def test_an_event_that_finds_no_room_is_not_there_at_all(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from datetime import datetime, UTC\n"
        "from buildrunner.engine.events import StepStarted, Warned\n"
        "from buildrunner.errors import StoreError\n"
        "from buildrunner.logs.files.events import EventLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "log = EventLog(sys.argv[1])\n"
        "log.on_event(StepStarted(at=datetime.now(UTC), step=0))\n"
        "try: log.on_event(Warned(at=datetime.now(UTC), text='x' * 400))\n"
        "except StoreError as error: print(error, '|', error.hint)\n"
        "log.on_event(StepStarted(at=datetime.now(UTC), step=1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "can't be written: File too large" in done.stdout
    found = EventLogReader(str(tmp_path)).read()
    assert [(one.sequence, one.event().step) for one in found] == [(1, 0), (2, 1)]
