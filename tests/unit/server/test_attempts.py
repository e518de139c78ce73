"""Going on with a build: what the new one is told in labels."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from buildrunner.server.http.errors import ApiError
from buildrunner.server.services.approval_facts import approval_facts
from buildrunner.server.services.builds import going_on, roll_back
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.model.deployments import RecordedDeployment

NOW = datetime(2026, 5, 1, tzinfo=UTC)
STEPS = [
    {"name": "busybox", "id": "compile", "status": "SUCCESS"},
    {"name": "busybox", "status": "CANCELLED"},
    {"name": "busybox", "id": "test", "status": "FAILURE"},
]


def build(**labels: str) -> StoredBuild:
    return StoredBuild(document={"id": "old", "steps": STEPS}, request={}, labels=labels)


def test_a_step_is_named_by_its_id_or_its_index() -> None:
    expected = {"from_build": "old", "from_step": "test", "reused_steps": "0"}
    assert going_on(build(), "test") == going_on(build(), "2") == expected
    assert going_on(build(), "1")["from_step"] == "#1"


def test_a_build_that_resumed_another_one_is_resumed_by_the_numbers_of_the_whole_build() -> None:
    # It has all steps of the whole build: the first one succeeded in the build before it.
    labels = going_on(build(reused_steps="0"), "2")
    assert (labels["from_step"], labels["reused_steps"]) == ("test", "0")
    assert going_on(build(reused_steps="0"), "0")["reused_steps"] == ""


@pytest.mark.parametrize("name", ["nope", "3", "-1", "", "²"])
def test_a_step_that_there_is_not_is_an_error_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ApiError, match=r"it has 3, counted from 0; ids: compile, test"):
        going_on(build(), name)


def test_an_approver_reads_that_a_build_takes_the_files_or_the_deployment_of_another() -> None:
    # Steps that do not run again say nothing about the files that the others work with.
    said = 'It begins at step "test", with the files that the steps of build old left'
    assert said in approval_facts(build(**going_on(build(), "test"))).grants
    past = RecordedDeployment(
        id="d", build_id="old", project_id="p", step=2, step_id="test", time=NOW, target="t"
    )
    said = 'It is a rollback: of build old it runs step "test" only, with its images'
    assert said in approval_facts(build(**roll_back(build(), past))).grants
