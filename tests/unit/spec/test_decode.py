"""Configs to builds: what every reader of Cloud Build accepts, refuses and warns of."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from buildrunner.problem import Severity
from buildrunner.spec.model.build import (
    Build,
    BuildOptions,
    BuildStep,
    LoggingMode,
    MachineSeries,
    MachineType,
    Secret,
    Status,
)
from buildrunner.spec.model.results import BuildApproval
from buildrunner.spec.model.source import GitSource, RepoSource, Source
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import LoadedBuild, decode_message, load_build, load_triggers
from buildrunner.spec.reading.findings import MAX_PROBLEMS
from buildrunner.spec.validation.check import check_build


def load(text: str, **options: Any) -> LoadedBuild:
    return load_build(text.encode(), file="cloudbuild.yaml", **options)


def found(loaded: Any) -> list[tuple[str, str, str]]:
    """Severity, rule and path of every problem."""
    return [(problem.severity.value, problem.rule, problem.path) for problem in loaded.problems]


GO_DURATION = [("error", "duration-unit", "steps[0].timeout")]


def step(fields: str) -> str:
    return f"steps: [{{name: a, {fields}}}]"


def test_a_config_without_problems_is_read_whole() -> None:
    loaded = load(
        """
steps:
- id: test
  name: python:3.11
  entrypoint: python
  args: ['-m', 'pytest', "-q"]
  env: [A=b, 'C=']
  waitFor: ['-']
  allowExitCodes: [1, 2]
  timeout: 1.5s
- name: bash
  script: |
    #!/bin/sh
    echo $HOME
