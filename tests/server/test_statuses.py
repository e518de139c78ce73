"""From what forges tell to what they are told: deliveries, builds, statuses at a real receiver."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.http.pinned import gates
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.sources.policy import SourcePolicy
from buildrunner.store.model.deliveries import NewDelivery
from tests.api_server import ApiServer, api_server, now
from tests.held_secrets import token_name
from tests.http_receivers import Receiver, receiver
from tests.unit.triggers.test_forges import (
    BITBUCKET_REPOSITORY,
    NEW,
    OLD,
    bitbucket_ref,
    github_pull,
    github_push,
    gitlab_push,
    merge_request,
    server_repository,
)


class Place:
    """A server, its sender, and a forge that listens."""

    def __init__(self, server: ApiServer, forge: Receiver) -> None:
        self.server = server
        self.forge = forge
        self.handler = DeliveryHandler(server.context)
        delivery = Delivery(server.secrets, gates(server.context.settings), now)
        reporter = StatusReporter(server.secrets, dict, server.store.outbox.changed_build)
        self.sender = OutboxSender(server.store, delivery, [reporter], now=now, random=lambda: 0.5)

    def trigger(
        self,
        name: str,
        repository: str,
        kind: str = "github",
        substitutions: dict[str, str] | None = None,
        **event: Any,
    ) -> None:
        """Make a trigger for a repository of a forge of that kind, which is our receiver."""
        owner, _, app = repository.rpartition("/")
        document = {
            "name": name,
            "build": {"steps": [{"name": "busybox"}]},
            "github": {"owner": owner, "name": app, **event},
            "substitutions": substitutions or {},
        }
        query = {"forge": kind, "forgeHost": self.forge.url} if kind else {}
        answer = self.server.http.post("/v1/projects/p/triggers", json=document, params=query)
        assert answer.status_code == 200, answer.text

    def tell(self, hook: str, header: str, kind: str, body: Any) -> list[str]:
        """Have the forge, at its address here, tell something; the builds that it makes."""
        self.server.hook(hook, "hush", host=self.forge.url, owners=["*"])
        text = re.sub(r"https://(github\.com|[a-z]+\.example\.com|bitbucket\.org)", self.forge.url,
                      json.dumps(body))  # fmt: skip
        new = NewDelivery(hook=hook, delivery_id=kind, headers={header: kind}, body=text.encode())
        self.server.store.deliveries.add([new], now=now())
        (claimed,) = self.server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
        outcome = self.handler.handle(claimed)
        self.server.store.deliveries.finish([(claimed, outcome)])
        verdicts = [one for event in outcome["events"] for one in event["verdicts"]]
        return [one["build"] for one in verdicts if "build" in one]

    def send(self) -> list[tuple[str, dict[str, Any]]]:
        """Send all there is; what the forge was told."""
        self.sender.announce()
        while self.server.store.outbox.page(state="waiting"):
            self.sender.begin_sending()
            assert self.sender.wait_until_idle(30)
        return [(one.path, one.json()) for one in self.forge.received]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    sources = SourcePolicy(hosts=("127.0.0.1",))
    with api_server(tmp_path, sources=sources) as server, receiver() as forge:
        made = Place(server, forge)
        server.secrets[token_name(forge.url)] = "t0ken\n"
        yield made
        made.sender.stop()


GITHUB_API = f"/api/v3/repos/acme/app/statuses/{NEW}"
GITEA_API = f"/api/v1/repos/acme/app/statuses/{NEW}"
GITLAB_API = f"/api/v4/projects/group%2Fsub%2Fapp/statuses/{NEW}"
CLOUD_API = f"/2.0/repositories/acme/app/commit/{NEW}/statuses/build"
SERVER_API = f"/rest/api/latest/projects/PRJ/repos/app/commits/{NEW}/builds"
CLOUD_PUSH = {
    "repository": BITBUCKET_REPOSITORY,
    "actor": {"nickname": "mona"},
    "push": {"changes": [{"old": bitbucket_ref("main", commit=OLD), "new": bitbucket_ref("main")}]},
}
SERVER_PUSH = {
    "actor": {"name": "mona"},
    "repository": server_repository("PRJ", 1),
    "changes": [{"ref": {"id": "refs/heads/main"}, "fromHash": OLD, "toHash": NEW}],
}


@pytest.mark.parametrize(
    ("hook", "header", "kind", "body", "repository", "path", "token"),
    [
        ("github", "x-github-event", "push", github_push(), "acme/app", GITHUB_API, "Bearer"),
        ("gitea", "x-gitea-event", "push", github_push(), "acme/app", GITEA_API, "token"),
        ("forgejo", "x-gitea-event", "push", github_push(), "acme/app", GITEA_API, "token"),
        ("gitlab", "x-gitlab-event", "Push Hook", gitlab_push(), "group/sub/app", GITLAB_API, ""),
        ("bitbucket", "x-event-key", "repo:push", CLOUD_PUSH, "acme/app", CLOUD_API, "Bearer"),
        (
            "bitbucket-server",
            "x-event-key",
            "repo:refs_changed",
            SERVER_PUSH,
            "PRJ/app",
            SERVER_API,
            "Bearer",
        ),
    ],
    ids=["github", "gitea", "forgejo", "gitlab", "bitbucket", "bitbucket-server"],
)
def test_every_forge_is_told_of_a_push_where_it_came_from(
    place: Place,
    hook: str,
    header: str,
    kind: str,
    body: Any,
    repository: str,
    path: str,
    token: str,
) -> None:
    place.trigger("on-push", repository, hook, push={"branch": "main"})
    (build,) = place.tell(hook, header, kind, body)
    place.send()
    place.server.run(build, "SUCCESS")
    told = place.send()
    assert [where for where, _ in told] == [path, path]
    page = f"{place.server.url}/builds/p/{build}"
    for _, said in told:
        assert page in (said.get("target_url"), said.get("url"))
        assert "buildrunner/p/on-push" in (said.get("context"), said.get("name"), said.get("key"))
    assert told[-1][1]["state"] in ("success", "SUCCESSFUL")
    if hook == "gitlab":
        assert told[-1][1]["ref"] == "main"
    headers = place.forge.received[0].headers
    given = headers["private-token"] if hook == "gitlab" else headers["authorization"]
    assert given == f"{token} t0ken".strip()
    assert place.server.http.get(page).status_code == 200


@pytest.mark.parametrize(
    ("hook", "header", "kind", "body", "repository", "path"),
    [
        ("github", "x-github-event", "pull_request", github_pull(), "acme/app", GITHUB_API),
        (
            "gitlab",
            "x-gitlab-event",
            "Merge Request Hook",
            merge_request(),
            "group/sub/app",
            GITLAB_API,
        ),
    ],
    ids=["github", "gitlab"],
)
def test_a_fork_s_commit_is_shown_in_the_repository_that_is_asked(
    place: Place, hook: str, header: str, kind: str, body: Any, repository: str, path: str
) -> None:
    place.trigger("on-pull", repository, hook, pullRequest={"branch": "main"})
    (build,) = place.tell(hook, header, kind, body)
    ((where, said),) = place.send()
    assert (where, said["state"]) == (path, "pending")
    assert said["description"] == "Waits for an approval"
    if hook == "gitlab":  # finds no ref of a fork's commit by itself
        assert said["ref"] == "refs/merge-requests/7/head"
    rejected = {"approvalResult": {"decision": "REJECTED"}}
    answer = place.server.http.post(f"/v1/projects/p/builds/{build}:approve", json=rejected)
    assert answer.status_code == 200, answer.text
    assert place.send()[-1][1]["state"] in ("error", "canceled")


def test_a_pull_request_that_waits_for_a_comment_shows_it(place: Place) -> None:
    control = {"branch": "main", "commentControl": "COMMENTS_ENABLED"}
    place.trigger("on-pull", "acme/app", pullRequest=control)
    assert place.tell("github", "x-github-event", "pull_request", github_pull()) == []
    ((where, said),) = place.send()
    assert (where, said["state"], said["context"]) == (
        GITHUB_API,
        "pending",
        "buildrunner/p/on-pull",
    )
    assert said["description"] == "Waits for /gcbrun by a user with write access"
    assert said["target_url"] == f"{place.server.url}/deliveries/1"
    assert place.server.http.get(said["target_url"]).status_code == 200


def test_a_retry_takes_the_place_of_what_failed(place: Place) -> None:
    place.trigger("on-push", "acme/app", push={"branch": "main"})
    (build,) = place.tell("github", "x-github-event", "push", github_push())
    place.server.run(build, "FAILURE")
    place.send()
    answer = place.server.http.post(f"/v1/projects/p/builds/{build}:retry", json={})
    again = answer.json()["metadata"]["build"]["id"]
    place.server.run(again, "SUCCESS")
    (*_, (path, said)) = place.send()
    assert (path, said["state"], said["context"]) == (
        GITHUB_API,
        "success",
        "buildrunner/p/on-push",
    )
    assert said["target_url"].endswith(again)


class TestBuildsByHand:
    def run(self, place: Place, **source: Any) -> tuple[str, Any]:
        place.trigger("deploy", "acme/App", "", push={"branch": "main"})
        path = "/v1/projects/p/locations/global/triggers/deploy:run"
        answer = place.server.http.post(path, json={"source": source} if source else {})
        build = str(answer.json()["metadata"]["build"]["id"])
        resolved = {"url": "https://github.com/acme/App.git", "revision": NEW}
        provenance = {"resolvedGitSource": resolved}
        place.server.run(build, "SUCCESS", sourceProvenance=provenance)
        place.sender.announce()
        outbox = place.server.store.outbox
        return build, [outbox.get(one.id).message for one in outbox.page(build_id=build)]

    def test_they_are_shown_once_their_commit_is_known(self, place: Place) -> None:
        place.server.secrets["forge-github_com"] = "t0ken"
        build, (message,) = self.run(place)
        assert message["url"] == f"https://api.github.com/repos/acme/App/statuses/{NEW}"
        assert json.loads(message["body"])["context"] == "buildrunner/p/deploy"
        assert build in message["body"]

    def test_without_a_token_nothing_is_made(self, place: Place) -> None:
        assert self.run(place)[1] == []

    def test_a_build_without_a_trigger_is_nobody_s(self, place: Place) -> None:
        place.server.secrets["forge-github_com"] = "t0ken"
        git = {"url": "https://github.com/acme/app.git", "revision": NEW}
        build = place.server.create(source={"gitSource": git})
        provenance = {"resolvedGitSource": git}
        place.server.run(build, "SUCCESS", sourceProvenance=provenance)
        assert place.send() == []


def test_a_push_whose_build_can_not_be_made_is_shown_as_a_failure(place: Place) -> None:
    too_long = {"_ALL": "$(push.head_commit.message)"}
    place.trigger("on-push", "acme/app", push={"branch": "main"}, substitutions=too_long)
    body = github_push(head_commit={"id": NEW, "message": "long " * 2_000})
    (build,) = place.tell("github", "x-github-event", "push", body)
    assert place.server.store.builds.find(build).status == "FAILURE"
    ((where, told),) = place.send()
    assert (where, told["state"]) == (GITHUB_API, "failure")
    assert "substitution value" in told["description"]
