"""``includedFiles`` and ``ignoredFiles`` of a trigger.

Patterns are Go's ``filepath.Match`` with ``**``, against the whole path from the repository's root.

Source: semantics 9.4, and Cloud Build's "Included and ignored files" of triggers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from buildrunner.triggers.events import Rule

LONGEST_S = 5.0
"""The longest time for the comparison of the files of one event."""

_SHOWN = 3


class PatternError(ValueError):
    """A malformed pattern. The message names the problem."""


def check_pattern(pattern: str) -> str:
    """Return the problem of a pattern; empty if it is valid."""
    try:
        _compiled(pattern)
    except PatternError as error:
        return str(error)
    return ""


def matches(pattern: str, path: str) -> bool:
    """Return whether a path (``/``-separated, from the repository's root) matches a pattern.

    Raises:
        PatternError: the pattern is malformed.
    """
    return _compiled(pattern).fullmatch(path) is not None


def file_rule(
    files: Sequence[str] | None,
    *,
    included: Sequence[str],
    ignored: Sequence[str],
    longest_s: float = LONGEST_S,
) -> Rule:
    """Return whether changed files let a trigger fire.

    Args:
        files: changed files; None if unknown, which passes.
        included: the trigger's ``includedFiles``.
        ignored: the trigger's ``ignoredFiles``.
        longest_s: time limit in seconds; beyond it, the rule passes as for unknown files.
    """

    def rule(passed: bool, text: str) -> Rule:
        return Rule(name="files", passed=passed, text=text)

    if not included and not ignored:
        return Rule(name="files", passed=None, text="any file counts")
    if files is None:
        return rule(True, "which files changed is not known, so they count as matching")
    if not files and not ignored:
        return rule(True, "no file changed, so that includedFiles is not asked")
    ends = time.monotonic() + longest_s
    try:
        left = list(_matching(files, ignored, ends, wanted=False)) if ignored else files
        hits = list(_matching(left, included, ends)) if included else left
    except TimeoutError:
        text = f"{len(files)} changed files took over {longest_s:g} s, so they count as matching"
        return rule(True, text)
    if not left:
        if not files:
            return rule(False, "no file changed outside ignoredFiles")
        return rule(False, f"all changed files are in ignoredFiles: {_some(files)}")
    if not included:
        return rule(True, f"changed outside ignoredFiles: {_some(left)}")
    if hits:
        return rule(True, f"changed, and in includedFiles: {_some(hits)}")
    return rule(False, f"no changed file is in includedFiles: {_some(left)}")


def _matching(
    paths: Iterable[str], patterns: Sequence[str], ends: float, *, wanted: bool = True
) -> Iterator[str]:
    """Yield the paths that match one of the patterns; if not ``wanted``, the others.

    Raises:
        TimeoutError: the time ``ends`` on the monotonic clock has passed.
    """
    compiled = _compiled_together(tuple(patterns))
    for path in paths:
        if time.monotonic() > ends:
            raise TimeoutError
        if any(one.fullmatch(path) is not None for one in compiled) == wanted:
            yield path


def _some(paths: Iterable[str]) -> str:
    names = list(paths)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    return _as_re2(_as_regex(pattern))


@lru_cache(maxsize=64)
def _compiled_together(patterns: tuple[str, ...]) -> tuple[Any, ...]:
    """Compile the patterns to one expression; if that is too large, each separately.

    Raises:
        PatternError: a pattern is malformed.
    """
    import re2

    try:
        return (_as_re2("|".join(f"(?:{_as_regex(pattern)})" for pattern in patterns)),)
    except re2.error:
        return tuple(map(_compiled, patterns))


def _as_re2(expression: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2.compile(expression, options)


def _as_regex(pattern: str) -> str:
    parts: list[str] = ["(?s)"]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 2
        elif char == "[":
            text, at = _character_class(pattern, at)
            parts.append(text)
        elif char == "\\":
            if at + 1 == len(pattern):
                raise PatternError(f"{pattern!r} ends with a backslash")
            parts.append(_literal(pattern[at + 1]))
            at += 2
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(char) or _literal(char))
            at += 1
    return "".join(parts)


def _character_class(pattern: str, at: int) -> tuple[str, int]:
    start = at
    at += 1
    negated = pattern[at : at + 1] == "^"
    at += negated
    members: list[str] = []
    while pattern[at : at + 1] != "]" or not members:
        low, at = _class_member(pattern, at, start)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _class_member(pattern, at + 1, start)
        if low <= high:
            members.append(f"{_literal(low)}-{_literal(high)}")
        else:
            members.append("")  # an empty range matches nothing
    inside = "".join(members)
    if not inside:
        return ("[^/]" if negated else "[^\\x{0}-\\x{10FFFF}]"), at + 1
    return (f"[^/{inside}]" if negated else f"[{inside}]"), at + 1


def _class_member(pattern: str, at: int, start: int) -> tuple[str, int]:
    char = pattern[at : at + 1]
    if char == "\\":
        at += 1
        char = pattern[at : at + 1]
    elif char in ("-", "]"):
        raise PatternError(f"{pattern[start:]!r} is no character class: escape {char} with \\")
    if not char:
        raise PatternError(f"{pattern[start:]!r} is not closed: a ] is missing")
    return char, at + 1


def _literal(char: str) -> str:
    return f"\\x{{{ord(char):X}}}"
