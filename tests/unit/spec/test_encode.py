"""Messages to JSON and YAML: what the round trips of the conformance tests don't show."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from google.cloud.devtools import cloudbuild_v1
from google.protobuf import json_format

from buildrunner.spec.model.build import (
    Build,
    BuildOptions,
    BuildStep,
    DockerDaemon,
    LoggingMode,
    Status,
    StepResult,
)
from buildrunner.spec.model.results import Results
from buildrunner.spec.model.trigger import BuildTrigger, CronConfig
from buildrunner.spec.writing import encode_instant, encode_message, yaml_text

NEWER = Build(
    status=Status.WORKING,
    steps=(BuildStep(name="a", results=(StepResult(name="r"),)),),
    options=BuildOptions(
        pubsub_topic="projects/p/topics/t",
        docker_daemon=DockerDaemon.NO_DOCKER,
        logging=LoggingMode.NONE,
    ),
)


def test_unset_fields_are_left_out() -> None:
    assert encode_message(Build()) == {}
    assert encode_message(Build(steps=(BuildStep(),))) == {"steps": [{}]}


def test_an_explicit_false_is_kept() -> None:
    step = BuildStep(automap_substitutions=False, allow_failure=False)
    assert encode_message(step) == {"automapSubstitutions": False}


def test_numbers_of_64_bits_are_strings_and_others_are_not() -> None:
    assert encode_message(Results(num_artifacts=3)) == {"numArtifacts": "3"}
    assert encode_message(BuildStep(exit_code=3)) == {"exitCode": 3}


def test_enums_are_names_or_numbers() -> None:
    assert encode_message(Build(status=Status.SUCCESS)) == {"status": "SUCCESS"}
    assert encode_message(Build(status=Status.SUCCESS), enum_numbers=True) == {"status": 3}


def test_newer_fields_are_shown_unless_the_published_client_must_read_it() -> None:
    full = encode_message(NEWER)
    assert full["options"]["pubsubTopic"] == "projects/p/topics/t"
    assert full["options"]["dockerDaemon"] == "NO_DOCKER"
    published = encode_message(NEWER, published_only=True)
    assert published == {
        "status": "WORKING",
        "steps": [{"name": "a"}],
        "options": {"logging": "NONE"},
    }
    json_format.ParseDict(published, cloudbuild_v1.Build.pb(cloudbuild_v1.Build()))


def test_newer_fields_of_a_trigger_can_be_left_out_too() -> None:
    trigger = BuildTrigger(name="t", cron=CronConfig(schedule="0 3 * * *"))
    assert encode_message(trigger)["cron"] == {"schedule": "0 3 * * *"}
    assert encode_message(trigger, published_only=True) == {"name": "t"}


def test_instants_are_written_in_utc() -> None:
    instant = datetime(2024, 5, 31, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    assert encode_instant(instant) == "2024-05-31T12:00:00Z"


def test_yaml_is_in_block_style_and_scripts_are_literal_blocks() -> None:
    build = Build(
        steps=(BuildStep(name="bash", script="#!/bin/sh\necho $HOME\n", env=("A=1", "B=")),),
        substitutions={"_A": "yes", "_B": "1.10", "_C": ""},
        timeout=timedelta(seconds=90),
    )
    assert yaml_text(encode_message(build)) == (
        "steps:\n"
        "- name: bash\n"
        "  env:\n"
        "  - A=1\n"
        "  - B=\n"
        "  script: |\n"
        "    #!/bin/sh\n"
        "    echo $HOME\n"
        "timeout: 90s\n"
        "substitutions:\n"
        "  _A: 'yes'\n"
        "  _B: '1.10'\n"
        "  _C: ''\n"
    )
