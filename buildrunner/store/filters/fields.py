"""What a filter's paths and values mean: the fields of the Build resource, and how they compare.

Paths are written in snake_case or camelCase; ``build_id`` and ``trigger_id`` are what gcloud calls
``id`` and ``buildTriggerId``. Lists on the way are walked into: a term holds for a list when it
holds for any element. Behind ``substitutions`` and the other maps stands a key.
"""

from __future__ import annotations

import enum
import re

import msgspec

from buildrunner.spec.model.message import MAP, ONE, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.reading.suggestions import suggestion
from buildrunner.store.records import parse_instant

TEXT = "text"
ENUM = "enum"
BOOL = "bool"
NUMBER = "number"
INSTANT = "instant"
DURATION = "duration"
MESSAGE = "message"
KEYS = "keys"  # a map as a whole

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
        kind: how its values compare.
        members: the names of an enum.
        zero: what it holds when it is unset; None where unset is something of its own.
    """

    path: tuple[str, ...]
    kind: str
    members: tuple[str, ...] = ()
    zero: str | int | bool | None = None


class Operand(msgspec.Struct, frozen=True):
    """A value to compare with.

    Attributes:
        kind: of the field.
        value: text, a number, microseconds (since 1970, for an instant), or a truth value.
        zero: what an unset field counts as; None for as nothing.
        present: any value at all will do (``field:*``).
    """

    kind: str
    value: str | int | bool
    zero: str | int | bool | None = None
    present: bool = False


def field_of(written: str) -> FilterField:
    """The field that a path names.

    Raises:
        ValueError: there is none; says so, and what may have been meant.
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
            # Keys of our maps hold no dots, but a stray one is the key's rather than an error.
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
    """The value that a term compares with.

    Args:
        field: what it is compared to.
        operator: how.
        text: the value without quotes.
        any_value: it is a bare ``*``.

    Raises:
        ValueError: the field has no such values, or can't be compared so.
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
    """A value of a document or a filter, in the form in which values of its kind compare.

    Raises:
        ValueError: it is none of that kind.
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
