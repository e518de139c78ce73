"""The argument parser of every command: exact flag names, one-sentence errors with a suggestion.

`parse_map` and `parse_duration` read the values of flags in the formats of gcloud.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from buildrunner.errors import UsageError
from buildrunner.problem import nearest

_UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class CommandParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `UsageError` instead of an exit."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        self._width: int | None = 80
        super().__init__(allow_abbrev=False, **options)

    def format_help(self) -> str:
        """The help text, as wide as the terminal."""
        self._width = None
        return super().format_help()

    def _get_formatter(self) -> argparse.HelpFormatter:
        # argparse makes a formatter for each added flag, to check it. By default each one would
        # request the terminal's width, and import shutil for that (4 ms).
        return self.formatter_class(prog=self.prog, width=self._width)  # type: ignore[call-arg]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here: the parent parser would name the wrong command.

        Raises:
            UsageError: some arguments are not known.
        """
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`; an unknown flag gets the nearest known one as a suggestion."""
        hint = f"`{self.prog} --help` lists all flags"
        if message.startswith("unrecognized arguments: "):
            # Without the part after a "=", which may be a secret in the wrong place.
            unknown = message.partition(": ")[2].split(" ")[0].partition("=")[0]
            known = [flag for action in self._actions for flag in action.option_strings]
            near = nearest(unknown, known)
            message = f"{self.prog} has no flag or argument {unknown}"
            hint = f"did you mean {near}?" if near else hint
        else:
            message = f"{self.prog}: {message}"
        raise UsageError(message, hint=hint)


def parse_map(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """``K=V,K2=V2`` of every use of a flag; ``^:^K=a,b:K2=c`` splits at ``:`` instead of ``,``.

    Later values win. Values may hold ``=``. A delimiter at the end is ignored.

    Raises:
        UsageError: an entry is not ``KEY=VALUE``.

    Source: ``gcloud topic escaping``.
    """
    result: dict[str, str] = {}
    for text in texts:
        delimiter, body = _delimiter(flag, text)
        body = body.removesuffix(delimiter)
        for entry in body.split(delimiter) if body else ():
            key, equals, value = entry.partition("=")
            if not equals or not key:
                raise UsageError(
                    f'{flag} takes KEY=VALUE{delimiter}..., and "{entry}" is not KEY=VALUE',
                    hint=f"values with a {delimiter} in them: {flag} '^:^KEY=a{delimiter}b:...'",
                )
            result[key] = value
    return result


def parse_duration(flag: str, text: str) -> int:
    """Seconds in ``2h15m5s``, ``10m`` or bare ``600``.

    Raises:
        UsageError: the text is no duration, or not positive.

    Source: ``gcloud topic datetimes`` and the ``--timeout`` flag of ``gcloud builds submit``.
    """
    total = 0
    digits = ""
    for char in text:
        if char.isascii() and char.isdigit():
            digits += char
        elif digits and char in _UNIT_S:
            total += int(digits) * _UNIT_S[char]
            digits = ""
        else:
            total = 0
            break
    else:
        total += int(digits or 0)
    if total <= 0:
        raise UsageError(
            f'{flag} takes a duration, and "{text}" is none', hint="e.g. 600, 600s, 10m, 2h15m5s"
        )
    return total


def _delimiter(flag: str, text: str) -> tuple[str, str]:
    if not text.startswith("^"):
        return ",", text
    delimiter, caret, body = text[1:].partition("^")
    if not caret or not delimiter:
        raise UsageError(f'{flag}: "{text}" begins with ^ but names no delimiter (^:^K=a,b:K2=c)')
    return delimiter, body
