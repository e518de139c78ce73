"""The log on disk: what goes in comes out, by byte and by line."""

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.errors import StoreError
from buildrunner.logs.log_file import INDEX_NAME, LOG_NAME, LogFileReader, LogFileSink
from buildrunner.logs.sink import LogChunk

START = datetime(2024, 5, 31, 12, tzinfo=UTC)


def chunk(data, step=None, after_s=0):
    return LogChunk(data, step, START + timedelta(seconds=after_s))


def written(folder, *chunks):
    sink = LogFileSink(str(folder))
    for one in chunks:
        sink.write(one)
    sink.close()
    return LogFileReader(str(folder))


def test_lines_know_their_number_offset_time_and_step(tmp_path):
    reader = written(
        tmp_path, chunk(b"FETCHSOURCE\n"), chunk(b"one\ntwo\n", 0, 1), chunk(b"three\n", 3, 2)
    )
    lines = list(reader.lines())
    assert [line.text for line in lines] == [b"FETCHSOURCE", b"one", b"two", b"three"]
    assert [line.number for line in lines] == [0, 1, 2, 3]
    assert [line.offset for line in lines] == [0, 12, 16, 20]
    assert [line.step for line in lines] == [None, 0, 0, 3]
    assert [line.at - START for line in lines] == [timedelta(seconds=s) for s in (0, 1, 1, 2)]


def test_lines_can_be_read_from_any_number(tmp_path):
    reader = written(tmp_path, *(chunk(b"a%d\nb%d\nc%d\n" % (n, n, n), n) for n in range(50)))
    assert [line.text for line in reader.lines(74, 3)] == [b"c24", b"a25", b"b25"]
    assert [line.number for line in reader.lines(149)] == [149]
    assert list(reader.lines(150)) == []
    assert list(reader.lines(0, 0)) == []


def test_bytes_are_kept_as_the_step_wrote_them(tmp_path):
    data = b"10%\r20%\r100%\n\xff\xfe\x00\n\n"
    reader = written(tmp_path, chunk(data, 0))
    assert reader.read() == data
    assert [line.text for line in reader.lines()] == [b"10%\r20%\r100%", b"\xff\xfe\x00", b""]


def test_a_range_of_bytes_can_be_read(tmp_path):
    reader = written(tmp_path, chunk(b"0123456789\n"))
    assert reader.read(3, 4) == b"3456"
    assert reader.read(11) == b""
    assert reader.size() == 11


def test_a_log_that_is_not_there_is_empty(tmp_path):
    reader = LogFileReader(str(tmp_path / "nothing"))
    assert (reader.size(), reader.read(), list(reader.lines())) == (0, b"", [])


def test_a_log_can_be_gone_on_with(tmp_path):
    written(tmp_path, chunk(b"one\ntwo\n", 0))
    reader = written(tmp_path, chunk(b"three\n", 1))
    assert [(line.number, line.text) for line in reader.lines(1)] == [(1, b"two"), (2, b"three")]


def test_a_million_lines_cost_no_more_index_than_their_chunks(tmp_path):
    sink = LogFileSink(str(tmp_path))
    data = b"Step #0: fifty bytes of text are in this line, no more\n" * 1000
    for _ in range(1000):
        sink.write(chunk(data, 0))
    sink.close()
    assert (tmp_path / INDEX_NAME).stat().st_size < 50_000
    (line,) = LogFileReader(str(tmp_path)).lines(999_999, 1)
    assert line.number == 999_999


def test_what_a_crash_tore_off_is_read_as_far_as_it_goes(tmp_path):
    written(tmp_path, chunk(b"one\n", 0), chunk(b"two\n", 1))
    with open(tmp_path / INDEX_NAME, "r+b") as index:
        index.truncate((tmp_path / INDEX_NAME).stat().st_size - 5)
    with open(tmp_path / LOG_NAME, "ab") as log:
        log.write(b"half a li")
    texts = [line.text for line in LogFileReader(str(tmp_path)).lines()]
    assert texts == [b"one", b"two", b"half a li"]


def test_only_the_user_can_read_it(tmp_path):
    written(tmp_path / "log", chunk(b"x\n"))
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0
    assert (tmp_path / "log" / LOG_NAME).stat().st_mode & 0o077 == 0


def test_a_full_disk_is_a_sentence_not_a_traceback():
    # Linux's own full device: every write to it fails with "no space left".
    code = (
        "import os; from buildrunner.logs import log_file as f\n"
        "from buildrunner.errors import StoreError\n"
        "f._open_append = lambda path: os.open('/dev/full', os.O_WRONLY)\n"
        "from buildrunner.logs.sink import LogChunk; from datetime import datetime, UTC\n"
        "import tempfile; sink = f.LogFileSink(tempfile.mkdtemp())\n"
        "try: sink.write(LogChunk(b'x\\n', None, datetime.now(UTC)))\n"
        "except StoreError as error: print(error, '|', error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "can't be written: No space left on device" in done.stdout
    assert "free some space" in done.stdout


def test_a_folder_that_can_not_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written: Not a directory"):
        LogFileSink(str(tmp_path / "file" / "log"))


def test_it_can_be_read_while_it_is_written(tmp_path):
    sink = LogFileSink(str(tmp_path))
    reader = LogFileReader(str(tmp_path))
    done = threading.Event()
    seen = []

    def read():
        while not done.is_set():
            seen.append(len(list(reader.lines())))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(300):
        sink.write(chunk(b"line %d\n" % number, 0))
    done.set()
    thread.join()
    sink.close()
    assert seen == sorted(seen)
    assert len(list(reader.lines())) == 300


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), min_size=1),
            st.one_of(st.none(), st.integers(0, 300)),
        ),
        max_size=10,
    ),
    st.integers(0, 30),
)
def test_whatever_is_written_is_read_again(tmp_path_factory, parts, start):
    folder = tmp_path_factory.mktemp("log")
    expected = [(line, step) for lines, step in parts for line in lines]
    chunks = [chunk(b"".join(line + b"\n" for line in lines), step) for lines, step in parts]
    reader = written(folder, *chunks)
    assert [(line.text, line.step) for line in reader.lines(start)] == expected[start:]


def test_it_tells_how_much_of_each_steps_output_is_stored(tmp_path):
    reader = written(
        tmp_path,
        LogChunk(b"Step #0: one\n", 0, START, output=4),
        LogChunk(b"Step #0: bad\n", 0, START, output=4, error=True),
        LogChunk(b"Finished Step #0\n", None, START),
        LogChunk(b"Step #0: two\n", 0, START, output=4),
    )
    assert reader.stored_output() == {(0, False): 8, (0, True): 4}
