"""The model holds every field and value of the official google-cloud-build package."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from google.cloud.devtools import cloudbuild_v1
from google.protobuf.descriptor import FieldDescriptor

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import LIST, MAP, ONE, SCALARS, Message, fields_of, type_named
from buildrunner.spec.model.stands import Stand, stand_of, unmodelled
from buildrunner.spec.model.trigger import BuildTrigger

OFFICIAL = {Build: cloudbuild_v1.Build, BuildTrigger: cloudbuild_v1.BuildTrigger}


def official_descriptor(message: type[Message]) -> Any:
    """The protobuf descriptor of Build or BuildTrigger."""
    official: Any = OFFICIAL[message]
    return official.pb(official()).DESCRIPTOR


def pairs() -> dict[str, tuple[type[Message], Any]]:
    """Each of our messages with its official descriptor, found by walking both side by side."""
    found: dict[str, tuple[type[Message], Any]] = {}
    pending: list[tuple[type[Message], Any]] = [
        (message, official_descriptor(message)) for message in OFFICIAL
    ]
    while pending:
        ours, descriptor = pending.pop()
        if descriptor.full_name in found:
            continue
        found[descriptor.full_name] = (ours, descriptor)
        for field in fields_of(ours):
            theirs = field_named(descriptor, field.json)
            if theirs is None or field.type_name in SCALARS:
                continue
            kind = type_named(field.type_name, ours)
            if issubclass(kind, Message):
                pending.append((kind, value_type(theirs)))
    return found


def enum_pairs() -> dict[str, tuple[type[enum.Enum], Any]]:
    """Each of our enums with its official descriptor."""
    found: dict[str, tuple[type[enum.Enum], Any]] = {}
    for ours, descriptor in pairs().values():
        for field in fields_of(ours):
            theirs = field_named(descriptor, field.json)
            if theirs is None or field.type_name in SCALARS:
                continue
            kind = type_named(field.type_name, ours)
            if issubclass(kind, enum.Enum):
                found[theirs.enum_type.full_name] = (kind, theirs.enum_type)
    return found


def reachable() -> dict[str, Any]:
    """Every official message that Build or BuildTrigger can hold, map entries aside."""
    found: dict[str, Any] = {}
    pending = [official_descriptor(message) for message in OFFICIAL]
    while pending:
        descriptor = pending.pop()
        if descriptor.full_name in found or descriptor.full_name.startswith("google.protobuf."):
            continue
        if not descriptor.GetOptions().map_entry:
            found[descriptor.full_name] = descriptor
        pending.extend(field.message_type for field in descriptor.fields if field.message_type)
    return found


def field_named(descriptor: Any, json_name: str) -> Any:
    """The official field with this name in JSON; None when there is none."""
    return next((field for field in descriptor.fields if field.json_name == json_name), None)


def is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def value_type(field: Any) -> Any:
    """The message that a field, or a value of a map field, holds."""
    if is_map(field):
        return field.message_type.fields_by_name["value"].message_type
    return field.message_type


PAIRS = pairs()
ENUMS = enum_pairs()

TYPES = {
    FieldDescriptor.TYPE_STRING: "str",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int",
    FieldDescriptor.TYPE_INT64: "Int64",
    FieldDescriptor.TYPE_BYTES: "bytes",
}
WELL_KNOWN = {
    "google.protobuf.Timestamp": "datetime",
    "google.protobuf.Duration": "timedelta",
}


def test_every_official_message_has_a_counterpart() -> None:
    assert set(reachable()) == set(PAIRS)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_official_field_has_a_stand(name: str) -> None:
    ours, descriptor = PAIRS[name]
    missing = [
        field.json_name for field in descriptor.fields if stand_of(ours, field.json_name) is None
    ]
    assert missing == []


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_fields_that_only_we_have_are_marked_as_newer(name: str) -> None:
    ours, descriptor = PAIRS[name]
    official = {field.json_name for field in descriptor.fields}
    extra = {field.name for field in fields_of(ours) if field.json not in official}
    assert extra == set(ours.NEWER)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_field_has_the_official_name_type_and_presence(name: str) -> None:
    ours, descriptor = PAIRS[name]
    for field in fields_of(ours):
        official = field_named(descriptor, field.json)
        if official is None:
            continue
        # The Python package adds an underscore to names that Python reserves.
        assert official.name.rstrip("_") == field.name
        form = MAP if is_map(official) else LIST if official.is_repeated else ONE
        assert field.form == form, field.name
        item = official.message_type.fields_by_name["value"] if form == MAP else official
        if item.type in TYPES:
            assert field.type_name == TYPES[item.type], field.name
        if item.message_type is not None and item.message_type.full_name in WELL_KNOWN:
            assert field.type_name == WELL_KNOWN[item.message_type.full_name], field.name
        assert field.optional == (official.has_presence and form == ONE), field.name


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_oneof_is_the_official_one(name: str) -> None:
    ours, descriptor = PAIRS[name]
    newer = set(ours.NEWER)
    official = {
        oneof.name: {field.name.rstrip("_") for field in oneof.fields}
        for oneof in descriptor.oneofs
    }
    assert {name: set(group) - newer for name, group in ours.ONEOFS.items()} == official


@pytest.mark.parametrize("name", sorted(ENUMS))
def test_every_enum_has_the_official_names_and_numbers(name: str) -> None:
    ours, descriptor = ENUMS[name]
    assert {member.name: member.value for member in ours} == {
        value.name: value.number for value in descriptor.values
    }


def test_what_is_refused_or_recorded_says_why() -> None:
    silent = []
    for ours, _ in PAIRS.values():
        for field in fields_of(ours):
            verdict = stand_of(ours, field.json)
            assert verdict is not None
            needs_reason = verdict.stand in (Stand.REFUSED, Stand.RECORDED)
            if needs_reason and not verdict.reason:
                silent.append(f"{ours.__name__}.{field.json}")
    silent += [key for key, verdict in unmodelled().items() if not verdict.reason]
    assert silent == []
