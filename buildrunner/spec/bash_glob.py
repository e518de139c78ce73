r"""Shell globs (``*``, ``?``, ``[...]``, ``\\x``) matched in linear time.

Values come from commit data (branch names!), and patterns may hold values, so neither a shell nor
a backtracking matcher may ever see them. A pattern becomes a small automaton whose set of states
is one integer; each character of the text costs one step of that integer.

Source: bash manual, "Pattern Matching", without ``extglob``; ranges go by code point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_NAMED_CLASSES: Final[dict[str, Callable[[str], bool]]] = {
    "alnum": str.isalnum,
    "alpha": str.isalpha,
    "blank": lambda char: char in " \t",
    "digit": lambda char: "0" <= char <= "9",
    "lower": str.islower,
    "punct": lambda char: (
        char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    ),
    "space": str.isspace,
    "upper": str.isupper,
    "xdigit": lambda char: char in "0123456789abcdefABCDEF",
}


class _OneOf:
    """One character of a set: ``[abc]``, ``[a-z]``, ``[!x]``, ``[[:digit:]]``, ``?``, ``x``."""

    def __init__(
        self,
        ranges: Iterable[tuple[str, str]],
        named: Iterable[Callable[[str], bool]],
        *,
        negated: bool,
    ) -> None:
        self._ranges = tuple(ranges)
        self._named = tuple(named)
        self._negated = negated

    def accepts(self, char: str) -> bool:
        """Whether ``char`` is in the set."""
        inside = any(low <= char <= high for low, high in self._ranges) or any(
            member(char) for member in self._named
        )
        return inside != self._negated


class _Automaton:
    """The states of one reading direction; state ``i`` means "the first i items have matched"."""

    def __init__(self, items: list[_OneOf | None]) -> None:
        self._items = items
        self.stars = sum(1 << index for index, item in enumerate(items) if item is None)
        self.final = 1 << len(items)
        self.start = self._past_stars(1)
        self._accepting: dict[str, int] = {}

    def _past_stars(self, states: int) -> int:
        # Neighbouring stars were merged, so that one pass is the whole closure.
        return states | ((states & self.stars) << 1)

    def step(self, states: int, char: str) -> int:
        accepting = self._accepting.get(char)
        if accepting is None:
            accepting = 0
            for index, item in enumerate(self._items):
                if item is not None and item.accepts(char):
                    accepting |= 1 << index
            self._accepting[char] = accepting
        return self._past_stars((states & self.stars) | ((states & accepting) << 1))

    def first_and_last_end(self, text: Iterable[str]) -> tuple[int, int]:
        """Lengths of the shortest and the longest match at the text's start; (-1, -1) for none."""
        states = self.start
        first = last = 0 if states & self.final else -1
        for length, char in enumerate(text, start=1):
            states = self.step(states, char)
            if not states:
                break
            if states & self.final:
                last = length
                if first < 0:
                    first = length
        return first, last


class Glob:
    """One compiled pattern. All methods take time linear in the text's length."""

    def __init__(self, pattern: str) -> None:
        items = _parse(pattern)
        self.empty = not items
        self._has_star = None in items
        self._forward = _Automaton(items)
        self._backward = _Automaton(items[::-1])

    def prefix(self, text: str) -> tuple[int, int]:
        """Lengths of the shortest and longest prefix that match; (-1, -1) when none does."""
        return self._forward.first_and_last_end(text)

    def suffix(self, text: str) -> tuple[int, int]:
        """Lengths of the shortest and longest suffix that match; (-1, -1) when none does."""
        return self._backward.first_and_last_end(reversed(text))

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        return self.prefix(text)[1] == len(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """All leftmost-longest matches that are not empty, in order, without overlap."""
        found: list[tuple[int, int]] = []
        position = 0
        for start in self._starts(text):
            if start < position:
                continue
            end = start + self._longest_from(text, start)
            if end > start:
                found.append((start, end))
                position = end
                if self._has_star:
                    # The star could have stretched to any later match: there is none.
                    break
        return found

    def _starts(self, text: str) -> list[int]:
        """All positions where a match begins, found by reading the text once, backwards."""
        automaton = self._backward
        states = 0
        starts: list[int] = []
        for position in range(len(text) - 1, -1, -1):
            states = automaton.step(states | automaton.start, text[position])
            if states & automaton.final:
                starts.append(position)
        starts.reverse()
        return starts

    def _longest_from(self, text: str, start: int) -> int:
        return self._forward.first_and_last_end(text[index] for index in range(start, len(text)))[1]


def _parse(pattern: str) -> list[_OneOf | None]:
    """The pattern's items; None stands for a star, several stars in a row are one."""
    items: list[_OneOf | None] = []
    position = 0
    unclosed = False  # one failed search for a "]" is enough: each more would cost the rest again
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            if not items or items[-1] is not None:
                items.append(None)
        elif char == "?":
            items.append(_OneOf((), (), negated=True))
        elif char == "\\" and position < len(pattern):
            items.append(_literal(pattern[position]))
            position += 1
        elif char == "[":
            parsed = None if unclosed else _parse_class(pattern, position)
            if parsed is None:
                unclosed = True
                items.append(_literal("["))
            else:
                item, position = parsed
                items.append(item)
        else:
            items.append(_literal(char))
    return items


def _literal(char: str) -> _OneOf:
    return _OneOf(((char, char),), (), negated=False)


def _parse_class(pattern: str, position: int) -> tuple[_OneOf, int] | None:
    """The class whose ``[`` ends at ``position`` and where it ends; None without a ``]``."""
    negated = pattern[position : position + 1] in ("!", "^") and position < len(pattern)
    if negated:
        position += 1
    ranges: list[tuple[str, str]] = []
    named: list[Callable[[str], bool]] = []
    first = True
    while position < len(pattern):
        char = pattern[position]
        if char == "]" and not first:
            return _OneOf(ranges, named, negated=negated), position + 1
        first = False
        if char == "[" and pattern.startswith("[:", position):
            end = pattern.find(":]", position + 2, position + 12)
            member = _NAMED_CLASSES.get(pattern[position + 2 : end]) if end > 0 else None
            if member is not None:
                named.append(member)
                position = end + 2
                continue
        low, position = _class_char(pattern, position)
        high = low
        if pattern.startswith("-", position) and pattern[position + 1 : position + 2] not in (
            "",
            "]",
        ):
            high, position = _class_char(pattern, position + 1)
        ranges.append((low, high))
    return None


def _class_char(pattern: str, position: int) -> tuple[str, int]:
    if pattern[position] == "\\" and position + 1 < len(pattern):
        return pattern[position + 1], position + 2
    return pattern[position], position + 1
