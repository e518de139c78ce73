"""The filter of lists of builds: text to an expression.

A subset of the AIP-160 language::

    filter := conj ( [ "AND" ] conj )*          two terms side by side are joined by AND
    conj   := unary ( "OR" unary )*             OR binds tighter than AND
    unary  := [ "NOT" | "-" ] ( term | "(" filter ")" )
    term   := path op value | value
    op     := "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    value  := quoted string | bare word

Pure. What paths and values mean is in `list_filter_fields`, whether a build matches in
`list_filter_match`, how it becomes SQL in `sql_filter`.

Source: https://google.aip.dev/160 and https://cloud.google.com/build/docs/view-build-results
"""

from __future__ import annotations

import re
from typing import TypeAlias

import msgspec

from buildrunner.errors import FilterError
from buildrunner.store.filters.fields import Operand, field_of, operand_of

MAX_FILTER = 10_000
_MAX_DEPTH = 50


class Term(msgspec.Struct, frozen=True):
    """``path op value``.

    Attributes:
        path: keys of the document, camelCase, aliases resolved.
        operator: one of ``= != < <= > >= :``.
        operand: the value, of the field's kind.
    """

    path: tuple[str, ...]
    operator: str
    operand: Operand


class Anywhere(msgspec.Struct, frozen=True):
    """A bare value: some text of the build holds it, whatever its case."""

    text: str


class Not(msgspec.Struct, frozen=True):
    """What does not match ``of``."""

    of: Expression


class And(msgspec.Struct, frozen=True):
    """All of at least two."""

    of: tuple[Expression, ...]


class Or(msgspec.Struct, frozen=True):
    """Any of at least two."""

    of: tuple[Expression, ...]


Expression: TypeAlias = "Term | Anywhere | Not | And | Or"


def parse_filter(text: str) -> Expression | None:
    """The expression of a filter; None for an empty one.

    Raises:
        FilterError: it is not of the grammar, or names an unknown field; with the position.
    """
    if len(text) > MAX_FILTER:
        raise FilterError(f"the filter is longer than {MAX_FILTER} characters", position=MAX_FILTER)
    reader = _Reader(_tokens(text))
    if reader.kind == "end":
        return None
    expression = reader.filter(0)
    if reader.kind != "end":
        raise reader.error("nothing is open that this could close")
    return expression


class _Token(msgspec.Struct, frozen=True):
    kind: str  # word, string, op, (, ), -, AND, OR, NOT, end
    text: str
    at: int


_STRING = r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
# Behind an operator stands a value, which may hold colons: a time, an image.
_VALUE = re.compile(rf"{_STRING}|(?P<word>[^\s\"'()=<>!]+)", re.DOTALL)
_SCAN = re.compile(
    rf"{_STRING}|(?P<op>!=|<=|>=|=|<|>|:)|(?P<mark>[()])|(?P<minus>-(?=[\w(\"']))"
    r"|(?P<word>[^\s\"'()=<>:!]+)",
    re.DOTALL,
)
_BLANKS = re.compile(r"\s*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = _behind_blanks(text, 0)
    while at < len(text):
        pattern = _VALUE if found and found[-1].kind == "op" else _SCAN
        match = pattern.match(text, at)
        if match is None:
            said = "this string has no end" if text[at] in "\"'" else f"{text[at]!r} means nothing"
            raise _error(f"{said} here", at)
        if "\0" in match[0]:
            raise _error("a filter can't hold a NUL", at)
        found.append(_token(str(match.lastgroup), match[0], at))
        at = _behind_blanks(text, match.end())
    return [*found, _Token("end", "", len(text))]


def _behind_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _token(kind: str, text: str, at: int) -> _Token:
    if kind == "string":
        text = _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text[1:-1])
    elif kind == "mark" or (kind == "word" and text in ("AND", "OR", "NOT")):
        kind = text
    return _Token(kind, text, at)


def _error(said: str, at: int, *, hint: str = "") -> FilterError:
    return FilterError(f"filter, character {at + 1}: {said}", position=at, hint=hint)


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0

    @property
    def kind(self) -> str:
        return self._tokens[self._next].kind

    def error(self, said: str) -> FilterError:
        return _error(said, self._tokens[self._next].at)

    def filter(self, depth: int) -> Expression:
        if depth > _MAX_DEPTH:
            raise self.error(f"parentheses are nested deeper than {_MAX_DEPTH}")
        parts = [self._conj(depth)]
        while self.kind not in ("end", ")"):
            if self.kind == "OR":
                raise self.error("OR needs a term on its left")
            if self.kind == "AND":
                self._take()
            parts.append(self._conj(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _conj(self, depth: int) -> Expression:
        parts = [self._unary(depth)]
        while self.kind == "OR":
            self._take()
            parts.append(self._unary(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _unary(self, depth: int) -> Expression:
        if self.kind in ("NOT", "minus"):
            self._take()
            return Not(self._operand(depth))
        return self._operand(depth)

    def _operand(self, depth: int) -> Expression:
        if self.kind != "(":
            return self._term()
        self._take()
        inner = self.filter(depth + 1)
        if self.kind != ")":
            raise self.error('a ")" is missing')
        self._take()
        return inner

    def _term(self) -> Expression:
        if self.kind not in ("word", "string"):
            raise self.error('a term is wanted here, as in status="SUCCESS"')
        left = self._take()
        if self.kind != "op":
            return Anywhere(left.text)
        if left.kind != "word":
            raise _error("a field's name is not quoted", left.at)
        operator = self._take()
        if self.kind not in ("word", "string", "AND", "OR", "NOT"):
            raise self.error(f"a value is wanted behind {operator.text}")
        value = self._take()
        try:
            field = field_of(left.text)
        except ValueError as error:
            raise _error(str(error), left.at) from error
        any_value = value.kind == "word" and value.text == "*"
        try:
            operand = operand_of(field, operator.text, value.text, any_value=any_value)
        except ValueError as error:
            raise _error(str(error), value.at) from error
        return Term(field.path, operator.text, operand)

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += 1
        return token
