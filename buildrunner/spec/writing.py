"""Encodes messages as protobuf's JSON, and as YAML; converts stored documents to other JSON forms.

camelCase keys, durations as "600s", 64-bit integers as strings, bytes as base64, times in RFC 3339
with a Z, unset fields omitted.

Source: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named

Writer = Callable[[Any], Any]
Entry = tuple[str, str, Any, Writer | None]


_MICROSECOND = timedelta(microseconds=1)

_writers: dict[tuple[type[Message], bool, bool], Writer] = {}


def encode_message(
    message: Message, *, enum_numbers: bool = False, published_only: bool = False
) -> dict[str, Any]:
    """Return ``message`` as a value for `json.dumps`.

    Args:
        message: the message.
        enum_numbers: write enums as numbers, else as names.
        published_only: omit fields that the published client does not know (`Message.NEWER`); its
            poller of operations refuses such fields.
    """
    encoded: dict[str, Any] = _message_writer(type(message), enum_numbers, published_only)(message)
    return encoded


def encode_duration(length: timedelta) -> str:
    """Return seconds with 0, 3 or 6 decimals, as few as needed, and an ``s``: "1.500s"."""
    microseconds = length // _MICROSECOND
    sign = "-" if microseconds < 0 else ""
    seconds, fraction = divmod(abs(microseconds), 1_000_000)
    return f"{sign}{seconds}{_decimals(fraction)}s"


def encode_instant(instant: datetime) -> str:
    """Return a time in the form of RFC 3339, in UTC, with 0, 3 or 6 decimals, as few as needed."""
    utc = instant.astimezone(UTC)
    whole = utc.replace(tzinfo=None, microsecond=0).isoformat()
    return f"{whole}{_decimals(utc.microsecond)}Z"


def encode_bytes(value: bytes) -> str:
    """Return base64 in the standard alphabet, padded."""
    import base64

    return base64.b64encode(value).decode("ascii")


def _decimals(microseconds: int) -> str:
    if not microseconds:
        return ""
    digits = f"{microseconds:06d}"
    return f".{digits[:3]}" if digits.endswith("000") else f".{digits}"


# None for a native type of JSON.
_SCALAR_WRITERS: dict[str, Writer | None] = {
    "str": None,
    "bool": None,
    "int": None,
    "Int64": str,
    "bytes": encode_bytes,
    "datetime": encode_instant,
    "timedelta": encode_duration,
}


def _message_writer(message: type[Message], enum_numbers: bool, published_only: bool) -> Writer:
    key = (message, enum_numbers, published_only)
    known = _writers.get(key)
    if known is None:
        known = _writers[key] = _compile(*key)
    return known


def _compile(message: type[Message], enum_numbers: bool, published_only: bool) -> Writer:
    entries: list[Entry] = []
    for field in fields_of(message):
        if not (published_only and field.name in message.NEWER):
            writer = _field_writer(field, message, enum_numbers, published_only)
            entries.append((field.name, field.json, field.default, writer))

    def write(value: Message) -> dict[str, Any]:
        encoded = {}
        for name, json, default, writer in entries:
            part = getattr(value, name)
            if part is default or part == default:
                continue
            encoded[json] = part if writer is None else writer(part)
        return encoded

    return write


def _field_writer(
    field: Field, message: type[Message], enum_numbers: bool, published_only: bool
) -> Writer | None:
    item: Writer | None
    if field.type_name in SCALARS:
        item = _SCALAR_WRITERS[field.type_name]
    else:
        item = _late_writer(field.type_name, message, enum_numbers, published_only)
    if field.form == LIST:
        return list if item is None else lambda values: [item(value) for value in values]
    if field.form == MAP:
        if item is None:
            return dict
        return lambda values: {name: item(value) for name, value in values.items()}
    return item


def _late_writer(
    type_name: str, beside: type[Message], enum_numbers: bool, published_only: bool
) -> Writer:
    """Return a writer that is compiled, and whose class is imported, at its first use."""
    compiled: Writer | None = None

    def write(value: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            found = type_named(type_name, beside)
            if issubclass(found, enum.Enum):
                compiled = _enum_number if enum_numbers else _enum_name
            else:
                compiled = _message_writer(found, enum_numbers, published_only)
        return compiled(value)

    return write


def _enum_number(value: enum.Enum) -> int:
    number: int = value.value
    return number


def _enum_name(value: enum.Enum) -> str:
    return value.name


_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _BlockDumper(_Dumper):  # type: ignore[misc] # its base is only known at run time
    """Writes lists and mappings in block style, and multi-line texts as literal blocks."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_BlockDumper.add_representer(str, _represent_text)


def yaml_text(value: object) -> str:
    """Return a JSON value as one YAML document."""
    text: str = yaml.dump(
        value,
        Dumper=_BlockDumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=1_000_000,
    )
    return text


Rewriter = Callable[[Any], Any]

_rewriters: dict[tuple[type[Message], bool, bool], Rewriter] = {}


def rewritten(
    message: type[Message],
    document: dict[str, Any],
    *,
    enum_numbers: bool = False,
    published_only: bool = False,
) -> dict[str, Any]:
    """Return ``document`` in the form that a client requests.

    Args:
        message: type of the document.
        document: the document in camelCase; not changed.
        enum_numbers: write enums as numbers instead of names.
        published_only: omit fields that the published client (3.43.0) does not know: it refuses
            operations with unknown fields.
    """
    if not (enum_numbers or published_only):
        return document
    result: dict[str, Any] = _rewriter(message, enum_numbers, published_only)(document)
    return result


def _rewriter(message: type[Message], enum_numbers: bool, published_only: bool) -> Rewriter:
    key = (message, enum_numbers, published_only)
    known = _rewriters.get(key)
    if known is None:
        known = _rewriters[key] = _compile_rewriter(message, enum_numbers, published_only)
    return known


def _compile_rewriter(message: type[Message], enum_numbers: bool, published_only: bool) -> Rewriter:
    parts: dict[str, Rewriter | None] = {}
    for field in fields_of(message):
        if not (published_only and field.name in message.NEWER):
            parts[field.json] = _field_rewriter(field, message, enum_numbers, published_only)

    def rewrite(document: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for name, value in document.items():
            if name not in parts:
                if not published_only:
                    result[name] = value
                continue
            part = parts[name]
            result[name] = value if part is None else part(value)
        return result

    return rewrite


def _field_rewriter(
    field: Field, message: type[Message], enum_numbers: bool, published_only: bool
) -> Rewriter | None:
    if field.type_name in SCALARS:
        return None
    found = type_named(field.type_name, message)
    if issubclass(found, enum.Enum):
        if not enum_numbers:
            return None
        numbers = {name: member.value for name, member in found.__members__.items()}

        def item(value: Any) -> Any:
            return numbers.get(value, value)

    else:
        inner = found

        def item(value: Any) -> Any:
            return _rewriter(inner, enum_numbers, published_only)(value)

    if field.form == LIST:
        return lambda values: [item(value) for value in values]
    if field.form == MAP:
        return lambda values: {name: item(value) for name, value in values.items()}
    return item
