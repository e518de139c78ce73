"""What reaches a pipe and what reaches a terminal."""

import fcntl
import os
import pty
import re
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.logs.console.outputs import (
    PipeScreen,
    TerminalScreen,
    coloured,
    without_colours,
    without_controls,
    write_all,
)
from buildrunner.logs.console.wording import Look

LIVE = Look(colour=True, live=True, unicode=True)


class Pseudoterminal:
    def __init__(self):
        self.master, self.slave = pty.openpty()
        self.resize(80)
        attributes = termios.tcgetattr(self.slave)
        attributes[1] &= ~termios.OPOST  # newlines arrive as they were written
        termios.tcsetattr(self.slave, termios.TCSANOW, attributes)

    def resize(self, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def columns(self):
        return os.get_terminal_size(self.slave).columns

    def received(self):
        os.set_blocking(self.master, False)
        pieces = []
        try:
            while piece := os.read(self.master, 65536):
                pieces.append(piece)
        except BlockingIOError:
            pass
        return b"".join(pieces)

    def close(self):
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal():
    made = Pseudoterminal()
    yield made
    made.close()


def shown(raw, columns):
    """Rows of a terminal after ``raw``: knows \\r, \\n, ESC[nA, ESC[J and wrapping."""
    rows, row, column = [[]], 0, 0
    position = 0
    while position < len(raw):
        if raw[position : position + 2] == b"\x1b[":
            end = position + 2
            while not raw[end : end + 1].isalpha():
                end += 1
            number, letter = raw[position + 2 : end], raw[end : end + 1]
            if letter == b"A":
                row -= int(number or 1)
            elif letter == b"J":
                rows[row] = rows[row][:column]
                del rows[row + 1 :]
            position = end + 1
            continue
        char = raw[position : position + 1]
        position += 1
        if char == b"\r":
            column = 0
        elif char == b"\n":
            row, column = row + 1, 0
        else:
            if column == columns:
                row, column = row + 1, 0
            while len(rows) <= row:
                rows.append([])
            line = rows[row]
            line.extend([b" "] * (column + 1 - len(line)))
            line[column] = char
            column += 1
        while len(rows) <= row:
            rows.append([])
    return [b"".join(line).decode() for line in rows]


def test_a_pipe_gets_the_bytes_as_they_are():
    read, write = os.pipe()
    PipeScreen(write).show(b"Step #0: \x1b[31mred\xff\n")
    assert os.read(read, 100) == b"Step #0: \x1b[31mred\xff\n"
    os.close(read)
    os.close(write)


def screen_on(terminal, statuses):
    return TerminalScreen(
        terminal.slave,
        terminal.slave,
        LIVE,
        lambda _now, width: statuses[0][:width],
        terminal.columns,
    )


def test_lines_and_status_never_mix(terminal):
    statuses = ["status one"]
    screen = screen_on(terminal, statuses)
    screen.refresh()
    screen.show(b"first\n")
    statuses[0] = "status two is longer"
    screen.refresh()
    screen.show(b"second\nthird\n")
    assert shown(terminal.received(), 80) == ["first", "second", "third", "status two is longer"]


def test_the_status_goes_away_at_the_end(terminal):
    screen = screen_on(terminal, ["status"])
    screen.show(b"line\n")
    screen.close()
    assert shown(terminal.received(), 80) == ["line", ""]


def test_a_status_that_a_smaller_window_wrapped_is_erased_whole(terminal):
    statuses = ["s" * 70]
    screen = screen_on(terminal, statuses)
    screen.show(b"line\n")
    terminal.received()
    terminal.resize(30)  # the terminal wraps what stands there to three rows
    screen.show(b"next\n")
    erasure = terminal.received().partition(b"next")[0]
    assert erasure == b"\r\x1b[2A\x1b[J"


def test_an_unchanged_status_is_not_drawn_again(terminal):
    screen = screen_on(terminal, ["status"])
    screen.refresh()
    terminal.received()
    screen.refresh()
    assert terminal.received() == b""


def test_the_status_can_stand_on_stderr_while_lines_go_into_a_pipe(terminal):
    read, write = os.pipe()
    look = Look(colour=False, live=True)
    screen = TerminalScreen(write, terminal.slave, look, lambda *_: "status", terminal.columns)
    screen.show(b"line\n")
    screen.refresh()
    assert os.read(read, 100) == b"line\n"
    assert shown(terminal.received(), 80) == ["status"]
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'Step #0 - "a": text\n', b'\x1b[36mStep #0 - "a":\x1b[0m text\n'),
        (b"Step #1: text\n", b"\x1b[32mStep #1:\x1b[0m text\n"),
        (b"Starting Step #0\n", b"\x1b[2mStarting Step #0\x1b[0m\n"),
        (b"BUILD\n", b"\x1b[1mBUILD\x1b[0m\n"),
        (b"ERROR: it broke\n", b"\x1b[31mERROR: it broke\x1b[0m\n"),
        (b"BUILDING\n", b"BUILDING\n"),
        (b"a Step #0: b\n", b"a Step #0: b\n"),
        (b"\x1b[32mgreen\nplain\n", b"\x1b[32mgreen\x1b[0m\nplain\n"),
    ],
)
def test_colours(line, expected):
    assert coloured(line) == expected


