"""The statement about what a build published: whole, without secrets, valid for other tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from msgspec.structs import replace

from buildrunner.errors import AttestationError
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.provenance.statement import provenance_statement
from buildrunner.spec.model.results import FileHashes, Hash, HashType, SourceProvenance
from buildrunner.spec.model.source import StorageSource
from tests.unit.provenance.builds import (
    BUILD,
    BUILDER,
    COMMIT,
    DIGEST,
    ORIGIN,
    PLAN,
    REPOSITORY,
    STEP_DIGEST,
    files,
    image,
    outcome,
    package,
    statement,
)


def test_the_statement_is_valid_by_the_in_toto_library():
    made = statement()
    message = ParseDict(made, StatementMessage())
    Statement.copy_from_pb(message).validate()
    predicate = ParseDict(made["predicate"], provenance_pb2.Provenance())
    assert predicate.run_details.builder.id == BUILDER
    assert predicate.build_definition.resolved_dependencies[0].digest["gitCommit"] == COMMIT


def test_the_statement_says_which_source_config_trigger_and_server_made_the_image():
    predicate = statement()["predicate"]
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    external = definition["externalParameters"]
    assert external["source"] == {
        "repository": REPOSITORY,
        "commit": COMMIT,
        "ref": "refs/heads/main",
    }
    assert external["config"] == {
        "uri": f"git+{REPOSITORY}@refs/heads/main",
        "path": "cloudbuild.yaml",
        "digest": {"sha256": "c" * 64},
    }
    assert external["substitutions"] == {"_ENV": "prod"}
    assert external["build"]["steps"][0]["args"] == ["build", "."]
    assert definition["internalParameters"]["trigger"] == {"id": "t1", "name": "on-push"}
    assert details["metadata"] == {
        "invocationId": "projects/shop/locations/global/builds/b1",
        "startedOn": "2026-01-02T03:04:05Z",
        "finishedOn": "2026-01-02T03:05:35Z",
    }


def test_step_images_are_dependencies_with_the_digest_that_ran():
    dependencies = statement()["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert dependencies == [
        {"uri": f"git+{REPOSITORY}@refs/heads/main", "digest": {"gitCommit": COMMIT}},
        {"uri": "oci://golang:1.22", "digest": {"sha256": STEP_DIGEST.removeprefix("sha256:")}},
        {"uri": "oci://alpine"},
    ]


def sha256(digit: str) -> dict[str, str]:
    return {"sha256": digit * 64}


@pytest.mark.parametrize(
    ("published", "subjects"),
    [
        (
            {"images": (image("r/app"), image("r/app:latest"), image("r/app:v1"))},
            [{"name": "r/app", "digest": sha256("1")}],
        ),
        (
            {"images": (image("h:5000/a:1"), image("h:5000/a:2", "sha256:" + "4" * 64))},
            [
                {"name": "h:5000/a", "digest": sha256("1")},
                {"name": "h:5000/a", "digest": sha256("4")},
            ],
        ),
        (
            {"images": (), "objects": files("gs://b/app.tgz#7")},
            [{"name": "gs://b/app.tgz#7", "digest": sha256("3")}],
        ),
        (
            {"images": (), "packages": (package("python", "https://p/x.whl", b"\1" * 32),)},
            [{"name": "https://p/x.whl", "digest": {"sha256": "01" * 32}}],
        ),
        (
            {"images": (), "packages": (package("go", "https://g/m", b"\2" * 32),)},
            [{"name": "https://g/m", "digest": {"dirHash": "02" * 32}}],
        ),
    ],
)
def test_all_that_was_published_is_a_subject_once(published, subjects):
    assert statement(**published)["subject"] == subjects


def test_a_build_that_published_nothing_has_no_statement():
    nothing = outcome(images=())
    assert provenance_statement(BUILD, PLAN, nothing, builder_id=BUILDER) is None


def test_the_value_of_a_secret_is_hidden_wherever_it_stands():
    leaky = replace(BUILD, substitutions={"_A": "x hunter2 y"}, tags=("hunter2",))

    def masked(text: str) -> str:
        return text.replace("hunter2", "***")

    made = provenance_statement(leaky, PLAN, outcome(), builder_id=BUILDER, masked=masked)
    assert "hunter2" not in json.dumps(made)
    assert made["predicate"]["buildDefinition"]["externalParameters"]["substitutions"] == {
        "_A": "x *** y"
    }


@pytest.mark.parametrize("value", [REPOSITORY.partition("//")[2], COMMIT, BUILDER, "on-push"])
def test_no_secret_changes_a_fact_of_the_server(value):
    """Issue: the author chose a secret's value that was part of the repository's URL."""
    with pytest.raises(AttestationError, match="has the value of a secret") as refused:
        provenance_statement(
            BUILD,
            PLAN,
            outcome(),
            builder_id=BUILDER,
            masked=lambda text: text.replace(value, "***"),
        )
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    ["golang", STEP_DIGEST.partition(":")[2], "r.example.com/app", DIGEST.partition(":")[2]],
)
def test_no_secret_hides_which_images_ran_and_what_was_published(value):
    """Issue: an author hid the image of a step behind the value of a secret."""
    made = [
        provenance_statement(BUILD, PLAN, outcome(), builder_id=BUILDER, masked=masked)
        for masked in (lambda text: text, lambda text: text.replace(value, "***"))
    ]
    plain, hidden = (one["predicate"]["buildDefinition"]["resolvedDependencies"] for one in made)
    assert plain == hidden
    assert made[0]["subject"] == made[1]["subject"]


def test_no_secret_changes_the_name_of_a_field():
    def masked(text: str) -> str:
        return text.replace("dockerSocket", "***").replace("args", "***")

    made: Any = provenance_statement(BUILD, PLAN, outcome(), builder_id=BUILDER, masked=masked)
    assert made == provenance_statement(BUILD, PLAN, outcome(), builder_id=BUILDER)


def test_an_archive_is_a_dependency_with_its_generation_and_hashes():
    resolved = SourceProvenance(
        resolved_storage_source=StorageSource(bucket="b", object="s.tgz", generation=5),
        file_hashes={
            "gs://b/s.tgz#5": FileHashes(file_hash=(Hash(type=HashType.SHA256, value=b"\1" * 32),))
        },
    )
    plan = replace(PLAN, origin=BuildOrigin())
    made: Any = provenance_statement(BUILD, plan, outcome(provenance=resolved), builder_id=BUILDER)
    assert made["predicate"]["buildDefinition"]["resolvedDependencies"][0] == {
        "uri": "gs://b/s.tgz#5",
        "digest": {"sha256": "01" * 32},
    }


def test_the_code_of_a_fork_is_said_to_be_untrusted_and_has_no_ref():
    plan = replace(PLAN, origin=replace(ORIGIN, ref="", untrusted=True))
    made: Any = provenance_statement(BUILD, plan, outcome(), builder_id=BUILDER)
    definition = made["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["untrusted"] is True
    assert "ref" not in definition["externalParameters"]["source"]
    assert definition["resolvedDependencies"][0]["uri"] == f"git+{REPOSITORY}"


def test_the_digest_of_the_image_is_the_one_that_the_registry_confirmed():
    assert statement()["subject"][0]["digest"] == {"sha256": DIGEST.removeprefix("sha256:")}
