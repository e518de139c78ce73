"""Showing a log while it grows."""

import os
import threading
from datetime import UTC, datetime

from buildrunner.engine.log.pipeline import LogChunk, TeeSink
from buildrunner.logs.console.console import LogPrinter
from buildrunner.logs.console.outputs import PipeScreen
from buildrunner.logs.files.log_file import LogFileSink

NOW = datetime(2024, 5, 31, tzinfo=UTC)


class RecordingScreen:
    def __init__(self):
        self.shown = b""
        self.pieces = []
        self.refreshed = threading.Event()
        self.closed = False

    def show(self, lines):
        self.pieces.append(lines)
        self.shown += lines

    def refresh(self):
        self.refreshed.set()

    def close(self):
        self.closed = True


def test_everything_is_shown_in_order_and_in_whole_lines(tmp_path):
    screen = RecordingScreen()
    log = LogFileSink(str(tmp_path))
    printer = LogPrinter(str(tmp_path), screen, live=False)
    sink = TeeSink(log, printer)
    expected = b""
    for number in range(2000):
        data = b"line %d of some length\n" % number * 20
        sink.write(LogChunk(data, 0, NOW))
        expected += data
    printer.close()
    log.close()
    assert screen.shown == expected
    assert all(piece.endswith(b"\n") for piece in screen.pieces)
    assert screen.closed


def test_a_live_screen_is_refreshed_though_nothing_is_written(tmp_path):
    screen = RecordingScreen()
    log = LogFileSink(str(tmp_path))
    printer = LogPrinter(str(tmp_path), screen, live=True)
    for _ in range(2):
        assert screen.refreshed.wait(60)
        screen.refreshed.clear()
    printer.close()
    log.close()


def test_an_output_that_takes_nothing_holds_up_neither_writer_nor_end(tmp_path):
    read, write = os.pipe()  # nobody reads: it takes 64 KiB, then blocks
    log = LogFileSink(str(tmp_path))
    printer = LogPrinter(str(tmp_path), PipeScreen(write), live=False)
    sink = TeeSink(log, printer)
    for _ in range(100):
        sink.write(LogChunk(b"x" * 9999 + b"\n", 0, NOW))
    assert not printer.drain(timeout_s=0.1)
    log.close()
    assert (tmp_path / "log.txt").stat().st_size == 1_000_000
    os.close(read)  # releases the printer's thread
    printer.close()
    os.close(write)


def test_an_output_that_went_away_is_forgotten(tmp_path):
    read, write = os.pipe()
    os.close(read)
    log = LogFileSink(str(tmp_path))
    printer = LogPrinter(str(tmp_path), PipeScreen(write), live=False)
    sink = TeeSink(log, printer)
    for _ in range(10):
        sink.write(LogChunk(b"line\n", 0, NOW))
    printer.close()
    log.close()
    os.close(write)
    assert (tmp_path / "log.txt").stat().st_size == 50
