"""gitignore's globs as regular expressions that match in linear time."""

from __future__ import annotations

import re

_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_UPPER = _LOWER.upper()
_POSIX_CLASSES = {
    "alnum": _LOWER + _UPPER + _DIGITS,
    "alpha": _LOWER + _UPPER,
    "blank": " \t",
    "cntrl": "".join(map(chr, (*range(32), 127))),
    "digit": _DIGITS,
    "graph": "".join(map(chr, range(33, 127))),
    "lower": _LOWER,
    "print": "".join(map(chr, range(32, 127))),
    "punct": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "space": " \t\n\r\v\f",
    "upper": _UPPER,
    "xdigit": _DIGITS + "abcdefABCDEF",
}


class BadPattern(ValueError):
    """The glob can't match anything: an open bracket, or nothing after a backslash."""


def translate_glob(glob: str, *, across_directories: bool) -> str:
    """A regular expression (for fullmatch, with DOTALL) that matches what ``glob`` matches.

    Args:
        glob: without the leading and trailing ``/`` of its line.
        across_directories: ``glob`` is matched against a path, and ``**`` between slashes crosses
            directories; False when it is matched against one name.

    Raises:
        BadPattern: it can't match anything.

    Source: gitignore(5), "PATTERN FORMAT".
    """
    if not across_directories:
        return _translate_name(glob)
    names = _split(glob)
    parts: list[str] = []
    segment = ""  # names since the last `**`, each with its slash
    crossing = False
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if name == "**" and not last:
            parts.append(_join(crossing, segment, atomic=True))
            segment, crossing = "", True
        elif name == "**":
            # What is inside, never the directory itself.
            segment += ".+"
        else:
            segment += _translate_name(name) + ("" if last else "/")
    parts.append(_join(crossing, segment, atomic=False))
    return "".join(parts)


def _split(glob: str) -> list[str]:
    """``glob`` at its slashes, except those inside brackets."""
    names: list[str] = []
    start = position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        if character == "/":
            names.append(glob[start : position - 1])
            start = position
        elif character == "\\":
            position += 1
        elif character == "[":
            _, position = _translate_class(glob, position)
    names.append(glob[start:])
    return names


def _join(crossing: bool, segment: str, *, atomic: bool) -> str:
    """``segment``, after any number of directories when ``crossing``.

    The first place where a segment fits is as good as any later one, so that a segment with more
    to come is atomic: this is what keeps matching linear.
    """
    if not crossing:
        return segment
    if not segment:
        return ""
    if atomic:
        return f"(?>(?:[^/]*/)*?{segment})"
    return f"(?:[^/]*/)*?{segment}"


def _translate_name(glob: str) -> str:
    """One name of a path, or a glob for names only: no wildcard matches a slash."""
    fixed: list[str] = [""]  # what stands between the stars
    position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        if character == "*":
            if fixed[-1] or len(fixed) == 1:
                fixed.append("")
        elif character == "?":
            fixed[-1] += "[^/]"
        elif character == "[":
            text, position = _translate_class(glob, position)
            fixed[-1] += text
        elif character == "\\":
            if position == len(glob):
                raise BadPattern("nothing follows the backslash")
            fixed[-1] += re.escape(glob[position])
            position += 1
        else:
            fixed[-1] += re.escape(character)
    if len(fixed) == 1:
        return fixed[0]
    middle = "".join(f"(?>[^/]*?{text})" for text in fixed[1:-1])
    return f"{fixed[0]}{middle}[^/]*{fixed[-1]}"


def _translate_class(glob: str, position: int) -> tuple[str, int]:
    """The class that begins after the ``[`` before ``position``, and the position after it."""
    negated = glob[position : position + 1] in ("!", "^")
    position += negated
    members: list[str] = []
    first = True
    while first or glob[position : position + 1] != "]":
        if glob.startswith("[:", position):
            end = glob.find(":]", position)
            name = glob[position + 2 : end] if end > 0 else ""
            if name not in _POSIX_CLASSES:
                raise BadPattern(f"unknown class [:{name}:]")
            members.append("".join(map(re.escape, _POSIX_CLASSES[name])))
            position = end + 2
        else:
            low, position = _class_member(glob, position)
            if glob[position : position + 1] == "-" and glob[position + 1 : position + 2] != "]":
                high, position = _class_member(glob, position + 1)
                if low <= high:  # an empty range matches nothing
                    members.append(f"{re.escape(low)}-{re.escape(high)}")
            else:
                members.append(re.escape(low))
        first = False
    position += 1
    text = "".join(members)
    if negated:
        return f"[^/{text}]", position
    return (f"(?!/)[{text}]" if text else "(?!)"), position


def _class_member(glob: str, position: int) -> tuple[str, int]:
    """One character of a class, and the position after it."""
    if position < len(glob) and glob[position] == "\\":
        position += 1
    if position >= len(glob):
        raise BadPattern("the bracket is never closed")
    return glob[position], position + 1
