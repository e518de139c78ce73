"""The log on disk: what goes in comes out, by byte and by line."""

import os
import random
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import StoreError
from buildrunner.logs.files.log_file import INDEX_NAME, LOG_NAME, LogFileSink
from buildrunner.logs.files.reader import LogFileReader

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


def test_lines_of_one_step_can_be_read(tmp_path):
    reader = written(
        tmp_path,
        chunk(b"BUILD\n"),
        chunk(b"a\nb\n", 0),
        chunk(b"x\nop", 1),
        chunk(b"en\n", 1),
        chunk(b"c\n", 0),
        chunk(b"DONE\n"),
    )

    def numbered(**wanted):
        return [(line.number, line.offset, line.text) for line in reader.lines(**wanted)]

    assert numbered(only_step=0) == [(1, 6, b"a"), (2, 8, b"b"), (5, 17, b"c")]
    assert numbered(only_step=1) == [(3, 10, b"x"), (4, 12, b"open")]
    assert numbered(only_step=-1) == [(0, 0, b"BUILD"), (6, 19, b"DONE")]
    assert numbered(start=2, count=1, only_step=0) == [(2, 8, b"b")]
    assert numbered(start=3, count=1, only_step=0) == [(5, 17, b"c")]
    assert numbered(only_step=7) == []


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


def test_what_a_crash_tore_off_is_not_shown(tmp_path):
    reader = written(tmp_path, chunk(b"one\n", 0), chunk(b"two\n", 1))
    with open(tmp_path / LOG_NAME, "ab") as log:
        log.write(b"half a li")
    assert reader.size() == 8
    assert reader.read() == b"one\ntwo\n"
    os.truncate(tmp_path / INDEX_NAME, (tmp_path / INDEX_NAME).stat().st_size - 5)
    assert [line.text for line in reader.lines()] == [b"one"]


def test_opened_again_it_takes_back_what_was_never_stored(tmp_path):
    written(tmp_path, chunk(b"one\n", 0), chunk(b"two\n", 1))
    with open(tmp_path / LOG_NAME, "ab") as log:
        log.write(b"half a li")
    with open(tmp_path / INDEX_NAME, "ab") as index:
        index.write(b"half a record")
    reader = written(tmp_path, chunk(b"three\n", 2))
    assert reader.read() == b"one\ntwo\nthree\n"
    assert [line.step for line in reader.lines()] == [0, 1, 2]


def test_records_whose_text_a_power_cut_took_are_taken_back(tmp_path):
    written(tmp_path, chunk(b"one\n", 0), chunk(b"two\n", 1), chunk(b"three\n", 1))
    os.truncate(tmp_path / LOG_NAME, 6)
    reader = written(tmp_path, chunk(b"four\n", 2))
    assert [line.text for line in reader.lines()] == [b"one", b"four"]


def test_text_whose_index_is_gone_is_kept(tmp_path):
    written(tmp_path, chunk(b"one\ntwo\n", 0))
    (tmp_path / INDEX_NAME).write_bytes(b"something else, long enough for a record of 40 bytes")
    reader = written(tmp_path, chunk(b"three\n", 2))
    assert [(line.number, line.text, line.step) for line in reader.lines()] == [
        (0, b"one", None),
        (1, b"two", None),
        (2, b"three", 2),
    ]


def test_a_line_that_came_in_pieces_is_one_line(tmp_path):
    reader = written(
        tmp_path, chunk(b"a\n.", 0), chunk(b".", 0, 1), chunk(b".\nb\n", 0, 2), chunk(b"open", 0, 3)
    )
    assert [(line.number, line.offset, line.text) for line in reader.lines()] == [
        (0, 0, b"a"),
        (1, 2, b"..."),
        (2, 6, b"b"),
        (3, 8, b"open"),
    ]
    assert [line.text for line in reader.lines(1, 1)] == [b"..."]
    assert [line.text for line in reader.lines(3)] == [b"open"]
    assert [reader.line_at(offset) for offset in (0, 1, 2, 4, 5, 6, 9)] == [0, 0, 1, 1, 1, 2, 3]


def test_a_line_of_many_megabytes_comes_in_pieces(tmp_path):
    reader = written(tmp_path, *(chunk(b"x" * 400_000, 0) for _ in range(10)), chunk(b"\nend\n", 0))
    lines = list(reader.lines())
    assert {line.number for line in lines[:-1]} == {0}
    assert b"".join(line.text for line in lines[:-1]) == b"x" * 4_000_000
    assert max(len(line.text) for line in lines) < 1_600_000
    assert (lines[-1].number, lines[-1].text) == (1, b"end")


