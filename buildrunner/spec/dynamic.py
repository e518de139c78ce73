"""Bash-style expressions inside ``${...}``, for builds with ``dynamicSubstitutions``.

``parse_expression`` reads one expression, ``evaluate`` gives its text. No shell is ever run: values
come from commit data. Nesting is bounded and globs are matched in linear time (`bash_glob`).

Inside an expression the rules of bash hold: a backslash quotes the next character. Outside it has
no meaning (`substitutions`). Quotes stand for themselves.

Source: Cloud Build "Substituting variable values", bash-style string operations; the operators of
bash 4 (`${v:=w}`, `${v:?w}`, `${!v}`, arrays, arithmetic and commands are refused).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from buildrunner.spec.bash_glob import Glob
from buildrunner.spec.expression import (
    MAX_LENGTH,
    OPENER,
    TOO_LONG,
    BadExpression,
    Expression,
    bounded,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.spec.expression import Word

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
    """The expression whose ``${`` is at ``position``, and where it ends.

    Returns:
        None when the closing brace is missing. Time is linear in the text's length.
    """
    try:
        return _expression(text, position, 0)
    except _Unterminated:
        return None
    except _TooDeep:
        # Where it would end does not matter: it is refused, and with it the whole text.
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
    """The expression, with an error in it when the operands can't be right."""
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
    """The words up to the closing brace: two when the separator occurs, else one."""
    first, position = _word(text, position, depth, separator, pattern=pattern)
    if text[position] == "}":
        return (first,), position + 1
    second, position = _word(text, position + 1, depth, "", pattern=False)
    return (first, second), position + 1


def _word(
    text: str, position: int, depth: int, separator: str, *, pattern: bool
) -> tuple[Word, int]:
    """One word and the position of the brace or separator that ends it."""
    parts: list[str | Expression] = []
    braces = 0
    start = position
    while position < len(text):
        char = text[position]
        if char == "}" and not braces:
            return tuple(parts), position
        # Bash: a third "/" belongs to the pattern, "${x////-}" turns every "/" into "-".
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
    """What a ``$`` in a word stands for, where it ends, and how many literal braces it opened."""
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


def evaluate(expression: Expression, lookup: Callable[[str], str | None]) -> str:
    """The expression's text.

    Args:
        expression: what to evaluate.
        lookup: the value of a variable; None when it is not set.

    Raises:
        BadExpression: the expression is not supported, or an offset makes no sense.
    """
    return bounded(_evaluated(expression, lookup))


def _evaluated(expression: Expression, lookup: Callable[[str], str | None]) -> str:
    if expression.error:
        raise BadExpression(expression.error)
    value = lookup(expression.name)
    operator = expression.operator
    text = value or ""
    if not operator:
        return text
    if operator == "length":
        return str(len(text))
    if operator in _DEFAULTS:
        wants_word = _DEFAULTS[operator](value)
        if wants_word is None:
            return text
        return _text(expression.operands[0], lookup) if wants_word else ""
    operands = [_text(word, lookup) for word in expression.operands]
    if operator == ":":
        return _substring(text, operands)
    if operator[0] == "/":
        return _replaced(text, operator, operands[0], operands[1] if len(operands) > 1 else "")
    if operator[0] in "#%":
        return _stripped(text, operator, Glob(operands[0]))
    return _cased(text, operator, operands[0])


# True: the word; None: the value; False: nothing.
_DEFAULTS: Final[dict[str, Callable[[str | None], bool | None]]] = {
    ":-": lambda value: None if value else True,
    "-": lambda value: None if value is not None else True,
    ":+": bool,
    "+": lambda value: value is not None,
}


def _text(word: Word, lookup: Callable[[str], str | None]) -> str:
    return "".join(part if isinstance(part, str) else evaluate(part, lookup) for part in word)


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


def _replaced(text: str, operator: str, pattern: str, replacement: str) -> str:
    glob = Glob(pattern)
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


def _cased(text: str, operator: str, pattern: str) -> str:
    convert = str.upper if operator[0] == "^" else str.lower
    glob = Glob(pattern or "?")

    def cased(char: str) -> str:
        changed = convert(char)
        # As in C, one character stays one character.
        return changed if len(changed) == 1 and glob.matches(char) else char

    if len(operator) == 1:
        return cased(text[:1]) + text[1:] if text else text
    return "".join(map(cased, text))