substitutions: {_A: '1', _B: ''}
options: {machineType: E2_HIGHCPU_8, logging: 5, diskSizeGb: '100'}
timeout: 1200s
"""
    )
    assert loaded.problems == ()
    assert loaded.ok
    assert loaded.build == Build(
        steps=(
            BuildStep(
                id="test",
                name="python:3.11",
                entrypoint="python",
                args=("-m", "pytest", "-q"),
                env=("A=b", "C="),
                wait_for=("-",),
                allow_exit_codes=(1, 2),
                timeout=timedelta(seconds=1.5),
            ),
            BuildStep(name="bash", script="#!/bin/sh\necho $HOME\n"),
        ),
        substitutions={"_A": "1", "_B": ""},
        options=BuildOptions(
            machine_type=MachineType.E2_HIGHCPU_8,
            logging=LoggingMode.CLOUD_LOGGING_ONLY,
            disk_size_gb=100,
        ),
        timeout=timedelta(minutes=20),
    )


# Section 2.2 and 2.3 of the semantics: keys.
@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (step("wait_for: ['-']"), []),
        (step("wait_For: ['-']"), []),
        (step("wait_FOR: ['-']"), []),
        (step("waitfor: ['-']"), [("error", "unknown-field", "steps[0].waitfor")]),
        (step("foo: 1, bar: 2"), [("error", "unknown-field", "steps[0].foo"),
                                  ("error", "unknown-field", "steps[0].bar")]),
        ("options: {disk_size_gb: 1}", []),
        ("options: {disk_sizeGb: 1}", [("error", "unknown-field", "options.diskSizegb")]),
        (step("waitFor: ['-'], wait_for: ['-']"), [("error", "two-spellings", "steps[0].waitFor")]),
        (step("secret_env: [A]"), []),
        ("secrets: [{kms_key_name: k, secret_env: {MY_VAR: ''}}]", []),
        ("available_secrets: {inline: [{kmsKeyName: k, env_map: {MY_VAR: ''}}]}", []),
        ("substitutions: {_MY_VAR: x}", []),
        ("x-common: &c {a: 1}", [("error", "unknown-field", "x-common")]),
        ("options: !!map {logging: NONE}", []),
        ("options: !mine {logging: NONE}", [("error", "yaml-tag", "options")]),
        ("options: !!int x", [("error", "wrong-type", "options")]),
        ("options: {diskSizeGb: !!int x}", [("error", "wrong-type", "options.diskSizeGb")]),
        ("options: {diskSizeGb: !!int '7'}", []),
        ("[a]: 1", [("error", "wrong-type", "?")]),
        ("1: 1", [("error", "unknown-field", "1")]),
        ("~: 1", [("error", "unknown-field", "~")]),
    ],
)  # fmt: skip
def test_keys(text: str, problems: list[tuple[str, str, str]]) -> None:
    assert found(load(text)) == problems


@pytest.mark.parametrize(
    ("text", "line"),
    [("", 1), ("- a\n", 1), ("just text\n", 1), ("# c\n\n[]\n", 3), ("null", 1), ("42", 1)],
)
def test_a_config_that_is_no_mapping_is_refused(text: str, line: int) -> None:
    loaded = load(text)
    assert found(loaded) == [("error", "not-a-mapping", "")]
    assert loaded.problems[0].line == line
    assert loaded.build == Build()


def test_a_near_miss_gets_a_suggestion() -> None:
    loaded = load("steps: [{name: a, entryPoint: b, arg: [c], zzz: d}]\nsubstitution: {}\n")
    assert [problem.hint for problem in loaded.problems] == [
        "did you mean entrypoint?",
        "did you mean args?",
        "",
        "did you mean substitutions?",
    ]


def test_source_needs_to_be_allowed() -> None:
    text = "source: {gitSource: {url: 'https://example.com/a.git'}}"
    loaded = load(text)
    assert found(loaded) == [("error", "source-in-config", "source")]
    assert "--no-source" in loaded.problems[0].message
    allowed = load(text, allow_source=True)
    assert allowed.problems == ()
    assert allowed.build.source == Source(git_source=GitSource(url="https://example.com/a.git"))


# Section 2.4: scalars. The value is what the field of the step or options holds.
STRING, LIST, CODES = "steps[0].dir", "steps[0].args", "steps[0].allowExitCodes"


@pytest.mark.parametrize(
    ("field", "text", "value", "problems"),
    [
        ("dir", "a", "a", []),
        ("dir", "''", "", []),
        ("dir", "'1'", "1", []),
        ("dir", "!!str 1", "1", []),
        ("dir", "2m", "2m", []),
        ("dir", "1.2.3", "1.2.3", []),
        ("dir", "y", "y", []),
        ("dir", "1e3", "1e3", []),
        ("dir", "=", "=", []),
        ("dir", "null", "", []),
        ("dir", "", "", []),
        ("dir", "1", "", [("error", "unquoted-string", STRING)]),
        ("dir", "1.10", "", [("error", "unquoted-string", STRING)]),
        ("dir", "true", "", [("error", "unquoted-string", STRING)]),
        ("dir", "on", "", [("error", "unquoted-string", STRING)]),
        ("dir", "007", "", [("error", "unquoted-string", STRING)]),
        ("dir", "22:22", "", [("error", "unquoted-string", STRING)]),
        ("dir", "2020-01-01", "", [("error", "unquoted-string", STRING)]),
        ("dir", "!!int '1'", "", [("error", "unquoted-string", STRING)]),
        ("dir", "!mine x", "", [("error", "yaml-tag", STRING)]),
        ("dir", "!!binary aGk=", "", [("error", "yaml-tag", STRING)]),
        ("dir", "[a]", "", [("error", "wrong-type", STRING)]),
        ("dir", "{a: b}", "", [("error", "wrong-type", STRING)]),
        ("args", "[a, b]", ("a", "b"), []),
        ("args", "[]", (), []),
        ("args", "null", (), []),
        ("args", "foo", ("foo",), [("warning", "scalar-for-list", LIST)]),
        ("args", "1", (), [("error", "unquoted-string", LIST)]),
        ("args", "{a: b}", (), [("error", "wrong-type", LIST)]),
        ("args", "[1, b]", ("", "b"), [("error", "unquoted-string", LIST + "[0]")]),
        ("args", "[true]", ("",), [("error", "unquoted-string", LIST + "[0]")]),
        ("args", "[a, null]", ("a", ""), [("error", "null-item", LIST + "[1]")]),
        ("args", "[a, ]", ("a",), []),
        ("args", "!!seq [a]", ("a",), []),
        ("args", "!mine [a]", (), [("error", "wrong-type", LIST)]),
        ("allowFailure", "true", True, []),
        ("allowFailure", "FALSE", False, []),
        ("allowFailure", "null", False, []),
        ("allowFailure", "yes", True, [("warning", "boolean-word", "steps[0].allowFailure")]),
        ("allowFailure", "'true'", False, [("error", "wrong-type", "steps[0].allowFailure")]),
        ("allowFailure", "1", False, [("error", "wrong-type", "steps[0].allowFailure")]),
        ("automapSubstitutions", "false", False, []),
        ("automapSubstitutions", "null", None, []),
        ("allowExitCodes", "[1, '2', 0x10, 010]", (1, 2, 16, 8), []),
        ("allowExitCodes", "[1.0]", (1,), []),
        ("allowExitCodes", "[1.5]", (0,), [("error", "wrong-type", CODES + "[0]")]),
        ("allowExitCodes", "['0x1']", (0,), [("error", "wrong-type", CODES + "[0]")]),
        ("allowExitCodes", "[3000000000]", (0,),
         [("error", "number-range", CODES + "[0]")]),
        ("timeout", "120s", timedelta(seconds=120), []),
        ("timeout", "'1.5s'", timedelta(seconds=1.5), []),
        ("timeout", "0.123456789s", timedelta(microseconds=123456), []),
        ("timeout", "-1s", timedelta(seconds=-1), []),
        ("timeout", "120", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "'120'", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "2m", timedelta(minutes=2), GO_DURATION),
        ("timeout", "10m0s", timedelta(minutes=10), GO_DURATION),
        ("timeout", "1.5h", timedelta(minutes=90), GO_DURATION),
        ("timeout", "-1h30m.5s", timedelta(seconds=-5400.5), GO_DURATION),
        ("timeout", "250ms", timedelta(milliseconds=250), GO_DURATION),
        ("timeout", "2d", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "1m30", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "m", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "99999999999h", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "1.0123456789s", None, [("error", "duration", "steps[0].timeout")]),
        ("timeout", "999999999999s", None, [("error", "duration", "steps[0].timeout")]),
        ("volumes", "[foo]", None, [("error", "wrong-type", "steps[0].volumes[0]")]),
        ("volumes", "{name: a}", (), [("error", "wrong-type", "steps[0].volumes")]),
    ],
)  # fmt: skip
def test_scalars(field: str, text: str, value: object, problems: list[Any]) -> None:
    loaded = load(f"steps:\n- name: a\n  {field}: {text}\n")
    assert found(loaded) == problems
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in field)
    if value is not None:
        assert getattr(loaded.build.steps[0], snake) == value


@pytest.mark.parametrize(
    ("text", "value", "problems"),
    [
        ("100", 100, []),
        ("'100'", 100, []),
        ("1_000", 1000, []),
        ("1e2", 0, [("error", "wrong-type", "options.diskSizeGb")]),
        ("'1_000'", 0, [("error", "wrong-type", "options.diskSizeGb")]),
        ("99999999999999999999", 0, [("error", "number-range", "options.diskSizeGb")]),
        ("many", 0, [("error", "wrong-type", "options.diskSizeGb")]),
    ],
)
def test_numbers_of_64_bits(text: str, value: int, problems: list[Any]) -> None:
    loaded = load(f"options: {{diskSizeGb: {text}}}")
    assert found(loaded) == problems
    assert loaded.build.options == BuildOptions(disk_size_gb=value)


@pytest.mark.parametrize(
    ("text", "value", "problems"),
    [
        ("NONE", LoggingMode.NONE, []),
        ("4", LoggingMode.NONE, []),
        ("'4'", LoggingMode.NONE, []),
        ("null", LoggingMode.LOGGING_UNSPECIFIED, []),
        ("'04'", LoggingMode.NONE, []),
        ("0x4", LoggingMode.NONE, []),
        ("'0x4'", LoggingMode.LOGGING_UNSPECIFIED, [("error", "enum-value", "options.logging")]),
        ("none", LoggingMode.LOGGING_UNSPECIFIED, [("error", "enum-value", "options.logging")]),
        ("99", LoggingMode.LOGGING_UNSPECIFIED, [("error", "enum-value", "options.logging")]),
        ("true", LoggingMode.LOGGING_UNSPECIFIED, [("error", "wrong-type", "options.logging")]),
        ("[NONE]", LoggingMode.LOGGING_UNSPECIFIED, [("error", "wrong-type", "options.logging")]),
    ],
)
def test_enums(text: str, value: LoggingMode, problems: list[Any]) -> None:
    loaded = load(f"options: {{logging: {text}}}")
    assert found(loaded) == problems
    assert loaded.build.options == BuildOptions(logging=value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aGk=", b"hi"),
        ("aGk", b"hi"),
        ("'-_8='", b"\xfb\xff"),
        ("+/8=", b"\xfb\xff"),
        ("''", b""),
        ("|\n      aG\n      k=\n", b"hi"),
    ],
)
def test_bytes_are_base64_in_either_alphabet(text: str, value: bytes) -> None:
    loaded = load(f"secrets:\n- kmsKeyName: k\n  secretEnv:\n    A: {text}\n")
    assert loaded.problems == ()
    assert loaded.build.secrets == (Secret(kms_key_name="k", secret_env={"A": value}),)


@pytest.mark.parametrize("text", ["my password!", "a", "abcde", "1234"])
def test_what_is_not_base64_is_refused_without_being_shown(text: str) -> None:
    loaded = load(f"secrets: [{{kmsKeyName: k, secretEnv: {{A: {text}}}}}]")
    assert found(loaded) == [("error", "base64", "secrets[0].secretEnv.A")]
    assert text not in loaded.problems[0].message + loaded.problems[0].hint or text == "a"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-05-31T12:00:00Z", datetime(2024, 5, 31, 12, tzinfo=UTC)),
        ("2024-05-31T12:00:00.123456789Z", datetime(2024, 5, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2024-05-31T12:00:00+02:00", datetime(2024, 5, 31, 10, tzinfo=UTC)),
        ("2024-05-31T12:00:00-00:30", datetime(2024, 5, 31, 12, 30, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339(text: str, value: datetime) -> None:
    loaded = decode_message(Build, {"createTime": text})
    assert loaded.problems == ()
    assert loaded.value.create_time == value


@pytest.mark.parametrize(
    "text",
    ["2024-05-31", "2024-05-31 12:00:00Z", "2024-05-31T12:00:00", "2024-13-01T00:00:00Z", "",
     "0001-01-01T00:00:00+23:59", "noon"],
)  # fmt: skip
def test_other_times_are_refused(text: str) -> None:
    assert found(decode_message(Build, {"createTime": text})) == [
        ("error", "timestamp", "createTime")
    ]


@pytest.mark.parametrize(
    ("text", "value", "problems"),
    [
        ("{_A: b}", {"_A": "b"}, []),
        ("{}", {}, []),
        ("null", {}, []),
        ("{_A: }", {"_A": ""}, [("warning", "null-value", "substitutions._A")]),
        ("{_A: 1.19}", {}, [("error", "unquoted-string", "substitutions._A")]),
        ("{_A: [b]}", {}, [("error", "wrong-type", "substitutions._A")]),
        ("[_A]", {}, [("error", "wrong-type", "substitutions")]),
        ("[{_A: b}]", {}, [("error", "wrong-type", "substitutions")]),
        ("{1: b}", {}, [("error", "unquoted-string", "substitutions.1")]),
        ("{no: b}", {}, [("error", "unquoted-string", "substitutions.no")]),
        ("{~: b}", {}, [("error", "wrong-type", "substitutions.~")]),
        ("{[a]: b}", {}, [("error", "wrong-type", "substitutions.?")]),
        ("{_A: b, _A: c}", {"_A": "b"}, [("warning", "duplicate-key", "substitutions._A")]),
    ],
)
def test_maps(text: str, value: dict[str, str], problems: list[Any]) -> None:
    loaded = load(f"substitutions: {text}")
    assert found(loaded) == problems
    assert loaded.build.substitutions == value


def test_an_encrypted_value_can_not_be_null() -> None:
    loaded = load("secrets: [{kmsKeyName: k, secretEnv: {A: }}]")
    assert found(loaded) == [("error", "null-value", "secrets[0].secretEnv.A")]


# Section 2.5: YAML features.
def test_the_first_of_two_equal_keys_counts_and_both_places_are_told() -> None:
    loaded = load("timeout: 1s\nsteps: []\ntimeout: 2s\n")
    assert loaded.build.timeout == timedelta(seconds=1)
    (problem,) = loaded.problems
    assert (problem.severity, problem.rule) == (Severity.WARNING, "duplicate-key")
    assert (problem.line, problem.column) == (3, 1)
    assert "1:1" in problem.message


def test_a_null_is_the_first_of_two_equal_keys_too() -> None:
    loaded = load("timeout: null\ntimeout: 2s\n")
    assert loaded.build.timeout is None
    assert found(loaded) == [("warning", "duplicate-key", "timeout")]


def test_anchors_aliases_and_merge_keys_work() -> None:
    loaded = load(
        """
