"""The three standard streams, whatever state the caller left them in."""

from __future__ import annotations

import io
import os
import sys


class OutputLost(OSError):
    """Standard output takes no more, though nobody closed it (a full disk behind ``>``)."""


class _Output(io.TextIOWrapper):
    """Tells a failure of the output from every other `OSError` of a command."""

    def write(self, text: str, /) -> int:
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


def prepare_streams() -> None:
    """Open what is closed (``>&-``) to nowhere, and make a broken output tell that it is.

    The log or the store would get a closed stream's descriptor else, and our output be written
    into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # An open takes the lowest free number, which is this one.
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    old = sys.stdout
    if isinstance(old, io.TextIOWrapper):
        encoding, errors, lines = old.encoding, old.errors, old.line_buffering
        sys.stdout = _Output(old.detach(), encoding, errors, line_buffering=lines)


def drop_output() -> None:
    """Let the last flush of what nobody takes go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
