"""An event has a key of each trigger that listens to its source: the index misses no trigger."""

from __future__ import annotations

from typing import Any

import pytest

from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.triggers.events import MessageEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.hook_binding import HookBinding
from buildrunner.triggers.repository import (
    RepositoryNames,
    event_keys,
    listens_to,
    source_keys,
    trigger_repository,
)
from buildrunner.triggers.settings import ForgeSetting

REPOSITORIES = {
    "connected": "https://git.example.com/acme/app.git",
    "projects/p/locations/l/connections/c/repositories/full": "git@git.example.com:acme/app",
    "github_acme_app": "https://git.example.com/acme/app",
}
BARE = {"bare": "file:///srv/app.git", "web": "https://git.example.com/acme/app"}
NAMES = RepositoryNames(
    connected={"": REPOSITORIES},
    hooks={f"git/{name}": HookBinding(repository=url) for name, url in BARE.items()},
)
GITEA = ForgeSetting(kind="gitea", host="https://git.example.com")
FULL = "projects/p/locations/l/connections/c/repositories"


def on(kind: str, host: str, name: str) -> Repository:
    forge = named_forge(kind, host)
    return Repository(forge=forge.kind, full_name=name, clone_url=forge.clone_url(name), host=forge)


APP = on("gitea", "https://git.example.com", "acme/app")
ON_GITHUB = on("github", "", "acme/app")
AT_URL = Repository(forge="git", full_name="app", clone_url="ssh://git@git.example.com/acme/app")
OF_BARE = Repository(forge="git", full_name="bare", clone_url="file:///srv/app.git", bare=True)

LISTENING: list[tuple[dict[str, Any], ForgeSetting | None, Repository]] = [
    ({"github": {"owner": "acme", "name": "app"}}, GITEA, APP),
    ({"github": {"owner": "ACME", "name": "App"}}, GITEA, APP),
    ({"github": {"owner": "acme", "name": "app"}}, None, ON_GITHUB),
    (
        {"gitlabEnterpriseEventsConfig": {"projectNamespace": "g/s/app"}},
        ForgeSetting(kind="gitlab", host="gitlab.example.com"),
        on("gitlab", "gitlab.example.com", "g/s/app"),
    ),
    (
        {"bitbucketServerTriggerConfig": {"projectKey": "P", "repoSlug": "r"}},
        ForgeSetting(kind="bitbucket-server", host="bb.example.com"),
        on("bitbucket-server", "bb.example.com", "p/r"),
    ),
    ({"repositoryEventConfig": {"repository": "connected"}}, None, APP),
    ({"repositoryEventConfig": {"repository": f"{FULL}/connected"}}, None, APP),
    ({"repositoryEventConfig": {"repository": f"{FULL}/full"}}, None, APP),
    ({"repositoryEventConfig": {"repository": "acme/app"}}, GITEA, APP),
    ({"repositoryEventConfig": {"repository": "bare"}}, None, OF_BARE),
    ({"repositoryEventConfig": {"repository": "web"}}, None, APP),
    ({"triggerTemplate": {"repoName": "connected"}}, None, APP),
    ({"triggerTemplate": {"repoName": "connected"}}, None, AT_URL),
    ({"triggerTemplate": {"repoName": "github_acme_app"}}, None, APP),
    ({"triggerTemplate": {"repoName": "github_acme_lib"}}, None, on("github", "", "acme/lib")),
    (
        {"triggerTemplate": {"repoName": "bitbucket_acme_a_b"}},
        None,
        on("bitbucket", "", "acme/a_b"),
    ),
    ({"triggerTemplate": {"repoName": "https://git.example.com/acme/app"}}, None, APP),
    ({"triggerTemplate": {"repoName": "git@git.example.com:acme/app.git"}}, None, AT_URL),
    ({"triggerTemplate": {"repoName": "/srv/app.git"}}, None,
     Repository(forge="git", full_name="x", clone_url="/srv/app.git")),
]  # fmt: skip


@pytest.mark.parametrize(("trigger", "forge", "repository"), LISTENING)
def test_an_event_has_a_key_of_each_trigger_that_listens_to_its_repository(
    trigger: dict[str, Any], forge: ForgeSetting | None, repository: Repository
) -> None:
    message = decode_message(BuildTrigger, {"name": "t", **trigger}).value
    wanted = trigger_repository(message, forge, names=NAMES)
    assert listens_to(wanted, repository).passed, listens_to(wanted, repository).text
    event = PushEvent(repository=repository, ref="refs/heads/main", before="a", after="b")
    keys = event_keys(event, "gitea", NAMES)
    assert source_keys("p", trigger) & keys


def test_a_trigger_of_the_same_name_on_another_forge_is_found_to_say_why_it_does_not_fire() -> None:
    keys = event_keys(
        PushEvent(repository=ON_GITHUB, ref="refs/heads/main", before="a", after="b"),
        "github",
        RepositoryNames(),
    )
    assert source_keys("p", {"github": {"owner": "acme", "name": "app"}}) <= keys
    assert not source_keys("p", {"github": {"owner": "acme", "name": "lib"}}) & keys


def test_calls_and_messages_have_the_keys_of_their_triggers_only() -> None:
    called = {"name": "t", "webhookConfig": {"secret": "s"}}
    listening = {"name": "t", "pubsubConfig": {"topic": "projects/p/topics/t"}}
    call = event_keys(MessageEvent(kind="webhook", body={}), "webhook/p/t", RepositoryNames())
    message = event_keys(
        MessageEvent(kind="pubsub", body={}, topic="projects/p/topics/t"),
        "pubsub/x",
        RepositoryNames(),
    )
    assert call == source_keys("p", called)
    assert message == source_keys("p", listening)
    assert call != source_keys("q", called)
    assert source_keys("p", {"name": "t", "filename": "cloudbuild.yaml"}) == set()