steps:
- &base
  name: a
  env: &env [A=1]
  timeout: 5s
- <<: *base
  name: b
- <<: [{dir: first}, *base, {dir: second}]
  wait_for: ['-']
- {name: c, env: *env}
"""
    )
    assert loaded.problems == ()
    assert loaded.build.steps == (
        BuildStep(name="a", env=("A=1",), timeout=timedelta(seconds=5)),
        BuildStep(name="b", env=("A=1",), timeout=timedelta(seconds=5)),
        BuildStep(
            name="a", env=("A=1",), timeout=timedelta(seconds=5), dir="first", wait_for=("-",)
        ),
        BuildStep(name="c", env=("A=1",)),
    )


def test_merge_keys_work_in_maps_and_take_only_mappings() -> None:
    loaded = load(
        "substitutions:\n  <<: {_A: '1', _B: '2'}\n  _B: x\nsteps:\n- <<: nothing\n  name: a\n"
    )
    assert loaded.build.substitutions == {"_A": "1", "_B": "x"}
    assert found(loaded) == [("error", "yaml-merge", "steps[0]")]


def test_a_problem_in_a_merged_value_is_told_where_it_stands() -> None:
    loaded = load("steps:\n- <<: {name: 1}\n  id: a\n")
    (problem,) = loaded.problems
    assert (problem.path, problem.line, problem.column) == ("steps[0].name", 2, 14)


def test_json_may_be_indented_with_tabs_and_end_lists_with_commas() -> None:
    loaded = load('{\n\t"steps": [\n\t\t{"name": "a", "args": ["b",]},\n\t],\n}\n')
    assert loaded.problems == ()
    assert loaded.build.steps == (BuildStep(name="a", args=("b",)),)


def test_a_quoted_merge_key_is_an_unknown_field() -> None:
    assert found(load("steps: [{name: a, '<<': {dir: b}}]")) == [
        ("error", "unknown-field", "steps[0].<<")
    ]


def test_several_documents_are_refused_in_a_config_and_read_in_a_trigger_file() -> None:
    text = b"name: a\nfilename: f.yaml\n---\nname: b\nautodetect: true\n---\n- c\n"
    config = load_build(text, file="f")
    assert [(problem.rule, problem.file) for problem in config.problems] == [
        ("yaml-documents", "f")
    ]
    triggers = load_triggers(text, file="f")
    assert [loaded.value for loaded in triggers] == [
        BuildTrigger(name="a", filename="f.yaml"),
        BuildTrigger(name="b", autodetect=True),
        BuildTrigger(),
    ]
    assert [found(loaded) for loaded in triggers] == [[], [], [("error", "not-a-mapping", "")]]


def test_a_broken_or_empty_trigger_file_has_one_problem() -> None:
    broken = load_triggers(b"name: a\n---\nname: [\n", file="f")
    assert [loaded.ok for loaded in broken] == [True, False]
    (empty,) = load_triggers(b"", file="f")
    assert found(empty) == [("error", "not-a-mapping", "")]


# Section 2.6: exclusivity.
@pytest.mark.parametrize(
    ("message", "value", "path"),
    [
        (Source, {"gitSource": {}, "repo_source": {}}, "repoSource"),
        (RepoSource, {"branchName": "a", "tagName": "b", "commitSha": "c"}, "tagName"),
        (BuildTrigger, {"filename": "a", "autodetect": False}, "autodetect"),
        (BuildTrigger, {"build": {}, "gitFileSource": {}}, "gitFileSource"),
    ],
)
def test_only_one_member_of_a_oneof_may_be_set(message: Any, value: Any, path: str) -> None:
    assert found(decode_message(message, value)) == [("error", "one-of", path)]


def test_null_does_not_count_as_a_member() -> None:
    loaded = decode_message(RepoSource, {"branchName": None, "tagName": ""})
    assert loaded.problems == ()
    assert loaded.value == RepoSource(tag_name="")


# What the service sets, and what it knows and we can't do.
def test_what_the_service_sets_is_ignored_in_a_config_and_kept_from_a_store() -> None:
    loaded = load(
        "id: x\nstatus: SUCCESS\nsteps: [{name: a, exitCode: 3}]\nresults: {ociArtifacts: 1}\n"
    )
    assert found(loaded) == [
        ("warning", "output-only", "id"),
        ("warning", "output-only", "status"),
        ("warning", "output-only", "steps[0].exitCode"),
        ("warning", "output-only", "results"),
    ]
    assert loaded.build == Build(steps=(BuildStep(name="a"),))
    stored = decode_message(Build, {"id": "x", "status": 3, "steps": [{"exitCode": 3}]})
    assert stored.value == Build(id="x", status=Status.SUCCESS, steps=(BuildStep(exit_code=3),))
    sent = decode_message(Build, {"id": "x"}, outputs=False)
    assert sent.value == Build()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("remoteConfig: x", "remoteConfig"),
        ("steps: [{name: a, remote_config: x}]", "steps[0].remoteConfig"),
        ("options: {cluster: {}}", "options.cluster"),
        ("options: {anthosCluster: {}}", "options.anthosCluster"),
        ("options: {pool: {workerConfig: {}}}", "options.pool.workerConfig"),
        ("artifacts: {oci: []}", "artifacts.oci"),
        ("artifacts: {volumes: []}", "artifacts.volumes"),
        ("gitConfig: {http: {proxySslCaInfo: {bucket: b}}}", "gitConfig.http.proxySslCaInfo"),
        ("git_config: {http: {proxy_ssl_ca_info: {bucket: b}}}", "gitConfig.http.proxySslCaInfo"),
        ("dependencies: [{piperSource: {}}]", "dependencies[0].piperSource"),
        ("dependencies: [{genericArtifact: {}}]", "dependencies[0].genericArtifact"),
        ("dependencies: [{gitSource: {repository: {developerConnect: x}}}]",
         "dependencies[0].gitSource.repository.developerConnect"),
        ("gitConfig: {http: {proxySecretVersionName: x}}",
         "gitConfig.http.proxySecretVersionName"),
        ("source: {developerConnectConfig: {}}", "source.developerConnectConfig"),
    ],
)  # fmt: skip
def test_what_we_can_not_do_is_refused_with_a_reason(text: str, path: str) -> None:
    loaded = load(text, allow_source=True)
    assert found(loaded) == [("error", "unsupported-field", path)]
    assert loaded.problems[0].hint


def test_a_value_that_we_can_not_do_is_refused_with_a_reason() -> None:
    loaded = load("options: {sourceProvenanceHash: [DIRSUM_SHA256]}")
    assert found(loaded) == [("error", "unsupported-value", "options.sourceProvenanceHash[0]")]
    assert "SHA256" in loaded.problems[0].hint


def test_machine_series_are_kept_without_effect() -> None:
    loaded = load("steps: [{name: a}]\noptions: {rankedMachineSeries: [MACHINE_SERIES_N, 1]}")
    assert found(loaded) == []
    series = (MachineSeries.MACHINE_SERIES_N, MachineSeries.MACHINE_SERIES_E)
    assert loaded.build.options == BuildOptions(ranked_machine_series=series)
    assert check_build(loaded) == []


# All problems, in order, with their places; and a limit on how many.
def test_all_problems_come_at_once_in_the_order_of_the_text() -> None:
    loaded = load("timeout: 1\nsteps:\n- name: [a]\n  args: [1]\n  foo: b\noptions: []\n")
    places = [(problem.line, problem.column) for problem in loaded.problems]
    assert places == [(1, 10), (3, 9), (4, 10), (5, 3), (6, 10)]
    assert loaded.problems[0].text() == (
        "cloudbuild.yaml:1:10: timeout: a duration in seconds is wanted, but 1 is a number; "
        "write it as '1s'"
    )


def test_problems_beyond_the_limit_are_counted() -> None:
    loaded = load("steps:\n" + "- 1\n" * (MAX_PROBLEMS + 7))
    assert len(loaded.problems) == MAX_PROBLEMS + 1
    assert loaded.problems[-1].message == "7 more problems are not shown"
    assert loaded.problems[-1].line == loaded.problems[-2].line
    assert loaded.problems[-1].severity is Severity.ERROR


@pytest.mark.parametrize("late", ["nope: 1", "options: {logging: nope}", "options: {nope: 1}"])
def test_problems_beyond_the_limit_are_errors_of_any_kind(late: str) -> None:
    loaded = load("substitutions:\n" + "  _A: x\n" * (MAX_PROBLEMS + 7) + late)
    assert loaded.problems[-1].rule == "too-many-problems"
    assert not loaded.ok


def test_a_very_long_key_is_shown_short_and_without_a_suggestion() -> None:
    (problem,) = load("waitFor" * 100 + ": 1\n").problems
    assert len(problem.message) < 80
    assert problem.hint == ""


def test_many_warnings_stay_warnings() -> None:
    loaded = load("substitutions:\n" + "  _A: x\n" * (MAX_PROBLEMS + 7))
    assert loaded.ok
    assert len(loaded.problems) == MAX_PROBLEMS + 1


def test_an_error_hidden_behind_many_warnings_is_still_an_error() -> None:
    loaded = load("substitutions:\n" + "  _A: x\n" * (MAX_PROBLEMS + 7) + "timeout: x\n")
    assert not loaded.ok


@pytest.mark.parametrize(
    ("hinted", "written"), [("10m", "600s"), ("1h30m", "5400s"), ("90", "90s"), ("soon", "600s")]
)
def test_a_wrong_duration_is_answered_with_the_right_one(hinted: str, written: str) -> None:
    assert load(f"timeout: {hinted}").problems[0].hint == f"write it as '{written}'"


# JSON bodies follow the same rules.
@pytest.mark.parametrize(
    ("value", "problems"),
    [
        (None, []),
        ({}, []),
        ({"steps": None}, []),
        ([], [("error", "wrong-type", "")]),
        ("x", [("error", "wrong-type", "")]),
        ({"steps": [{"args": [1, True, 1.5]}]}, [
            ("error", "unquoted-string", "steps[0].args[0]"),
            ("error", "unquoted-string", "steps[0].args[1]"),
            ("error", "unquoted-string", "steps[0].args[2]"),
        ]),
        ({"options": {"diskSizeGb": 10**400}}, [("error", "wrong-type", "options.diskSizeGb")]),
        ({"options": {"diskSizeGb": 1e22}}, [("error", "wrong-type", "options.diskSizeGb")]),
        ({"options": {"diskSizeGb": 100.0, "logging": 5}}, []),
        ({"nope": 1}, [("error", "unknown-field", "nope")]),
    ],
)  # fmt: skip
def test_json_bodies(value: Any, problems: list[Any]) -> None:
    assert found(decode_message(Build, value)) == problems


def test_deep_json_is_refused() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    loaded = decode_message(BuildApproval, value)
    assert [problem.rule for problem in loaded.problems] == ["yaml-depth"]


# locate
LOCATED = """\
steps:
- name: a
  wait_for: [x, 'y']
  args: one
  env: &env
  - A=1
