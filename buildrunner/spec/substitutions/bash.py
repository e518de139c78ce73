"""Bash-style expressions inside ``${...}``, for builds with ``dynamicSubstitutions``.

``parse_expression`` reads one expression, ``evaluate`` gives its text. No shell is ever run: values
come from commit data. Nesting is limited, globs are matched in linear time (`Glob`), and all
expressions of a build share one `Budget` of work.

Inside an expression the rules of bash apply: a backslash quotes the next character. Outside of
expressions, a backslash has no meaning (`templates`). Quotes are literal.

Source: Cloud Build "Substituting variable values", bash-style string operations; the operators of
bash 4 (`${v:=w}`, `${v:?w}`, `${!v}`, arrays, arithmetic and commands are refused).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Final

from buildrunner.spec.substitutions.expressions import (
    EXPRESSION_WORK,
    MAX_LENGTH,
    OPENER,
    TOO_LONG,
    BadExpression,
    Budget,
    Expression,
    Word,
    bounded,
)

MAX_NESTING: Final = 16

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_REFERENCE = re.compile(r"\$(?:([A-Z_][A-Z0-9_]*)|\{([A-Z_][A-Z0-9_]*)\})")
_PLAIN = re.compile(r"[^\\$}/:]+")
_NUMBER = re.compile(r"[ \t]*(?:(-?[0-9]{1,18})|\([ \t]*(-?[0-9]{1,18})[ \t]*\))[ \t]*")
_OPERATOR = re.compile(r":[-+=?]|:|[-+=?]|##?|%%?|\^\^?|,,?|//|/#|/%|/")
_REFUSED: Final = frozenset({":=", "=", ":?", "?"})


class _Unterminated(Exception):
    """The text ended before the closing brace."""


class _TooDeep(Exception):
    """Expressions are nested more than `MAX_NESTING` deep."""


def parse_expression(text: str, position: int) -> tuple[Expression, int] | None:
    """Return the expression whose ``${`` is at ``position``, and its end.

    Returns:
        None if the closing brace is missing. Time is linear in the text's length.
    """
    try:
        return _expression(text, position, 0)
    except _Unterminated:
        return None
    except _TooDeep:
        # The end of the expression is irrelevant, since the whole text is refused.
        error = f"expressions are nested more than {MAX_NESTING} deep"
        return Expression("", error=error), len(text)


def _expression(text: str, position: int, depth: int) -> tuple[Expression, int]:
    if depth > MAX_NESTING:
        raise _TooDeep
    start = position + 2
    prefix = text[start] if text[start] in "#!" else ""
    named = _NAME.match(text, start + len(prefix))
    if named is None:
        raise _Unterminated
    name, after = named.group(), named.end()
    if after >= len(text):
        raise _Unterminated
    if prefix == "#" and text[after] == "}":
        return Expression(name, "length"), after + 1
    if not prefix and text[after] == "}":
        return Expression(name), after + 1
    operator = _OPERATOR.match(text, after)
    if prefix or operator is None or operator.group() in _REFUSED:
        shown = prefix or (operator.group() if operator else text[after])
        _, end = _words(text, after, depth, "")
        return Expression(name, error=f'the operator "{shown}" is not supported'), end
    sign = operator.group()
    separator = sign[0] if sign == ":" or sign[0] == "/" else ""
    words, end = _words(text, operator.end(), depth, separator, pattern=sign[0] in "#%/^,")
    return _checked(Expression(name, sign, words)), end


def _checked(expression: Expression) -> Expression:
    """Return the expression, with an error if the operands are invalid."""
    if expression.operator == ":":
        for word in expression.operands:
            literal = all(isinstance(part, str) for part in word)
            if literal and _NUMBER.fullmatch("".join(map(str, word))) is None:
                error = "offset and length of a substring must be whole numbers"
                return Expression(expression.name, error=error)
    nested = (part for word in expression.operands for part in word)
    for part in nested:
        if isinstance(part, Expression) and part.error:
            return Expression(expression.name, expression.operator, expression.operands, part.error)
    return expression


def _words(
    text: str, position: int, depth: int, separator: str, *, pattern: bool = False
) -> tuple[tuple[Word, ...], int]:
    """Return the words up to the closing brace: two if the separator occurs, else one."""
    first, position = _word(text, position, depth, separator, pattern=pattern)
    if text[position] == "}":
        return (first,), position + 1
    second, position = _word(text, position + 1, depth, "", pattern=False)
    return (first, second), position + 1


def _word(
    text: str, position: int, depth: int, separator: str, *, pattern: bool
) -> tuple[Word, int]:
    """Return one word and the position of the brace or separator that ends it."""
    parts: list[str | Expression] = []
    braces = 0
    start = position
    while position < len(text):
        char = text[position]
        if char == "}" and not braces:
            return tuple(parts), position
        # Bash: a third "/" belongs to the pattern: "${x////-}" replaces every "/" by "-".
        third = position == start and text.startswith("//", position - 2) and pattern
        if char == separator and not braces and not third:
            return tuple(parts), position
        if char == "$":
            part, position, opened = _dollar(text, position, depth)
            parts.append(part)
            braces += opened
            continue
        if char == "\\" and position + 1 < len(text):
            quoted = text[position + 1]
            parts.append(char + quoted if pattern else quoted)
            position += 2
            continue
        if char == "}":
            braces -= 1
        plain = _PLAIN.match(text, position)
        end = plain.end() if plain else position + 1
        parts.append(text[position:end])
        position = end
    raise _Unterminated


def _dollar(text: str, position: int, depth: int) -> tuple[str | Expression, int, int]:
    """Return the part at a ``$`` in a word, its end, and the number of literal braces it opens."""
    if text.startswith("$$", position):
        return "$", position + 2, 0
    reference = _REFERENCE.match(text, position)
    if reference:
        return Expression(reference.group(1) or reference.group(2)), reference.end(), 0
    if OPENER.match(text, position):
        expression, end = _expression(text, position, depth + 1)
        return expression, end, 0
    if text.startswith("${", position):
        return "${", position + 2, 1
    return "$", position + 1, 0


def evaluate(
    expression: Expression, lookup: Callable[[str], str | None], budget: Budget | None = None
) -> str:
    """Return the expression's value.

    Args:
        expression: the expression.
        lookup: returns the value of a variable; None if it is not set.
        budget: the work that it may take; None for a budget of its own.

    Raises:
        BadExpression: the expression is not supported, an offset is invalid, or the budget is too
            small.
    """
    return bounded(_evaluated(expression, lookup, budget or Budget()))


def _evaluated(expression: Expression, lookup: Callable[[str], str | None], budget: Budget) -> str:
    if expression.error:
        raise BadExpression(expression.error)
    value = lookup(expression.name)
    operator = expression.operator
    text = value or ""
    budget.spend(EXPRESSION_WORK + len(text) // 256)
    if not operator:
        return text
    if operator == "length":
        return str(len(text))
    if operator in _DEFAULTS:
        wants_word = _DEFAULTS[operator](value)
        if wants_word is None:
            return text
        return _text(expression.operands[0], lookup, budget) if wants_word else ""
    operands = [_text(word, lookup, budget) for word in expression.operands]
    if operator == ":":
        return _substring(text, operands)
    if operator[0] == "/":
        replacement = operands[1] if len(operands) > 1 else ""
        return _replaced(text, operator, _glob(operands[0], budget), replacement)
    if operator[0] in "#%":
        return _stripped(text, operator, _glob(operands[0], budget))
    return _cased(text, operator, _glob(operands[0] or "?", budget), budget)


def _glob(pattern: str, budget: Budget) -> Glob:
    found: Glob | None = budget.compiled.get(pattern)
    if found is None:
        found = budget.compiled[pattern] = Glob(pattern, budget)
    return found


# True: use the word; None: use the value; False: use nothing.
_DEFAULTS: Final[dict[str, Callable[[str | None], bool | None]]] = {
    ":-": lambda value: None if value else True,
    "-": lambda value: None if value is not None else True,
    ":+": bool,
    "+": lambda value: value is not None,
}


def _text(word: Word, lookup: Callable[[str], str | None], budget: Budget) -> str:
    pieces: list[str] = []
    room = MAX_LENGTH
    for part in word:
        piece = part if isinstance(part, str) else evaluate(part, lookup, budget)
        room -= len(piece)
        if room < 0:
            raise BadExpression(TOO_LONG)
        pieces.append(piece)
    return "".join(pieces)


def _number(text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise BadExpression(f'"{text}" is not a whole number')
    return int(match.group(1) or match.group(2))


def _substring(text: str, operands: list[str]) -> str:
    offset = _number(operands[0])
    if offset < 0:
        offset += len(text)
        if offset < 0:
            return ""
    end = len(text)
    if len(operands) > 1:
        length = _number(operands[1])
        end = offset + length if length >= 0 else end + length
        if end < offset and offset <= len(text):
            raise BadExpression("the substring would end before it starts")
    return text[offset:end]


def _stripped(text: str, operator: str, glob: Glob) -> str:
    shortest, longest = glob.prefix(text) if operator[0] == "#" else glob.suffix(text)
    cut = longest if len(operator) > 1 else shortest
    if cut <= 0:
        return text
    return text[cut:] if operator[0] == "#" else text[: len(text) - cut]


def _replaced(text: str, operator: str, glob: Glob, replacement: str) -> str:
    if operator == "/#":
        longest = glob.prefix(text)[1]
        return text if longest < 0 else replacement + text[longest:]
    if operator == "/%":
        longest = glob.suffix(text)[1]
        return text if longest < 0 else text[: len(text) - longest] + replacement
    if glob.empty:
        return text
    if not text:
        return replacement if glob.matches("") else ""
    pieces: list[str] = []
    position = 0
    spans = glob.spans(text)
    if len(spans) * len(replacement) > MAX_LENGTH:
        raise BadExpression(TOO_LONG)
    for start, end in spans:
        pieces += (text[position:start], replacement)
        position = end
        if operator == "/":
            break
    return "".join(pieces) + text[position:]


def _cased(text: str, operator: str, glob: Glob, budget: Budget) -> str:
    convert = str.upper if operator[0] == "^" else str.lower
    if len(operator) == 1:
        return _in_case(text[0], convert, glob) + text[1:] if text else text
    if glob.is_any_character and text.isascii():
        return convert(text)
    budget.spend(len(text) // 2)
    changed = {char: _in_case(char, convert, glob) for char in set(text)}
    return "".join(map(changed.__getitem__, text))


def _in_case(char: str, convert: Callable[[str], str], glob: Glob) -> str:
    changed = convert(char)
    # As in C, one character maps to one character.
    return changed if len(changed) == 1 and glob.matches(char) else char


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
    """One character of a set: ``[abc]``, ``[a-z]``, ``[!x]``, ``[[:digit:]]``, ``?``."""

    def __init__(
        self,
        ranges: Iterable[tuple[str, str]],
        named: Iterable[Callable[[str], bool]],
        *,
        negated: bool,
    ) -> None:
        self._ranges = tuple(ranges)
        self._named = tuple(dict.fromkeys(named))
        self._negated = negated
        self.size = len(self._ranges) + len(self._named)

    def accepts(self, char: str) -> bool:
        """Return whether ``char`` is in the set."""
        inside = any(low <= char <= high for low, high in self._ranges) or any(
            member(char) for member in self._named
        )
        return inside != self._negated


_ANY: Final = _OneOf((), (), negated=True)

# One item of a pattern: a star (None), a set, or a character that stands for itself.
_Item = _OneOf | str | None


class _Automaton:
    """The states of one reading direction; state ``i`` means "the first i items have matched"."""

    def __init__(self, items: list[_Item], budget: Budget) -> None:
        self._budget = budget
        self._cost = 1 + len(items) // 512
        self._places: dict[str, list[int]] = {}
        sets: dict[_OneOf, list[int]] = {}
        stars: list[int] = []
        for index, item in enumerate(items):
            if item is None:
                stars.append(index)
            elif isinstance(item, str):
                self._places.setdefault(item, []).append(index)
            else:
                sets.setdefault(item, []).append(index)
        self._any = _bits(sets.pop(_ANY, []))
        budget.spend(len(sets) * self._cost)
        self._sets = [(one, _bits(places)) for one, places in sets.items()]
        self.stars = _bits(stars)
        self.final = 1 << len(items)
        self.start = self._past_stars(1)
        # the items that accept a character, by character
        self._accepting: dict[str, int] = {}

    def _past_stars(self, states: int) -> int:
        # Adjacent stars were merged, so one pass is the whole closure.
        return states | ((states & self.stars) << 1)

    def step(self, states: int, char: str) -> int:
        accepting = self._accepting.get(char)
        if accepting is None:
            accepting = self._accepting[char] = self._accepted(char)
        return self._past_stars((states & self.stars) | ((states & accepting) << 1))

    def _accepted(self, char: str) -> int:
        places = self._places.get(char, ())
        self._budget.spend(self._cost + len(places) // 4)
        accepting = self._any | _bits(places)
        for one, bits in self._sets:
            self._budget.spend(self._cost + one.size)
            if one.accepts(char):
                accepting |= bits
        return accepting

    def first_and_last_end(self, text: Iterable[str]) -> tuple[int, int]:
        """Return the lengths of the shortest and longest match at the start; (-1, -1) for none."""
        states = self.start
        first = last = 0 if states & self.final else -1
        for length, char in enumerate(text, start=1):
            if length % _BATCH == 1:
                self._budget.spend(self._cost * _BATCH)
            states = self.step(states, char)
            if not states:
                break
            if states & self.final:
                last = length
                if first < 0:
                    first = length
        return first, last

    def starts(self, text: str) -> list[int]:
        """Return the positions at which a match ends, read backwards from each position."""
        states = 0
        starts: list[int] = []
        for position in range(len(text) - 1, -1, -1):
            if position % _BATCH == 0:
                self._budget.spend(self._cost * _BATCH)
            states = self.step(states | self.start, text[position])
            if states & self.final:
                starts.append(position)
        starts.reverse()
        return starts


# The steps that are taken from the budget at a time.
_BATCH: Final = 16


def _bits(places: Sequence[int]) -> int:
    """Return the number in which the bits at these places are set, in linear time."""
    if not places:
        return 0
    octets = bytearray(max(places) // 8 + 1)
    for place in places:
        octets[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(octets, "little")


class Glob:
    """One compiled pattern. All methods take time linear in the text's length.

    Args:
        pattern: the pattern.
        budget: the work that it may take; None for a budget of its own.
    """

    def __init__(self, pattern: str, budget: Budget | None = None) -> None:
        self._budget = budget or Budget()
        self._budget.spend(2 * EXPRESSION_WORK + len(pattern))
        self._items = items = _parse(pattern)
        self.empty = not items
        self.is_any_character = items == [_ANY]
        self._has_star = None in items
        self._text = (
            "".join(map(str, items)) if all(isinstance(one, str) for one in items) else None
        )

    @cached_property
    def _forward(self) -> _Automaton:
        return self._automaton(self._items)

    @cached_property
    def _backward(self) -> _Automaton:
        return self._automaton(self._items[::-1])

    def _automaton(self, items: list[_Item]) -> _Automaton:
        self._budget.spend(len(items))
        return _Automaton(items, self._budget)

    def prefix(self, text: str) -> tuple[int, int]:
        """Return the lengths of the shortest and longest matching prefix; (-1, -1) for none."""
        if self._text is not None:
            self._budget.spend(1 + len(self._text) // 256)
            length = len(self._text) if text.startswith(self._text) else -1
            return length, length
        return self._forward.first_and_last_end(text)

    def suffix(self, text: str) -> tuple[int, int]:
        """Return the lengths of the shortest and longest matching suffix; (-1, -1) for none."""
        if self._text is not None:
            self._budget.spend(1 + len(self._text) // 256)
            length = len(self._text) if text.endswith(self._text) else -1
            return length, length
        return self._backward.first_and_last_end(reversed(text))

    def matches(self, text: str) -> bool:
        """Return whether the whole text matches."""
        return self.prefix(text)[1] == len(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return all leftmost-longest non-empty matches, in order, without overlap."""
        if self._text is not None:
            return self._places_of(self._text, text)
        if self._has_star:
            # A star would extend the first match to any later one, so there is no other.
            for start in self._backward.starts(text):
                rest = map(text.__getitem__, range(start, len(text)))
                end = start + self._forward.first_and_last_end(rest)[1]
                return [(start, end)] if end > start else []
            return []
        length = len(self._items)
        found: list[tuple[int, int]] = []
        for start in self._backward.starts(text):
            if not found or start >= found[-1][1]:
                found.append((start, start + length))
        return found

    def _places_of(self, wanted: str, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        if not wanted:
            return found
        # Python's search is linear for long texts only.
        product = len(text) * len(wanted)
        self._budget.spend(1 + len(text) // 64 + min(len(text), product // 2048))
        start = text.find(wanted)
        while start >= 0:
            self._budget.spend(1)
            end = start + len(wanted)
            found.append((start, end))
            start = text.find(wanted, end)
        return found


def _parse(pattern: str) -> list[_Item]:
    """Return the pattern's items; None is a star, several stars in a row are one."""
    items: list[_Item] = []
    position = 0
    # one failed search for a "]" is enough: each further one would scan the rest again
    unclosed = False
    known: dict[str, _OneOf] = {}
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            if not items or items[-1] is not None:
                items.append(None)
        elif char == "?":
            items.append(_ANY)
        elif char == "\\" and position < len(pattern):
            items.append(pattern[position])
            position += 1
        elif char == "[":
            parsed = None if unclosed else _parse_class(pattern, position)
            if parsed is None:
                unclosed = True
                items.append("[")
            else:
                item, end = parsed
                items.append(known.setdefault(pattern[position:end], item))
                position = end
        else:
            items.append(char)
    return items


def _parse_class(pattern: str, position: int) -> tuple[_OneOf, int] | None:
    """Return the class whose ``[`` ends at ``position``, and its end; None without a ``]``."""
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
