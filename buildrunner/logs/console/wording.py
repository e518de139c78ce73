"""Texts of numbers, times and sizes for users, and colours."""

from __future__ import annotations

import errno

import msgspec

RESET = "\x1b[0m"
BOLD = "1"
DIM = "2"
RED = "31"
GREEN = "32"
YELLOW = "33"
BLUE = "34"
MAGENTA = "35"
CYAN = "36"

STATUS_COLOURS = {
    "SUCCESS": GREEN,
    "FAILURE": RED,
    "INTERNAL_ERROR": RED,
    "TIMEOUT": RED,
    "EXPIRED": RED,
    "CANCELLED": YELLOW,
    "WORKING": CYAN,
    "PULLING": BLUE,
    "QUEUED": DIM,
}


class Look(msgspec.Struct, frozen=True):
    """The capabilities of an output.

    Attributes:
        colour: write colours.
        live: a status line may be shown at the bottom of the terminal.
        unicode: symbols beyond ASCII can be shown.
    """

    colour: bool = False
    live: bool = False
    unicode: bool = True


def painted(text: str, code: str, *, colour: bool) -> str:
    """Return ``text`` in the SGR ``code`` if colours are on."""
    return f"\x1b[{code}m{text}{RESET}" if colour and code else text


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped, so that it can't control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(text: str, most: int) -> str:
    """Return ``text`` on one line, cut in its middle to ``most`` characters, safe to print."""
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    if len(line) <= most:
        return line
    begin = (most - 3) // 2
    return f"{line[:begin]}...{line[len(line) - (most - 3 - begin) :]}"


def seconds(duration_s: float) -> str:
    """Format a duration: ``0.3 s``, ``45.1 s``, ``2m05s``, ``1h02m03s``."""
    if duration_s < 60:
        return f"{max(duration_s, 0):.1f} s"
    whole = int(duration_s)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m{whole % 60:02}s"


def clock(duration_s: float) -> str:
    """Format a running time: ``0:07``, ``12:34``, ``1:02:03``."""
    whole = max(int(duration_s), 0)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def size(count_bytes: int) -> str:
    """Format a size: ``512 B``, ``5.1 KiB``, ``27.4 MiB``."""
    amount = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def count(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 layer``, ``3 layers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_NO_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EROFS}
)


def unwritable_hint(error: Exception) -> str:
    """Return advice for a file of the data folder that can't be written."""
    if getattr(error, "errno", 0) in _NO_PLACE:
        return "point XDG_DATA_HOME to a folder that this user may write to"
    return "free some space, or point XDG_DATA_HOME to another disk"
