"""Nobody has the server's forge token say what is not theirs to say about a commit.

A commit status can be what a protected branch asks for: a forged one merges what no build tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.server.services.triggers import hook_bindings
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.hook_binding import may_speak_for
from buildrunner.triggers.status_report import context_of, report_of, status_request
from tests.api_server import ApiServer, api_server
from tests.held_secrets import token_name

COMMIT = "b" * 40
GITHUB = "https://github.com"
URL = f"{GITHUB}/acme/app"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.secrets[token_name(GITHUB)] = "t0ken"
        yield running


def trigger(server: ApiServer, project: str, name: str = "ci", **fields: Any) -> str:
    """Make a trigger of a project; its path."""
    path = f"/v1/projects/{project}/triggers"
    document = {"name": name, "build": {"steps": [{"name": "busybox"}]}, **fields}
    answer = server.http.post(path, json=document)
    assert answer.status_code == 200, answer.text
    return f"{path}/{name}"


def of_acme() -> dict[str, Any]:
    return {"github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}}}


def run(server: ApiServer, path: str, **values: str) -> list[str]:
    """Run a trigger by hand on a commit, to its good end; contexts of what the forge is told."""
    requested = server.http.post(f"{path}:run", json={"commitSha": COMMIT, "substitutions": values})
    assert requested.status_code == 200, requested.text
    build = requested.json()["metadata"]["build"]["id"]
    resolved = {"resolvedGitSource": {"url": URL, "revision": COMMIT}}
    server.run(build, "SUCCESS", sourceProvenance=resolved)

    def changed(change_id: int) -> dict[str, Any]:
        document = server.store.outbox.changed_build(change_id)
        assert document is not None
        return {**document, "sourceProvenance": resolved}

    reporter = StatusReporter(server.secrets, lambda: hook_bindings(server.store), changed)
    last = [one for one in server.store.outbox.changes(limit=1000) if one.build_id == build][-1]
    told = reporter(last)
    bodies = [msgspec.json.decode(one.message["body"]) for one in told]
    return [body["context"] for body in bodies if body["state"] == "success"]


def test_no_project_reports_on_the_repository_of_another(server: ApiServer) -> None:
    server.hook("github", "s3cret", owners=["acme"], projects=["ours"])
    sources = {"sourceToBuild": {"uri": URL, "ref": "refs/heads/main"}}
    assert run(server, trigger(server, "ours", **of_acme())) == ["buildrunner/ours/ci"]
    assert run(server, trigger(server, "theirs", **of_acme())) == []
    assert run(server, trigger(server, "theirs", "by-source", **sources)) == []


@pytest.mark.parametrize("owner", ["./acme", "x/../acme", "/acme"])
def test_no_other_spelling_of_an_owner_s_name_reports_on_its_repositories(
    server: ApiServer, owner: str
) -> None:
    server.hook("github", "s3cret", owners=["acme"], projects=["ours"])
    github = {**of_acme()["github"], "owner": owner}
    path = "/v1/projects/theirs/triggers"
    document = {"name": "ci", "build": {"steps": [{"name": "busybox"}]}, "github": github}
    answer = server.http.post(path, json=document)
    assert answer.status_code == 400
    assert "is no full name of a repository" in answer.text
    hooks = hook_bindings(server.store)  # a trigger of an earlier version reports nothing either
    assert not may_speak_for(hooks, named_forge("github"), f"{owner}/app", "theirs")


@pytest.mark.parametrize("path", ["/%67itea", "/x/../gitea", "//gitea", "/gitea/."])
def test_no_other_spelling_of_a_forge_s_path_reports_on_its_repositories(
    server: ApiServer, path: str
) -> None:
    """Issue: the server reported with its own token, although the owner was bound to `ours`."""
    place = "https://git.example.com"
    server.hook("gitea", "s3cret", host=f"{place}/gitea", owners=["acme"], projects=["ours"])
    document = {"name": "ci", "build": {"steps": [{"name": "busybox"}]}, **of_acme()}
    query = {"forge": "gitea", "forgeHost": place + path}
    answer = server.http.post("/v1/projects/theirs/triggers", json=document, params=query)
    assert answer.status_code == 400
    assert "invalid address of a forge" in answer.text
    binding = {"host": place + path, "owners": ["acme"]}
    assert server.http.put("/buildrunner/v1/hooks/gitea/x", json=binding).status_code == 400


def test_whoever_runs_a_trigger_can_not_report_in_the_name_of_another(server: ApiServer) -> None:
    path = trigger(server, "ours", "lint", **of_acme())
    assert run(server, path, TRIGGER_NAME="ci") == ["buildrunner/ours/lint"]


@pytest.mark.parametrize(
    ("source", "ref"),
    [({"commitSha": COMMIT}, None), ({"branchName": "dev"}, "dev"), ({"tagName": "v1"}, "v1")],
)
def test_whoever_runs_a_trigger_does_not_choose_the_branch_of_a_status(
    server: ApiServer, source: dict[str, str], ref: str | None
) -> None:
    """Attack: GitLab counts a status for the branch that it names, such as a protected one."""
    server.secrets[token_name("https://gitlab.com")] = "t0ken"
    url = "https://gitlab.com/acme/app"
    path = trigger(server, "ours", sourceToBuild={"uri": url, "ref": "refs/heads/main"})
    forged = {"BRANCH_NAME": "main", "TAG_NAME": "v9", "COMMIT_SHA": "a" * 40}
    requested = server.http.post(f"{path}:run", json={**source, "substitutions": forged})
    assert requested.status_code == 200, requested.text
    resolved = {"resolvedGitSource": {"url": url, "revision": COMMIT}}
    build = requested.json()["metadata"]["build"]["id"]
    server.run(build, "SUCCESS", sourceProvenance=resolved)
    reporter = StatusReporter(
        server.secrets, lambda: hook_bindings(server.store), server.store.outbox.changed_build
    )
    last = [one for one in server.store.outbox.changes(limit=1000) if one.build_id == build][-1]
    (message,) = reporter(last)
    assert message.message["url"].endswith(f"/statuses/{COMMIT}")
    assert msgspec.json.decode(message.message["body"]).get("ref") == ref


def test_projects_with_one_repository_do_not_replace_each_other_s_statuses(
    server: ApiServer,
) -> None:
    assert run(server, trigger(server, "ours", **of_acme())) == ["buildrunner/ours/ci"]
    assert run(server, trigger(server, "theirs", **of_acme())) == ["buildrunner/theirs/ci"]


def test_a_status_of_a_fork_is_not_seen_in_another_repository_of_bitbucket_server() -> None:
    """A status that belongs to the bare commit is seen in each repository that has the commit."""
    forge = named_forge("bitbucket-server", "https://stash.example.com")
    fork = report_of("~MALLORY/app", COMMIT, {"status": "SUCCESS"}, context_of("p", "ci"))
    request = status_request(forge, fork)
    assert request is not None
    where = f"/projects/~MALLORY/repos/app/commits/{COMMIT}/builds"
    assert request.url.endswith(where)