- <<: {name: b}
  env: *env
substitutions:
  _A_B: c
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", (1, 1)),
        ("steps", (2, 1)),
        ("steps[0]", (2, 3)),
        ("steps[0].name", (2, 9)),
        ("steps[0].waitFor", (3, 13)),
        ("steps[0].waitFor[1]", (3, 17)),
        ("steps[0].waitFor[7]", (3, 13)),
        ("steps[0].args[0]", (4, 9)),
        ("steps[0].timeout", (2, 3)),
        ("steps[1].name", (7, 14)),
        ("steps[1].env[0]", (6, 5)),
        ("steps[9]", (2, 1)),
        ("substitutions._A_B", (10, 9)),
        ("options.env[0]", (1, 1)),
        ("steps[99999999999999999999]", (2, 1)),
    ],
)
def test_every_path_is_found_or_its_nearest_ancestor(path: str, place: tuple[int, int]) -> None:
    assert load(LOCATED).locate(path) == place


def test_nothing_is_located_where_nothing_was_read() -> None:
    assert load("[").locate("steps[0]") == (0, 0)
    assert decode_message(Build, {"steps": []}).locate("steps") == (0, 0)


def test_only_ended_builds_are_final() -> None:
    running = {Status.STATUS_UNKNOWN, Status.PENDING, Status.QUEUED, Status.WORKING}
    assert {status for status in Status if not status.is_final} == running


def test_a_small_config_loads_only_what_it_uses() -> None:
    """The import of what most configs never mention would be a third of a submit's start."""
    program = """
import sys
from buildrunner.spec.reading.decode import load_build
assert load_build(b"steps: [{name: a, timeout: 5s}]", file="f").ok
print(*sorted(name for name in sys.modules if name.startswith("buildrunner.spec.")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    ours = {name.removeprefix("buildrunner.spec.") for name in done.stdout.splitlines()[0].split()}
    late = {"model_source", "model_artifacts", "model_results", "trigger", "stands", "descriptions"}
    late |= {"decode_suggestions", "merge_keys", "json_nodes", "yaml_errors", "schema", "encode"}
    assert ours & late == set()