@pytest.mark.parametrize(
    ("steered", "harmless"),
    [
        (b"\x1b[31mred\x1b[0m\n", b"\x1b[31mred\x1b[0m\n"),
        (b"\x1b[2J\x1b[Hgone\n", b"gone\n"),
        (b"\x1b[1A\x1b[2Kover\n", b"over\n"),
        (b"\x1b]0;title\x07text\n", b"text\n"),
        (b"\x1b]52;c;aGk=\x1b\\text\n", b"text\n"),
        (b"\x1b]0;no end\nnext\n", b"\nnext\n"),
        (b"\x1bPq#0\x1b\\text\n", b"text\n"),
        (b"\x1bc\x1b(0reset\n", b"reset\n"),
        (b"bell\x07 back\x08 nul\x00\n", b"bell back\x08 nul\n"),
        (b"tab\tand\rreturn\n", b"tab\tand\rreturn\n"),
        (b"\x1b[\x002Jhidden\n", b"hidden\n"),
        (b"\x1b[\x7f2Jhidden\n", b"hidden\n"),
        (b"\x1b[\x1b]0;title\x072Jtext\n", b"2Jtext\n"),
        (b"\x1b[\n2Jnext line\n", b"\n2Jnext line\n"),
        (b"\xc2\x9b2Jhidden\n", b"hidden\n"),
        (b"\xc2\x9d52;c;aGk=\xc2\x9ctext\n", b"text\n"),
        (b"\xc2\x00\x9b2Jhidden\n", b"hidden\n"),
        ("ünï ✔\n".encode(), "ünï ✔\n".encode()),
    ],
)
def test_a_step_can_colour_but_not_steer_the_terminal(steered, harmless):
    assert without_controls(steered) == harmless


@given(st.binary())
def test_no_bytes_leave_a_steering_sequence(data):
    left = without_controls(data)
    assert not [b for b in (b"\x1b]", b"\x1bP", b"\x1bc", b"\x1b[2J", b"\x1b[H") if b in left]
    assert left.count(b"\n") == data.count(b"\n")


_PIECES = st.sampled_from(
    [
        b"\x1b",
        b"[",
        b"]",
        b"\x00",
        b"\x7f",
        b"\xc2",
        b"\x9b",
        b"\x9d",
        b"2J",
        b"1m",
        b";",
        b"\x07",
        b"\n",
    ]
)


@given(st.lists(_PIECES, max_size=40).map(b"".join))
def test_only_colours_are_left_of_control_characters_and_a_second_pass_changes_nothing(data):
    left = without_controls(data)
    rest = without_colours(left)
    assert b"\x1b" not in rest
    assert not re.search(rb"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]", rest)
    assert without_controls(left) == left


def test_a_step_can_write_over_its_own_line():
    """As in Cloud Build's log: progress bars do so. A line can thus look like one of ours."""
    line = b"Step #0: 10%\rStep #0: 20%\b\b\b\n"
    assert without_controls(line) == line


def test_the_filter_takes_a_time_that_grows_as_the_length_of_the_text():
    left = without_controls(b"\xc2" * 100_000 + b"\x9b" * 100_000)
    assert b"\xc2\x9b" not in left
    assert b"\x1b" not in left


def test_a_pipe_that_someone_made_nonblocking_gets_everything():
    read, write = os.pipe()
    os.set_blocking(write, False)
    data = os.urandom(1 << 20)
    received = bytearray()

    def drain():
        while len(received) < len(data):
            received.extend(os.read(read, 65536))

    import threading

    thread = threading.Thread(target=drain)
    thread.start()
    write_all(write, data)
    thread.join()
    assert received == data
    os.close(read)
    os.close(write)
