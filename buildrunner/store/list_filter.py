"""The ``filter`` parameter of list calls: parsed, checked against the fields, matched. Pure.

Paths are written in snake_case or camelCase; ``build_id`` and ``trigger_id`` are gcloud's names of
``id`` and ``buildTriggerId``. A term on a list holds if it holds for any element. In
``substitutions`` and the other maps the last name of a path is a key.

`matches` evaluates a filter on a build's document; `store.sql.filter` must agree with it.

A subset of the AIP-160 language::

    filter := conj ( [ "AND" ] conj )*          two terms side by side are joined by AND
    conj   := unary ( "OR" unary )*             OR binds tighter than AND
    unary  := [ "NOT" | "-" ] ( term | "(" filter ")" )
    term   := path op value | value
    op     := "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    value  := quoted string | bare word

Source: https://google.aip.dev/160 and https://cloud.google.com/build/docs/view-build-results
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, assert_never

import msgspec

from buildrunner.errors import FilterError
from buildrunner.spec.model.message import MAP, ONE, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.reading.findings import suggestion
from buildrunner.store.build_store import Document
from buildrunner.store.records import parse_instant

TEXT = "text"
ENUM = "enum"
BOOL = "bool"
NUMBER = "number"
INSTANT = "instant"
DURATION = "duration"
MESSAGE = "message"
KEYS = "keys"  # the whole map

PRESENT = "*"

_KINDS = {
    "str": TEXT,
    "bytes": TEXT,
    "bool": BOOL,
    "int": NUMBER,
    "Int64": NUMBER,
    "datetime": INSTANT,
    "timedelta": DURATION,
}
_ALIASES = {
    "build_id": "id",
    "buildId": "id",
    "trigger_id": "buildTriggerId",
    "triggerId": "buildTriggerId",
}
_ORDERED = frozenset({TEXT, NUMBER, INSTANT, DURATION})
_ZEROS: dict[str, str | int | bool] = {TEXT: "", BOOL: False, NUMBER: 0}
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")


class FilterField(msgspec.Struct, frozen=True):
    """A field that a filter may name.

    Attributes:
        path: keys of the document.
        kind: the kind of its values, such as `TEXT`.
        members: the names of an enum.
        zero: the value that it counts as if unset; None if it then has no value.
    """

    path: tuple[str, ...]
    kind: str
    members: tuple[str, ...] = ()
    zero: str | int | bool | None = None


class Operand(msgspec.Struct, frozen=True):
    """A value to compare with.

    Attributes:
        kind: kind of the field.
        value: text, a number, microseconds (since 1970, for an instant), or a truth value.
        zero: the value that an unset field counts as; None if it then has no value.
        present: any value matches (``field:*``).
    """

    kind: str
    value: str | int | bool
    zero: str | int | bool | None = None
    present: bool = False


def field_of(written: str) -> FilterField:
    """Return the field of a path.

    Raises:
        ValueError: the path names no field. The message suggests a similar name, if any.
    """
    from buildrunner.spec.model.build import Build

    names = written.split(".")
    names[0] = _ALIASES.get(names[0], names[0])
    message: type[Message] = Build
    path: list[str] = []
    singular = True
    while True:
        field = _named(message, names.pop(0), written)
        path.append(field.json)
        singular = singular and field.form == ONE and not field.optional
        if field.form == MAP:
            if not names:
                return FilterField(tuple(path), KEYS)
            # Keys of our maps have no dots. A dot in the path belongs to the key, and is no error.
            path.append(".".join(names) if field.type_name in SCALARS else names.pop(0))
            names = names if field.type_name not in SCALARS else []
        found = None if field.type_name in SCALARS else type_named(field.type_name, message)
        if found is None or issubclass(found, enum.Enum):
            if names:
                raise ValueError(f'"{written}" goes below "{".".join(path)}", which has no fields')
            return _leaf(tuple(path), field, found, singular=singular)
        if not names:
            return FilterField(tuple(path), MESSAGE)
        message = found


def _named(message: type[Message], name: str, written: str) -> Field:
    known = {spelling: one for one in fields_of(message) for spelling in (one.name, one.json)}
    if name not in known:
        hint = suggestion(name, known)
        raise ValueError(f'builds have no field "{written}"' + (f"; {hint}" if hint else ""))
    return known[name]


def _leaf(
    path: tuple[str, ...], field: Field, found: type[enum.Enum] | None, *, singular: bool
) -> FilterField:
    if found is not None:
        return FilterField(path, ENUM, members=tuple(found.__members__))
    kind = _KINDS[field.type_name]
    return FilterField(path, kind, zero=_ZEROS.get(kind) if singular else None)


def operand_of(field: FilterField, operator: str, text: str, *, any_value: bool) -> Operand:
    """Return the value that a term compares with.

    Args:
        field: the field.
        operator: the operator.
        text: the value without quotes.
        any_value: the value is a bare ``*``.

    Raises:
        ValueError: the field has no such values, or does not support the operator.
    """
    name = ".".join(field.path)
    if operator == ":" and any_value:
        return Operand(field.kind, "", present=True)
    if field.kind == MESSAGE:
        raise ValueError(f'"{name}" has fields of its own: name one, or write {name}:*')
    if field.kind == KEYS and operator != ":":
        raise ValueError(f'"{name}" has keys: write {name}.KEY{operator}"..." or {name}:KEY')
    if operator in ("<", "<=", ">", ">=") and field.kind not in _ORDERED:
        raise ValueError(f'"{name}" has no order: compare it with = or !=')
    if field.kind == ENUM and text not in field.members:
        hint = suggestion(text, field.members)
        raise ValueError(f'"{name}" is never "{text}"' + (f"; {hint}" if hint else ""))
    try:
        value = read_value(field.kind, text)
    except ValueError as error:
        raise ValueError(f'"{name}" is {_WANTED[field.kind]}, not "{text}"') from error
    return Operand(field.kind, value, field.zero)


_WANTED = {
    BOOL: "true or false",
    NUMBER: "a whole number",
    INSTANT: 'a time as in "2024-05-31T12:00:00Z"',
    DURATION: 'a number of seconds as in "600s"',
}


def read_value(kind: str, raw: object) -> str | int | bool:
    """Return a value of a document or a filter in the comparable form of its kind.

    Raises:
        ValueError: the value is not of that kind.
    """
    match kind:
        case "bool":
            if raw in ("true", "false", True, False):
                return raw in ("true", True)
        case "number":
            return int(str(raw)) if len(str(raw)) < 40 else _refuse(raw)
        case "instant":
            return parse_instant(str(raw))
        case "duration":
            return _microseconds(str(raw))
        case _:
            return str(raw)
    return _refuse(raw)


def _microseconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        return _refuse(text)
    sign, seconds, fraction = match.groups()
    length = int(seconds) * 1_000_000 + int((fraction or "").ljust(6, "0")[:6])
    return -length if sign else length


def _refuse(raw: object) -> int:
    raise ValueError(repr(raw)[:100])


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
    """A bare value: some text of the build contains it, ignoring case."""

    text: str


class Not(msgspec.Struct, frozen=True):
    """A filter that matches if ``of`` does not."""

    of: Expression


class And(msgspec.Struct, frozen=True):
    """A filter that matches if all of its parts do; at least two."""

    of: tuple[Expression, ...]


class Or(msgspec.Struct, frozen=True):
    """A filter that matches if any of its parts does; at least two."""

    of: tuple[Expression, ...]


Expression: TypeAlias = "Term | Anywhere | Not | And | Or"


def parse_filter(text: str) -> Expression | None:
    """Return the expression of a filter; None for an empty one.

    Raises:
        FilterError: the filter is too long, has a syntax error or a wrong value, or names an
            unknown field. The error has the position.
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
# The value after an operator may have colons: a time, an image.
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
    """A recursive descent parser."""

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


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    ":": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def matches(expression: Expression | None, document: Document) -> bool:
    """Return whether a build matches a filter; None matches all."""
    match expression:
        case None:
            return True
        case Term():
            return _holds(expression, document)
        case Anywhere():
            wanted = expression.text.casefold()
            return any(wanted in text.casefold() for text in _texts(document))
        case Not():
            return not matches(expression.of, document)
        case And():
            return all(matches(part, document) for part in expression.of)
        case Or():
            return any(matches(part, document) for part in expression.of)
    assert_never(expression)


def _holds(term: Term, document: Document) -> bool:
    operand = term.operand
    raw = list(_at(document, term.path))
    if operand.present:
        return any(value not in ("", None, [], {}) for value in raw)
    if operand.kind in (KEYS, MESSAGE):
        return any(operand.value in value for value in raw if isinstance(value, dict))
    values = [value for one in raw for value in _value(operand.kind, one)]
    if not values and operand.zero is not None:
        values = [operand.zero]
    if term.operator == "!=":
        return all(value != operand.value for value in values)
    compare = COMPARISONS[term.operator]
    return any(compare(value, operand.value) for value in values)


def _at(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield all values at a path, also those in lists."""
    if isinstance(value, list):
        for element in value:
            yield from _at(element, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _value(kind: str, raw: object) -> Iterator[str | int | bool]:
    try:
        yield read_value(kind, raw)
    except ValueError:
        return  # a document of another version: a value of another kind matches nothing


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def quoted(text: str) -> str:
    """Return ``text`` as a string literal of a filter."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
