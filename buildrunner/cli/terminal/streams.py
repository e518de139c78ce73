"""The three standard streams, even if the parent process closed or broke them."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO


class OutputLost(OSError):
    """Standard output can't be written, although it is open (a full disk behind ``>``)."""


class _Output(io.TextIOWrapper):
    """Standard output: on a terminal, text of others can't control it.

    It also distinguishes a failure of the output from every other `OSError` of a command.
    """

    def write(self, text: str, /) -> int:
        if not _is_plain(text) and self.isatty():
            text = escaped(text)
        return self.write_styled(text)

    def write_styled(self, text: str) -> int:
        """Write text with control sequences of our own; see `write_styled` of the module."""
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(*error.args) from error

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(*error.args) from error


def _is_plain(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def escaped(text: str) -> str:
    """Return ``text`` with control characters and the like escaped as in JSON, by their codes.

    JSON stays valid, and its values are the same.
    """
    return "".join(char if _is_plain(char) else _code(char) for char in text)


def _code(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def write_styled(out: TextIO, text: str) -> None:
    """Write text with colours; every part from somebody else was made printable before."""
    if isinstance(out, _Output):
        out.write_styled(text)
    else:
        out.write(text)


def prepare_streams() -> None:
    """Redirect closed streams (``>&-``) to /dev/null, and make a broken output raise `OutputLost`.

    Otherwise the log or the store could get a closed stream's descriptor, and our output would
    be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # An open uses the lowest free descriptor, which is this one.
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    old = sys.stdout
    if isinstance(old, io.TextIOWrapper):
        encoding, errors, lines = old.encoding, old.errors, old.line_buffering
        sys.stdout = _Output(old.detach(), encoding, errors, line_buffering=lines)


def drop_output() -> None:
    """Send the last flush to /dev/null, since nobody reads the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNAL_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM (buildrunner builds cancel, or another program)",
    signal.SIGHUP: "SIGHUP (its terminal was closed)",
}
_STOP = b"\0"  # no signal has this number


class Interruption:
    """While entered, signals that would end the process cancel the build instead.

    Only the first signal counts: the engine kills and removes everything within two seconds, and a
    second Ctrl-C must not interrupt that.

    A thread of its own reads the signals from a socket to which the interpreter writes them at
    once. Python runs a signal handler only when its main thread next executes Python code, and a
    signal that arrives while that thread is about to wait for a lock leaves it waiting.

    Args:
        cancel: requests the cancellation; called from another thread.
        notice: shows a message to the user; called from another thread, too.
    """

    def __init__(self, cancel: Callable[[], None], notice: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._notice = notice
        self._before: dict[int, Any] = {}
        self.caught = False
        self.by = ""
        """The first signal, for people; set before ``cancel`` is called."""

    def __enter__(self) -> Interruption:
        self._received, self._sent = socket.socketpair()
        self._sent.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        self._reader = threading.Thread(target=self._read, name="signals", daemon=True)
        self._reader.start()
        for number in _SIGNALS:
            # A signal that the parent ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _leave_to_reader)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._sent.send(_STOP)
        self._reader.join()
        self._sent.close()
        self._received.close()

    def _read(self) -> None:
        while True:
            for number in self._received.recv(64):
                if number == _STOP[0]:
                    return
                if number in self._before:
                    self._on_signal(signal.Signals(number))

    def _on_signal(self, received: signal.Signals) -> None:
        if self.caught:
            self._notice("Already cancelling: removing containers, volumes and networks ...")
            return
        self.caught = True
        self.by = _SIGNAL_NAMES[received]
        self._cancel()
        self._notice("Cancelling ...")


def _leave_to_reader(_number: int, _frame: object) -> None:
    """Handle a signal in place of the default, which would end the process."""
