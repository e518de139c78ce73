"""Our JSON is protobuf's JSON: what one writes the other reads, both ways."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime, timedelta
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
from buildrunner.spec.reading.decode import decode_message, load_build
from buildrunner.spec.writing import encode_message, yaml_text

OFFICIAL: dict[type[Message], Any] = {
    Build: cloudbuild_v1.Build,
    BuildTrigger: cloudbuild_v1.BuildTrigger,
}

LONGEST = timedelta(seconds=315_576_000_000)

TEXT = st.one_of(
    st.sampled_from(["", "a", "yes", "1.10", "~", "0644", "2024-01-01", "a: b", "- x", "#", "é☃"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["line\nline\n", "  lead\n", "trail \n\n", "\ttab\n", "x\r\ny", "\x85", "\u2028"]
    ),
)
SCALAR_STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "bool": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "Int64": st.integers(-(2**63), 2**63 - 1),
    "bytes": st.binary(max_size=8),
    "datetime": st.datetimes(timezones=st.just(UTC)),
    "timedelta": st.timedeltas(
        timedelta(seconds=-315_576_000_000), timedelta(seconds=315_576_000_000)
    ),
}


def instances(message: type[Message]) -> st.SearchStrategy[Any]:
    """Messages with any subset of their published fields set, oneofs respected."""
    fields = [field for field in fields_of(message) if field.name not in message.NEWER]
    rivals = {
        member: group for group in message.ONEOFS.values() for member in group if len(group) > 1
    }

    @st.composite
    def draw_message(draw: Any) -> Any:
        chosen = draw(
            st.lists(st.sampled_from(fields), unique_by=lambda field: field.name, max_size=4)
        )
        values: dict[str, Any] = {}
        for field in chosen:
            if not any(rival in values for rival in rivals.get(field.name, ())):
                values[field.name] = draw(value_of(field, message))
        return message(**values)

    return draw_message()


def value_of(field: Field, message: type[Message]) -> st.SearchStrategy[Any]:
    if field.type_name in SCALARS:
        item = SCALAR_STRATEGIES[field.type_name]
    else:
        kind = type_named(field.type_name, message)
        item = st.sampled_from(list(kind)) if issubclass(kind, enum.Enum) else instances(kind)
    if field.form == LIST:
        return st.lists(item, max_size=2).map(tuple)
    if field.form == MAP:
        return st.dictionaries(TEXT, item, max_size=2)
    return item


QUICK = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def errors_of(loaded: Any) -> list[Any]:
    """Errors, apart from fields that exist but are refused."""
    return [
        problem
        for problem in loaded.problems
        if problem.severity is Severity.ERROR and problem.rule != "unsupported-field"
    ]


@pytest.mark.parametrize("kind", [Build, BuildTrigger])
def test_what_we_write_the_official_parser_reads_and_writes_back_alike(kind: type[Message]) -> None:
    official_kind = OFFICIAL[kind]

    @QUICK
    @given(instances(kind), st.booleans())
    def round_trip(message: Message, numbers: bool) -> None:
        official = official_kind.pb(official_kind())
        json_format.ParseDict(encode_message(message, enum_numbers=numbers), official)
        theirs = json_format.MessageToDict(official, use_integers_for_enums=numbers)
        assert theirs == encode_message(message, enum_numbers=numbers)
        loaded = decode_message(kind, theirs)
        assert errors_of(loaded) == []
        assert loaded.value == message

    round_trip()


@pytest.mark.parametrize("kind", [Build, BuildTrigger])
def test_the_proto_spelling_is_read_alike(kind: type[Message]) -> None:
    official_kind = OFFICIAL[kind]

    @QUICK
    @given(instances(kind))
    def round_trip(message: Message) -> None:
        official = official_kind.pb(official_kind())
        json_format.ParseDict(encode_message(message), official)
        # A reserved name has an underscore in the Python package only; the service has none.
        theirs = json.loads(
            json_format.MessageToJson(official, preserving_proto_field_name=True),
            object_pairs_hook=lambda pairs: {
                key.rstrip("_") if key in ("dir_", "object_", "type_") else key: value
                for key, value in pairs
            },
        )
        assert decode_message(kind, theirs).value == message

    round_trip()


@QUICK
@given(instances(Build))
def test_yaml_is_read_back_to_an_equal_build(build: Build) -> None:
    kept = Build(
        **{
            field.name: getattr(build, field.name)
            for field in fields_of(Build)
            if field.name in ("steps", "options", "substitutions", "tags", "images", "timeout")
        }
    )
    loaded = load_build(yaml_text(encode_message(kept)).encode(), file="cloudbuild.yaml")
    assert errors_of(loaded) == []
    again = load_build(yaml_text(encode_message(loaded.build)).encode(), file="cloudbuild.yaml")
    assert again.build == loaded.build
    assert loaded.build.substitutions == kept.substitutions
    assert [step.script for step in loaded.build.steps] == [step.script for step in kept.steps]


@pytest.mark.parametrize(
    ("length", "written"),
    [
        (timedelta(0), "0s"),
        (timedelta(seconds=600), "600s"),
        (timedelta(milliseconds=1500), "1.500s"),
        (timedelta(microseconds=1), "0.000001s"),
        (timedelta(microseconds=-1_500_000), "-1.500s"),
    ],
)
def test_durations_are_written_as_protobuf_does(length: timedelta, written: str) -> None:
    official_kind = OFFICIAL[Build]
    official = official_kind.pb(official_kind())
    official.timeout.FromTimedelta(length)
    assert json_format.MessageToDict(official) == {"timeout": written}
    assert encode_message(Build(timeout=length)) == {"timeout": written}


@pytest.mark.parametrize(
    ("instant", "written"),
    [
        (datetime(2024, 5, 31, 12, tzinfo=UTC), "2024-05-31T12:00:00Z"),
        (datetime(2024, 5, 31, 12, 0, 0, 250_000, tzinfo=UTC), "2024-05-31T12:00:00.250Z"),
        (datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "0001-01-01T00:00:00.000001Z"),
    ],
)
def test_instants_are_written_as_protobuf_does(instant: datetime, written: str) -> None:
    official_kind = OFFICIAL[Build]
    official = official_kind.pb(official_kind())
    official.create_time.FromDatetime(instant)
    assert json_format.MessageToDict(official) == {"createTime": written}
    assert encode_message(Build(create_time=instant)) == {"createTime": written}
