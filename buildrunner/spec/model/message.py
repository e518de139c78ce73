"""The base class of every message of the Cloud Build API, and the fields of each message.

Decoder, encoder and JSON Schema all read `fields_of`, so a field is declared once: in its
class.
"""

from __future__ import annotations

import enum
import importlib
import sys
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

import msgspec
from msgspec import Struct

# A 64-bit integer of the API, a string in JSON. The decoder and the encoder distinguish it from
# ``int`` (32 bits) by the name in the annotation.
Int64: TypeAlias = int


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One message: frozen, snake_case in Python, camelCase in JSON.

    Repeated fields are tuples, maps are dicts (not to be changed), durations are `timedelta` and
    instants aware `datetime`, both exact to the microsecond. A field that is None is unset; other
    fields are unset if they have their default, as in protobuf.

    Attributes:
        ONEOFS: name of each oneof, with its members: at most one of them may be set.
        OUTPUT_ONLY: fields that only the service sets; callers' values are ignored.
        REFUSED: fields of the API that buildrunner can't honour, each with the reason and the
            alternative, for the user.
        NEWER: fields of the service's newer schema, which the published client (3.43.0) does not
            know; it refuses them in an operation.

    Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.builds
    """

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {}
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ()
    REFUSED: ClassVar[dict[str, str]] = {}
    NEWER: ClassVar[tuple[str, ...]] = ()


class TimeSpan(Message, frozen=True, kw_only=True):
    """The start and the end of a phase; a running phase has no end."""

    start_time: datetime | None = None
    end_time: datetime | None = None


# The module of each message or enum to which fields of other modules refer. A module is imported
# at the first such field of a config, so a small config does not load the others.
_HOMES = {
    "Build": "build",
    "TimeSpan": "message",
    "Artifacts": "results",
    "ApprovalConfig": "results",
    "BuildApproval": "results",
    "FailureInfo": "results",
    "HashType": "results",
    "Results": "results",
    "SourceProvenance": "results",
    "Warning_": "results",
    "ConnectedRepository": "source",
    "Dependency": "source",
    "GitConfig": "source",
    "GitSource": "source",
    "RepoSource": "source",
    "Source": "source",
    "StorageSource": "source",
    "StorageSourceManifest": "source",
}

SCALARS = frozenset({"str", "bool", "int", "Int64", "bytes", "datetime", "timedelta"})

ONE = "one"
LIST = "list"
MAP = "map"


class Field(Struct, frozen=True):
    """One field of a message.

    Attributes:
        name: name in Python and in the proto, snake_case.
        json: name in JSON, camelCase.
        form: ONE, LIST or MAP (whose keys are strings).
        type_name: one of SCALARS, or the name of a message or enum class.
        default: value if unset.
        optional: None means unset, and the type's own zero is a value.
    """

    name: str
    json: str
    form: str
    type_name: str
    default: Any
    optional: bool


def import_all() -> None:
    """Import every module of messages now, for a process that can't open files later."""
    for home in set(_HOMES.values()):
        importlib.import_module(f"buildrunner.spec.model.{home}")


_fields: dict[type[Message], tuple[Field, ...]] = {}


def fields_of(message: type[Message]) -> tuple[Field, ...]:
    """Return the fields of ``message``, in the order of its class."""
    known = _fields.get(message)
    if known is None:
        annotations: dict[str, str] = {}
        for base in reversed(message.__mro__):
            # Not inspect.get_annotations: importing inspect takes longer than reading a config.
            annotations.update(vars(base).get("__annotations__", {}))
        empty = message()
        known = _fields[message] = tuple(
            _field(name, json, annotations[name], getattr(empty, name))
            for name, json in zip(
                message.__struct_fields__, message.__struct_encode_fields__, strict=True
            )
        )
    return known


def type_named(name: str, beside: type[Message]) -> type[Message] | type[enum.Enum]:
    """Return the message or enum class ``name`` to which a field of ``beside`` refers."""
    home = _HOMES.get(name)
    if home is None:
        module = sys.modules[beside.__module__]
    else:
        module = importlib.import_module(f"buildrunner.spec.model.{home}")
    found: type[Message] | type[enum.Enum] = getattr(module, name)
    return found


def _field(name: str, json: str, annotation: str, default: Any) -> Field:
    optional = annotation.endswith(" | None")
    inner = annotation.removesuffix(" | None")
    form = ONE
    if inner.startswith("tuple["):
        form, inner = LIST, inner[len("tuple[") : -len(", ...]")]
    elif inner.startswith("dict["):
        form, inner = MAP, inner[len("dict[str, ") : -len("]")]
    return Field(name, json, form, inner, default, optional)
