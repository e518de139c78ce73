"""Where ``buildrunner secrets set`` gets a value: a file, the input, or a person's fingers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from buildrunner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMIT = 65536  # Source: size limit of a secret version's payload in Secret Manager
_MASKED_FROM = 4  # characters; see buildrunner.engine.masking


def read_value(name: str, path: str | None) -> str:
    """The value, byte for byte; a prompt adds no newline.

    Args:
        name: the secret, for the prompt.
        path: of a file; None or ``-`` takes the input.

    Raises:
        UsageError: it can't be read, is empty or too large, or can't be an environment variable.
    """
    if path is not None and path != "-":
        value = _read(path)
    elif os.isatty(0):
        value = _asked(name)
    else:
        value = sys.stdin.buffer.read(_LIMIT + 1)
    if not value:
        raise UsageError("the value is empty: nothing was set")
    if len(value) > _LIMIT:
        raise UsageError(f"the value is larger than {_LIMIT} bytes")
    if b"\0" in value:
        raise UsageError("the value holds a zero byte, which no environment variable can")
    try:
        return value.decode()
    except UnicodeDecodeError:  # it quotes the value
        raise UsageError(
            "the value is not UTF-8 text, and a secret becomes an environment variable",
            hint="encode it, e.g. with base64, and decode it in the step",
        ) from None


def notes_on(value: str) -> Iterator[str]:
    """What a person should know about a value."""
    if len(value.strip("\r\n")) < _MASKED_FROM:
        yield f"a value shorter than {_MASKED_FROM} characters can't be hidden in the log of builds"
    if value.endswith("\n") and value.count("\n") == 1:
        yield "the value ends with a newline, which is part of it; printf %s gives none"


def _asked(name: str) -> bytes:
    from getpass import getpass

    try:
        return getpass(f"Value of {name} (not shown): ", sys.stderr).encode("utf-8", "strict")
    except EOFError:
        return b""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
