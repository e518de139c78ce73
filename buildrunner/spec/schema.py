"""The JSON Schema of configs and triggers, for editors.

It describes what `decode` accepts: both spellings of every key, and one value in place of a list.
It can't express two rules: on duplicate values, and on values that only look like strings in YAML.

Source: https://json-schema.org/draft/2020-12
"""

from __future__ import annotations

import enum
from typing import Any

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.descriptions import all_descriptions
from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.model.stands import Stand, stand_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_NULL: dict[str, Any] = {"type": "null"}
_DECIMAL = r"^-?[0-9]{1,20}(\.0{1,20})?$"
_SCALAR_SCHEMAS: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {
        "anyOf": [
            {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
            {"type": "string", "pattern": _DECIMAL},
        ]
    },
    "Int64": {
        "anyOf": [
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            {"type": "string", "pattern": _DECIMAL},
        ]
    },
    "bytes": {
        "type": "string",
        "contentEncoding": "base64",
        "pattern": r"^[A-Za-z0-9+/_\-\r\n]*={0,2}[\r\n]*$",
    },
    "timedelta": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
    "datetime": {"type": "string", "format": "date-time"},
}


def build_schema() -> dict[str, Any]:
    """Return the schema of a build config."""
    return _document(Build, "Cloud Build config", required="steps")


def trigger_schema() -> dict[str, Any]:
    """Return the schema of a build trigger."""
    from buildrunner.spec.model.trigger import BuildTrigger

    return _document(BuildTrigger, "Cloud Build trigger")


def _document(root: type[Message], title: str, required: str = "") -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    texts = all_descriptions()
    pending = [root]
    while pending:
        message = pending.pop()
        name = _name(message)
        if name not in definitions:
            definitions[name] = _message_schema(message, texts)
            pending.extend(_messages_under(message))
    document: dict[str, Any] = {
        "$schema": DIALECT,
        "title": title,
        "allOf": [{"$ref": f"#/$defs/{_name(root)}"}],
    }
    if required:
        document["required"] = [required]
    document["$defs"] = dict(sorted(definitions.items()))
    return document


def _messages_under(message: type[Message]) -> list[type[Message]]:
    found = [
        type_named(field.type_name, message)
        for field in fields_of(message)
        if field.type_name not in SCALARS and field.name not in message.OUTPUT_ONLY
    ]
    return [one for one in found if issubclass(one, Message)]


def _message_schema(message: type[Message], texts: dict[str, str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    exclusions: list[dict[str, Any]] = []
    for field in fields_of(message):
        schema = _field_schema(field, message, texts)
        properties[field.json] = properties[field.name] = schema
        if field.json != field.name:
            exclusions.append({"not": {"required": [field.json, field.name]}})
    exclusions.extend(
        _at_most_one(members, message) for members in message.ONEOFS.values() if len(members) > 1
    )
    schema = {
        "type": "object",
        "description": (message.__doc__ or "").strip(),
        "properties": properties,
        "additionalProperties": False,
    }
    if exclusions:
        schema["allOf"] = exclusions
    return schema


def _at_most_one(members: tuple[str, ...], message: type[Message]) -> dict[str, Any]:
    """Return a rule that no two members may be set; null is unset."""
    json_names = dict(zip(message.__struct_fields__, message.__struct_encode_fields__, strict=True))
    is_set = []
    for member in members:
        spellings = dict.fromkeys((json_names[member], member))
        is_set.append(
            {
                "anyOf": [
                    {"required": [name], "properties": {name: {"not": _NULL}}} for name in spellings
                ]
            }
        )
    nothing = {"not": {"anyOf": is_set}}
    return {"oneOf": [*is_set, nothing]}


def _field_schema(field: Field, message: type[Message], texts: dict[str, str]) -> dict[str, Any]:
    verdict = stand_of(message, field.json)
    text = texts.get(f"{message.__name__}.{field.json}", "")
    if verdict is not None and verdict.stand is Stand.REFUSED:
        return {"description": f"{text} Not supported: {verdict.reason}.", "type": "null"}
    if field.name in message.OUTPUT_ONLY:
        return {"description": f"{text} Set by the service; ignored in a config.", "readOnly": True}
    item = _type_schema(field, message)
    if field.form == LIST:
        value = [{"type": "array", "items": item}, *_as_one_value(item, field, message)]
    elif field.form == MAP:
        # In a map of strings, null means the empty string.
        values = {"anyOf": [item, _NULL]} if field.type_name == "str" else item
        value = [{"type": "object", "additionalProperties": values}]
    else:
        value = [item]
    schema: dict[str, Any] = {"description": text, "anyOf": [*value, _NULL]}
    if verdict is not None and verdict.stand is Stand.RECORDED:
        schema["description"] = f"{text} (Recorded: {verdict.reason}.)"
    return schema


def _as_one_value(item: dict[str, Any], field: Field, message: type[Message]) -> list[Any]:
    """Return the schemas of one value in place of a list: empty for messages."""
    if field.type_name not in SCALARS and issubclass(type_named(field.type_name, message), Message):
        return []
    return [item]


def _type_schema(field: Field, message: type[Message]) -> dict[str, Any]:
    if field.type_name in SCALARS:
        return _SCALAR_SCHEMAS[field.type_name]
    found = type_named(field.type_name, message)
    if issubclass(found, enum.Enum):
        numbers = [member.value for member in found]
        # Editors offer the values of the first list.
        return {"enum": [*found.__members__, *numbers, *(str(number) for number in numbers)]}
    return {"$ref": f"#/$defs/{_name(found)}"}


def _name(message: type[Message]) -> str:
    return message.__name__.rstrip("_")
