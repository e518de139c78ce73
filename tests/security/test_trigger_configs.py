"""The config of a trigger is of the commit that it builds: nobody takes another for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.cli.serve.loops import delivery_loop
from buildrunner.errors import UsageError
from buildrunner.server.services.triggers import trigger_problems
from buildrunner.settings import Settings
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.triggers.config_source import check_usual_config_source
from buildrunner.triggers.repository import located, trigger_repository
from buildrunner.triggers.settings import ForgeSetting
from tests.api_server import ApiServer, api_server

URL = "https://git.example.com/acme/app"
OTHER = "https://git.example.com/acme/other"
RESOURCE = "projects/p/locations/l/connections/c/repositories/acme-app"
SOURCE = {"uri": URL, "ref": "refs/heads/main"}
GITHUB = {"owner": "acme", "name": "app", "push": {"branch": "^main$"}}
FORGE = ForgeSetting(kind="gitea", host="https://git.example.com")
TRIGGERS = "/v1/projects/p/triggers"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "server") as running:
        yield running


def trigger(**fields: Any) -> BuildTrigger:
    return decode_message(BuildTrigger, {"name": "deploy", **fields}).value


def config(**fields: str) -> dict[str, str]:
    return {"path": "ci/deploy.yaml", **fields}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (config(uri=OTHER), {"sourceToBuild": SOURCE}),
        (config(uri=OTHER), {"github": GITHUB}),
        (config(uri="acme/other", repoType="GITHUB"), {"github": GITHUB}),
        (config(uri=OTHER), {"triggerTemplate": {"repoName": "app", "branchName": "main"}}),
        (config(uri=URL), {"webhookConfig": {"secret": "projects/p/secrets/s/versions/1"}}),
        (config(repository=RESOURCE), {"sourceToBuild": SOURCE}),
        (
            config(repository=f"{RESOURCE}2"),
            {"sourceToBuild": {"repository": RESOURCE, "ref": "refs/heads/main"}},
        ),
        (config(uri=URL, revision="reviewed"), {"sourceToBuild": SOURCE}),
        (config(revision="refs/tags/main"), {"sourceToBuild": SOURCE}),
        (config(revision="a" * 40), {"sourceToBuild": SOURCE}),
        (config(revision="reviewed"), {"github": GITHUB}),
        (config(revision="main"), {"github": {**GITHUB, "push": {"branch": ".*"}}}),
        (
            config(revision="main"),
            {"github": {"owner": "acme", "name": "app", "pullRequest": {"branch": "^main$"}}},
        ),
    ],
)
def test_a_config_of_another_repository_or_revision_is_refused(
    server: ApiServer, file: dict[str, str], source: dict[str, Any]
) -> None:
    """Attack: the author of a branch of the source writes a config that admins took elsewhere."""
    document = {"name": "deploy", "gitFileSource": file, **source}
    query = {"forge": FORGE.kind, "forgeHost": FORGE.host} if "github" in source else {}
    answer = server.http.post(TRIGGERS, json=document, params=query)
    assert answer.status_code == 400
    assert "takes its config from" in answer.json()["error"]["message"]
    harmless = {**document, "gitFileSource": config()}
    if "webhookConfig" not in source:
        assert server.http.post(TRIGGERS, json=harmless, params=query).status_code == 200
        changed = server.http.patch(f"{TRIGGERS}/deploy", json=document)
        assert (changed.status_code, "its config from" in changed.text) == (400, True)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (config(), {"sourceToBuild": SOURCE}),
        (config(uri=f"{URL}.git", revision="refs/heads/main"), {"sourceToBuild": SOURCE}),
        (config(uri="acme/app", revision="main"), {"sourceToBuild": SOURCE}),
        (config(uri=URL), {"sourceToBuild": {**SOURCE, "uri": "acme/app", "repoType": "GITHUB"}}),
        (config(uri=URL, revision="main"), {"github": GITHUB}),
        (config(uri="acme/app"), {"github": {**GITHUB, "push": {"branch": ".*"}}}),
        (config(repository=RESOURCE), {"sourceToBuild": {**SOURCE, "repository": RESOURCE}}),
        (
            config(repository="acme/app"),
            {"repositoryEventConfig": {"repository": "acme/app", "push": {"branch": "."}}},
        ),
    ],
)
def test_a_config_of_the_source_is_accepted_in_every_spelling(
    file: dict[str, str], source: dict[str, Any]
) -> None:
    wanted = located(trigger(gitFileSource=file, **source), FORGE)
    check_usual_config_source(wanted, trigger_repository(wanted, FORGE))


def test_a_run_of_another_revision_does_not_take_its_config_from_there(server: ApiServer) -> None:
    """Attack: a holder of `submit` runs the trigger on a branch with a config of their own."""
    file = config(uri=URL, revision="refs/heads/main")
    document = {"name": "deploy", "gitFileSource": file, "sourceToBuild": SOURCE}
    assert server.http.post(TRIGGERS, json=document).status_code == 200
    for source in ({"branchName": "evil"}, {"tagName": "main"}, {"commitSha": "a" * 40}):
        answer = server.http.post(f"{TRIGGERS}/deploy:run", json=source)
        assert answer.status_code == 400
        assert "takes its config from refs/heads/main" in answer.json()["error"]["message"]
    assert server.http.post(f"{TRIGGERS}/deploy:run", json={}).status_code == 200


@pytest.mark.parametrize("event", ["run", "webhook"])
def test_a_trigger_that_an_earlier_version_accepted_builds_no_other_config(
    server: ApiServer, event: str
) -> None:
    secret = "projects/p/secrets/s/versions/1"
    server.secrets[secret] = "s"
    document = {
        "name": "deploy",
        "webhookConfig": {"secret": secret},
        "gitFileSource": config(),
        "sourceToBuild": SOURCE,
    }
    made = server.http.post(TRIGGERS, json=document).json()
    stored = server.store.triggers.get("p", made["id"])
    changed = {**stored, "gitFileSource": config(uri=OTHER)}
    server.store.triggers.replace("p", made["id"], changed, was=stored)
    answer = server.http.post(f"{TRIGGERS}/deploy:{event}?secret=s", json={})
    if event == "run":
        assert answer.status_code == 400
    loop = delivery_loop(server.context, Settings())
    while loop.turn():
        assert loop.wait_until_idle(60)
    builds = server.store.builds.page("p").builds
    assert [build.status for build in builds] == (["FAILURE"] if event == "webhook" else [])
    (problem,) = trigger_problems(server.store, server.context.repositories)
    assert "takes its config from another repository" in problem
    disabled = server.http.patch(
        f"{TRIGGERS}/deploy", json={"disabled": True}, params={"updateMask": "disabled"}
    )
    assert disabled.status_code == 200


def test_the_problem_shows_no_password() -> None:
    wanted = trigger(gitFileSource=config(uri="https://u:pw@e.com/r"), sourceToBuild=SOURCE)
    with pytest.raises(UsageError) as caught:
        check_usual_config_source(wanted, None)
    assert "pw" not in str(caught.value)
