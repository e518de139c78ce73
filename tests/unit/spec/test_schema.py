"""The JSON Schema says what the decoder does; every field has its sentence."""

from __future__ import annotations

import enum
import json
import re
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.cli import schema as command
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.descriptions import all_descriptions
from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.schema import build_schema, trigger_schema

SCHEMAS = {Build: build_schema(), BuildTrigger: trigger_schema()}
VALIDATORS = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in SCHEMAS.items()}


def agree(kind: type[Message], document: Any) -> bool:
    """Whether both accept, or both refuse; for a build with the steps that a schema demands."""
    accepted = VALIDATORS[kind].is_valid(document)
    return accepted == decode_message(kind, document, outputs=False).ok


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_schema_is_a_schema(kind: type[Message]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])


def every_message() -> list[type[Message]]:
    found: list[type[Message]] = []
    pending: list[type[Message]] = [Build, BuildTrigger]
    while pending:
        message = pending.pop()
        if message in found:
            continue
        found.append(message)
        for field in fields_of(message):
            if field.type_name not in SCALARS:
                kind = type_named(field.type_name, message)
                if issubclass(kind, Message):
                    pending.append(kind)
    return found


def test_every_field_has_one_sentence_and_every_sentence_a_field() -> None:
    fields = {
        f"{message.__name__}.{field.json}"
        for message in every_message()
        for field in fields_of(message)
    }
    texts = all_descriptions()
    assert set(texts) == fields
    for name, text in texts.items():
        assert text.endswith("."), name
        assert len(text) <= 100, name
        assert text[0].isupper() or text.startswith(("npm", "true")), name


GOOD = [
    "steps: [{name: a}]",
    "steps: [{name: a, args: foo}]",
    "steps: [{name: a, allow_exit_codes: [1, '2'], timeout: 1.5s, automap_substitutions: false}]",
    "{steps: [{name: a}], options: {logging: NONE, machine_type: 5, diskSizeGb: '100'}}",
    "{steps: [{name: a}], substitutions: {_A: b, _C: null}, timeout: null}",
    "{steps: [{name: a, exitCode: whatever}], id: [ignored]}",
    "{steps: [], source: {git_source: {url: a}, repoSource: null}}",
    "{steps: [], secrets: [{kmsKeyName: k, secretEnv: {A: aGk=}}]}",
]
BAD = [
    "steps: [{name: a, waitFor: ['-'], wait_for: null}]",
    "steps: {name: a}",
    "steps: [{name: 1}]",
    "steps: [{name: a, args: [1]}]",
    "steps: [{name: a, args: [null]}]",
    "steps: [{name: a, foo: b}]",
    "steps: [{name: a, timeout: 10m}]",
    "steps: [{name: a, allowFailure: 'true'}]",
    "steps: [{name: a, allowExitCodes: [1.5]}]",
    "steps: [{name: a, waitFor: [], wait_for: []}]",
    "{steps: [], options: {logging: none}}",
    "{steps: [], options: {logging: 99}}",
    "{steps: [], substitutions: {_A: 1}}",
    "{steps: [], source: {gitSource: {}, repo_source: {}}}",
    "{steps: [], remoteConfig: x}",
    "{steps: [], gitConfig: {http: {proxySecretVersionName: x}}}",
    "{steps: [], secrets: [{kmsKeyName: k, secretEnv: {A: 'not base64!'}}]}",
    "[]",
]


@pytest.mark.parametrize(("text", "good"), [(t, True) for t in GOOD] + [(t, False) for t in BAD])
def test_schema_and_decoder_agree_on_examples(text: str, good: bool) -> None:
    document = yaml.safe_load(text)
    assert VALIDATORS[Build].is_valid(document) is good
    assert agree(Build, document)


WRONG = st.sampled_from([1, True, "x", [], {}, [None], ["x"], [1], {"x": "y"}, 1.5, "1s", "NONE"])
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "str": st.sampled_from(["", "x", "true", "1"]),
    "bool": st.booleans(),
    "int": st.sampled_from([0, -1, 2**31 - 1, "7"]),
    "Int64": st.sampled_from([0, -1, 2**63 - 1, "7"]),
    "bytes": st.sampled_from(["", "aGk=", "aGk", "-_8="]),
    "datetime": st.just("2024-05-31T12:00:00Z"),
    "timedelta": st.sampled_from(["0s", "1.5s", "-3s"]),
}


def documents(message: type[Message]) -> st.SearchStrategy[Any]:
    """JSON for ``message``, mostly right, in either spelling."""

    @st.composite
    def draw_document(draw: Any) -> dict[str, Any]:
        chosen = draw(
            st.lists(
                st.sampled_from(fields_of(message)), unique_by=lambda field: field.name, max_size=4
            )
        )
        document = {}
        for field in chosen:
            spelling = draw(st.sampled_from([field.json, field.json, field.name]))
            document[spelling] = draw(mostly(value_of(field, message)))
        if draw(st.integers(0, 9)) == 0:
            document[draw(st.sampled_from(["foo", "Steps", "name ", "remoteConfig"]))] = "x"
        return document

    return draw_document()


def mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(
        lambda dice: st.none() if dice == 0 else WRONG if dice == 1 else right
    )


def value_of(field: Field, message: type[Message]) -> st.SearchStrategy[Any]:
    if field.name in message.OUTPUT_ONLY:
        return WRONG
    if field.type_name in SCALARS:
        item = RIGHT[field.type_name]
    else:
        kind = type_named(field.type_name, message)
        if issubclass(kind, enum.Enum):
            item = st.sampled_from([*kind.__members__, *(member.value for member in kind)])
        else:
            item = documents(kind)
    if field.form == LIST:
        return st.lists(item, max_size=2)
    if field.form == MAP:
        return st.dictionaries(st.sampled_from(["_A", "_B"]), item, max_size=2)
    return item


@pytest.mark.parametrize("kind", SCHEMAS)
def test_schema_and_decoder_agree_on_generated_documents(kind: type[Message]) -> None:
    @settings(
        max_examples=150,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(documents(kind))
    def check(document: dict[str, Any]) -> None:
        if kind is Build:
            document.setdefault("steps", [{"name": "a"}])
        assert agree(kind, document)

    check()


MAIN = "import sys; from buildrunner.cli.main import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("flags", "kind"), [([], Build), (["--trigger"], BuildTrigger)], ids=["build", "trigger"]
)
def test_the_command_prints_the_schema(flags: list[str], kind: type[Message]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "schema", *flags], capture_output=True, check=True
    )
    printed = json.loads(done.stdout)
    assert printed == SCHEMAS[kind]
    assert printed["title"] == ("Cloud Build trigger" if flags else "Cloud Build config")


def test_the_command_explains_how_editors_take_it() -> None:
    assert re.search(r"yaml-language-server: \$schema=", command._EPILOG)
