"""Stored documents as clients want them: enums as numbers, without what an old client refuses.

A document is a message in protobuf JSON form. It is rewritten as it stands, without being decoded:
answers with a thousand builds are made this way.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from buildrunner.spec.model.message import Message
from buildrunner.spec.model.shapes import LIST, MAP, SCALARS, Field, fields_of, type_named

Rewriter = Callable[[Any], Any]

_rewriters: dict[tuple[type[Message], bool, bool], Rewriter] = {}


def rewritten(
    message: type[Message],
    document: dict[str, Any],
    *,
    enum_numbers: bool = False,
    published_only: bool = False,
) -> dict[str, Any]:
    """``document`` in the form that a client asked for.

    Args:
        message: what the document is.
        document: in camelCase; not changed.
        enum_numbers: write enums as numbers instead of names.
        published_only: leave out what the published client (3.43.0) does not know: it refuses
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
        known = _rewriters[key] = _compile(message, enum_numbers, published_only)
    return known


def _compile(message: type[Message], enum_numbers: bool, published_only: bool) -> Rewriter:
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
