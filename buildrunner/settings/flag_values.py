"""Formats of flags, after gcloud: durations and maps."""

from __future__ import annotations

from collections.abc import Iterable

from buildrunner.errors import UsageError

_UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_map(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """``K=V,K2=V2`` of every use of a flag; ``^:^K=a,b:K2=c`` splits at ``:`` instead of ``,``.

    Later values win. Values may hold ``=``. A delimiter at the end is one too many, and harmless.

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
        UsageError: it is neither, or not positive.

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
