"""What the official parser accepts we accept, what it refuses we refuse or warn of."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from google.cloud.devtools import cloudbuild_v1
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.problem import Severity
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message

OFFICIAL: dict[type[Message], Any] = {
    Build: cloudbuild_v1.Build,
    BuildTrigger: cloudbuild_v1.BuildTrigger,
}

# Accepted with a warning, as gcloud does; the official parser refuses them.
LENIENT = {"scalar-for-list", "null-value"}
# Refused on purpose: the official parser takes any number for an enum, skips what is not base64,
# and does not know what we can't do here.
STRICT = {"enum-value", "base64", "unsupported-field"}

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": st.sampled_from(["", "x", 1, True]),
    "bool": st.sampled_from([True, False, "true", 1]),
    "int": st.sampled_from([0, -1, "7", 1.0, 1.5, "0x1", 2**31, "x"]),
    "Int64": st.sampled_from([0, -1, "7", 1.0, 1.5, "1.5", 2**63, "x"]),
    "bytes": st.sampled_from(["", "aGk=", "aGk", "-_8=", 1]),
    "datetime": st.sampled_from(
        ["2024-05-31T12:00:00Z", "2024-05-31T12:00:00.123456789+02:00", "2024-05-31", "x", 1,
         "2024-05-31 12:00:00Z", "2024-05-31T12:00:00"]
    ),
    "timedelta": st.sampled_from(["0s", "1.5s", "-3s", "3", "2m", 1, "x", ""]),
}  # fmt: skip
ANYTHING = st.sampled_from([None, 1, "x", {}, {"x": None}])
# The official parser in Python takes a list where a message is wanted for a list of its fields.
LISTS = st.sampled_from([[], [None], ["x"], [1]])


def documents(message: type[Message]) -> st.SearchStrategy[Any]:
    fields = [field for field in fields_of(message) if field.name not in message.NEWER]

    @st.composite
    def draw_document(draw: Any) -> dict[str, Any]:
        chosen = draw(
            st.lists(st.sampled_from(fields), unique_by=lambda field: field.name, max_size=3)
        )
        document = {}
        for field in chosen:
            dice = draw(st.integers(0, 9))
            strategy = value_of(field, message)
            if dice == 0:
                strategy = ANYTHING
            elif dice == 1 and field.form == LIST:
                strategy = LISTS
            document[field.json] = draw(strategy)
        return document

    return draw_document()


def value_of(field: Field, message: type[Message]) -> st.SearchStrategy[Any]:
    if field.type_name in SCALARS:
        item = VALUES[field.type_name]
    else:
        kind = type_named(field.type_name, message)
        if issubclass(kind, enum.Enum):
            item = st.sampled_from([*kind.__members__, *(one.value for one in kind), "NOPE"])
        else:
            item = documents(kind)
    if field.form == LIST:
        return st.lists(item, max_size=2)
    if field.form == MAP:
        return st.dictionaries(st.sampled_from(["_A", "_B"]), item, max_size=2)
    return item


def official_accepts(kind: type[Message], document: Any) -> bool:
    official = OFFICIAL[kind]
    try:
        json_format.ParseDict(document, official.pb(official()))
    except json_format.ParseError:
        return False
    return True


@pytest.mark.parametrize("kind", OFFICIAL)
def test_verdicts_are_those_of_the_official_parser(kind: type[Message]) -> None:
    @settings(
        max_examples=300,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(documents(kind))
    def check(document: dict[str, Any]) -> None:
        loaded = decode_message(kind, document)
        errors = {p.rule for p in loaded.problems if p.severity is Severity.ERROR}
        warnings = {p.rule for p in loaded.problems} - errors
        if official_accepts(kind, document):
            assert errors <= STRICT
        else:
            assert errors or warnings & LENIENT

    check()
