"""A document as templates see it: what is unset is its type's zero, what is unknown fails."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named

_ZEROS: dict[str, Any] = {"bool": False, "int": 0, "Int64": 0}


class MessageView(dict[str, Any]):
    """A message's JSON: what is set, and on request what is not. Both spellings of a field will do.

    Args:
        message: what it is.
        document: in camelCase.
    """

    def __init__(self, message: type[Message], document: Mapping[str, Any]) -> None:
        self._message = message
        fields = {field.json: field for field in fields_of(message)}
        super().__init__(
            {name: _view(fields.get(name), message, value) for name, value in document.items()}
        )

    @property
    def kind_name(self) -> str:
        """Name of the message."""
        return self._message.__name__.rstrip("_")

    def __missing__(self, key: str) -> Any:
        for field in fields_of(self._message):
            if key in (field.json, field.name):
                return self[field.json] if field.json in self else _zero(field, self._message)
        raise KeyError(key)


def _view(field: Field | None, message: type[Message], value: Any) -> Any:
    if field is None or field.type_name in SCALARS:
        return value
    kind = type_named(field.type_name, message)
    if issubclass(kind, enum.Enum):
        return value
    if field.form == LIST:
        return [MessageView(kind, one) for one in value]
    if field.form == MAP:
        return {name: MessageView(kind, one) for name, one in value.items()}
    return MessageView(kind, value)


def _zero(field: Field, message: type[Message]) -> Any:
    if field.form == LIST:
        return []
    if field.form == MAP:
        return {}
    if field.type_name in SCALARS:
        return _ZEROS.get(field.type_name, "")
    kind = type_named(field.type_name, message)
    return next(iter(kind)).name if issubclass(kind, enum.Enum) else MessageView(kind, {})