def test_lines_can_be_read_from_a_moment_on(tmp_path):
    reader = written(tmp_path, *(chunk(b"l%d\n" % n, 0, n) for n in range(100)))
    since = START + timedelta(seconds=97)
    assert [line.text for line in reader.lines_since(since)] == [b"l97", b"l98", b"l99"]
    assert list(reader.lines_since(START + timedelta(seconds=100))) == []


WRITER = """
import sys
from datetime import UTC, datetime
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.engine.log.pipeline import LogChunk
folder = sys.argv[1]
sink = LogFileSink(folder)
number = LogFileReader(folder).line_count()
print("ready", flush=True)
sys.stdin.readline()
while True:
    count = 1 + number % 7
    numbers = range(number, number + count)
    text = b"".join(b"line %d %s\\n" % (n, b"x" * (n * 31 % 900)) for n in numbers)
    sink.write(LogChunk(text, number % 5, datetime.now(UTC), output=len(text)))
    number += count
"""


def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(tmp_path):
    pause = random.Random(7)
    reader = LogFileReader(str(tmp_path))
    seen = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert writer.stdin
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
        assert reader.size() == seen  # the repair took back nothing that a reader had seen
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        while reader.size() < seen + pause.randrange(1, 400_000):
            pass
        writer.kill()
        writer.communicate()
        seen = reader.size()
    expected = 0
    for line in reader.lines():
        assert line.number == expected
        assert line.text == b"line %d %s" % (expected, b"x" * (expected * 31 % 900))
        expected += 1
    assert expected == reader.line_count() > 100
    assert sum(reader.stored_output().values()) == reader.size() == seen


def test_a_log_has_one_writer_at_a_time(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout
    assert first.stdout.readline() == b"ready\n"
    with pytest.raises(StoreError, match="another process writes this log"):
        LogFileSink(str(tmp_path), wait_limit_s=0.05)
    threading.Timer(0.2, first.kill).start()
    LogFileSink(str(tmp_path)).close()
    first.communicate()


def test_only_the_user_can_read_it(tmp_path):
    written(tmp_path / "log", chunk(b"x\n"))
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0
    assert (tmp_path / "log" / LOG_NAME).stat().st_mode & 0o077 == 0


def test_a_full_disk_is_a_sentence_and_nothing_of_the_chunk_is_stored(tmp_path):
    # A limit of the kernel on files stands in for the disk: the write stops in the middle.
    code = (
        "import resource, signal, sys\n"
        "from datetime import datetime, UTC\n"
        "from buildrunner.errors import StoreError\n"
        "from buildrunner.logs.files.log_file import LogFileSink\n"
        "from buildrunner.engine.log.pipeline import LogChunk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "sink = LogFileSink(sys.argv[1])\n"
        "sink.write(LogChunk(b'x' * 99 + b'\\n', None, datetime.now(UTC)))\n"
        "try: sink.write(LogChunk(b'y' * 999 + b'\\n', None, datetime.now(UTC)))\n"
        "except StoreError as error: print(error, '|', error.hint)\n"
        "sink.write(LogChunk(b'z\\n', None, datetime.now(UTC)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "can't be written: File too large" in done.stdout
    assert "free some space" in done.stdout
    assert (tmp_path / LOG_NAME).read_bytes() == b"x" * 99 + b"\nz\n"
    assert [line.offset for line in LogFileReader(str(tmp_path)).lines()] == [0, 100]


def test_what_steps_write_leaves_room_on_the_disk_for_the_end_of_the_build(tmp_path):
    piece = b"x" * (1 << 20)
    sink = LogFileSink(str(tmp_path), reserve_bytes=1 << 62)
    sink.write(LogChunk(piece[1:], 0, START, output=len(piece) - 1))
    for _ in range(2):
        with pytest.raises(StoreError, match="No space left on device"):
            sink.write(LogChunk(b"y\n", 0, START, output=2))
    sink.write(LogChunk(b"\nERROR\n", None, START))
    sink.close()
    assert (tmp_path / LOG_NAME).read_bytes() == piece[1:] + b"\nERROR\n"


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
    assert list(reader.own_chunks()) == [b"Finished Step #0\n"]


def test_steps_can_not_make_a_log_larger_than_its_limit(tmp_path):
    sink = LogFileSink(str(tmp_path), limit_bytes=1 << 20)
    sink.write(LogChunk(b"x" * (1 << 20), 0, START, output=1 << 20))
    with pytest.raises(StoreError, match="larger than 1 MiB"):
        sink.write(LogChunk(b"y\n", 0, START, output=2))
    sink.write(LogChunk(b"the build's own line\n", None, START))
    sink.close()
