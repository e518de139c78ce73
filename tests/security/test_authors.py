"""With `notAuthor`, nobody approves a build of their own code, whichever way it came to the server.

Each test is an attack: mallory wrote the code, and wants to approve its build.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from buildrunner.cli.builds.remote import approval_lines
from buildrunner.cli.serve.loops import delivery_loop
from buildrunner.client.client import ServerClient
from buildrunner.server.events.reconcile import Reconciler, RemoteRefs
from buildrunner.server.services.authorship import people_behind
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.repository import RepositoryNames
from tests.api_server import ApiServer, api_server
from tests.held_secrets import token_name
from tests.security.test_approvals import words
from tests.server.test_forge_api import Forge
from tests.server.test_pages import signed_in

SECRET = "of the hook"
OLD, NEW = "a" * 40, "b" * 40
STEPS = {"steps": [{"name": "busybox"}]}
BASE = {"ref": "main", "sha": OLD, "repo": {"full_name": "acme/app"}}
HEAD = {"ref": "feat", "sha": NEW, "repo": {"full_name": "acme/app"}}
MERGE_REQUEST = {
    "iid": 5,
    "author_id": 3,  # mallory: no event but the first says more
    "source_project_id": 1,
    "target_project_id": 1,
    "source_branch": "feat",
    "target_branch": "main",
    "last_commit": {"id": NEW, "message": "m"},
    "source": {"path_with_namespace": "acme/app"},
}


class Place:
    """A server with people who may approve, and a forge of the project acme/app."""

    def __init__(self, server: ApiServer, forge: Forge) -> None:
        self.server = server
        self.forge = forge
        for kind in ("gitea", "gitlab"):
            server.hook(kind, SECRET, host=forge.url, owners=["acme"])
        server.secrets[token_name(forge.url)] = "t0ken"
        names = ("mallory", "wendy", "carol", "bob", "alice")
        self.tokens = {name: server.token(name, "read", "submit", "approve") for name in names}
        self.tokens["root"] = server.token("root", "admin")
        self.trigger_id = ""

    def call(self, who: str, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        return self.server.http.request(method, path, json=body, headers=headers)

    def trigger(self, kind: str, approval: dict[str, Any] | None = None, **event: Any) -> None:
        document = {
            "name": "deploy",
            "repositoryEventConfig": {"repository": "acme/app", **event},
            "build": STEPS,
            "approvalConfig": {"approvalRequired": True},
        }
        path = f"/v1/projects/p/triggers?forge={kind}&forgeHost={self.forge.url}"
        answer = self.call("root", "POST", path, document)
        assert answer.status_code == 200, answer.text
        self.trigger_id = str(answer.json()["id"])
        self.set(kind, notAuthor=True, **(approval or {}))

    def set(self, kind: str, **approval: Any) -> None:
        path = f"/buildrunner/v1/projects/p/triggers/{self.trigger_id}/settings"
        settings = {"approval": approval, "forge": {"kind": kind, "host": self.forge.url}}
        assert self.call("root", "PUT", path, settings).status_code == 200

    def gitea(self, kind: str, **body: Any) -> str:
        content = json.dumps({"repository": {"full_name": "acme/app"}, **body}).encode()
        signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
        headers = {"X-Gitea-Event": kind, "X-Gitea-Signature": signature}
        return self._posted("gitea", content, headers)

    def gitlab(self, kind: str, **body: Any) -> str:
        project = {"path_with_namespace": "acme/app"}
        content = json.dumps({"object_kind": kind, "project": project, **body}).encode()
        headers = {"X-Gitlab-Token": SECRET, "Idempotency-Key": str(uuid.uuid4())}
        return self._posted("gitlab", content, headers)

    def push(self, pusher: str = "mallory") -> str:
        """Somebody pushes to the branch main; the build's id."""
        return self.gitea(
            "push", ref="refs/heads/main", before=OLD, after=NEW, pusher={"login": pusher}
        )

    def pull(self, action: str, sender: str) -> str:
        """Somebody opens the pull request of mallory, or pushes to it; the build's id."""
        pull = {"number": 7, "title": "t", "user": {"login": "mallory"}, "base": BASE, "head": HEAD}
        return self.gitea(
            "pull_request", action=action, number=7, sender={"login": sender}, pull_request=pull
        )

    def _posted(self, hook: str, content: bytes, headers: dict[str, str]) -> str:
        answer = self.server.http.post(f"/hooks/{hook}", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        return self.handled()

    def handled(self) -> str:
        """Handle what waits; return the id of the only new build."""
        before = {one.id for one in self.server.store.builds.page("p").builds}
        loop = delivery_loop(self.server.context, Settings())
        while loop.turn():
            assert loop.wait_until_idle(60)
        (new,) = (one for one in self.server.store.builds.page("p").builds if one.id not in before)
        assert new.status == "PENDING"
        return new.id

    def decide(self, who: str, build: str, decision: str = "APPROVED") -> httpx.Response:
        body = {"approvalResult": {"decision": decision}}
        return self.call(who, "POST", f"/v1/projects/p/builds/{build}:approve", body)

    def retry(self, who: str, build: str) -> str:
        answer = self.call(who, "POST", f"/v1/projects/p/builds/{build}:retry")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["metadata"]["build"]["id"])

    def refused(self, who: str, build: str) -> str:
        """Return why a caller may not approve a build."""
        answer = self.decide(who, build)
        assert answer.status_code == 403, answer.text
        assert self.server.store.builds.get("p", build).status == "PENDING"
        return str(answer.json()["error"]["message"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    forge = Forge()
    try:
        with api_server(tmp_path, auth=True, sources=SourcePolicy(private=True)) as server:
            yield Place(server, forge)
    finally:
        forge.close()


def test_who_pushed_does_not_approve_what_another_retries(place: Place) -> None:
    place.trigger("gitea", push={"branch": "."})
    first = place.push()
    assert place.refused("mallory", first).startswith("mallory is behind this build")
    assert place.decide("mallory", first, "REJECTED").status_code == 200
    second = place.retry("bob", first)
    assert place.refused("mallory", second).startswith("mallory is behind this build")
    assert place.decide("alice", second, "REJECTED").status_code == 200
    third = place.retry("alice", second)
    for who in ("mallory", "bob", "alice"):
        assert place.refused(who, third).startswith(f"{who} is behind this build")
    assert place.decide("carol", third).status_code == 200


def test_a_push_that_no_webhook_reported_has_no_known_author(place: Place) -> None:
    place.trigger("gitea", push={"branch": "."})
    url = f"{place.forge.url}/acme/app.git"
    refs = {"refs/heads/main": OLD}
    remote = RemoteRefs(list_refs=lambda _: dict(refs), message=lambda *_: "m")
    context = replace(
        place.server.context, repositories=RepositoryNames(connected={"": {"acme/app": url}})
    )
    Reconciler(context, remote).look()
    refs["refs/heads/main"] = NEW
    assert Reconciler(context, remote).look() == 1
    build = place.handled()
    for who in ("mallory", "alice"):
        reason = place.refused(who, build)
        assert "does not know all authors of this build" in reason
        assert "an admin of the project" in reason
    assert place.decide("alice", build, "REJECTED").status_code == 200
    again = place.retry("bob", build)
    assert "does not know all authors" in place.refused("mallory", again)
    assert place.decide("root", again).status_code == 200


@pytest.mark.parametrize("source", [{}, {"branchName": "main"}, {"tagName": "v1"}])
def test_who_may_push_to_a_branch_does_not_approve_a_manual_run_of_it(
    place: Place, source: dict[str, str]
) -> None:
    """Issue: mallory pushed after bob had begun the run, and approved what was her commit then."""
    place.trigger("gitea", push={"branch": "^main$"})
    answer = place.call("bob", "POST", "/v1/projects/p/triggers/deploy:run", {"source": source})
    build = str(answer.json()["metadata"]["build"]["id"])
    assert "does not know all authors of this build" in place.refused("mallory", build)
    facts = place.call("mallory", "GET", f"/buildrunner/v1/projects/p/builds/{build}/approval")
    name = source.get("tagName", "main")
    assert f"{name} has when it begins, even one that is pushed later" in str(facts.json())
    body = {"source": {"commitSha": NEW}}
    answer = place.call("bob", "POST", "/v1/projects/p/triggers/deploy:run", body)
    named = answer.json()["metadata"]["build"]["id"]
    facts = place.call("alice", "GET", f"/buildrunner/v1/projects/p/builds/{named}/approval")
    assert "the commit that its caller named, which may be a fork's" in str(facts.json())
    assert place.decide("alice", named).status_code == 200


@pytest.mark.parametrize("kind", ["note", "merge_request"])
def test_a_merge_request_whose_event_has_only_the_number_of_its_author(
    place: Place, kind: str
) -> None:
    control = "COMMENTS_ENABLED" if kind == "note" else "COMMENTS_DISABLED"
    place.trigger("gitlab", pullRequest={"branch": "main", "commentControl": control})
    place.forge.say_rights("gitlab", {"access_level": 30})
    bob = {"id": 7, "username": "bob"}
    note = {"noteable_type": "MergeRequest", "action": "create", "note": "/gcbrun", "author_id": 7}
    update = {**MERGE_REQUEST, "action": "update", "oldrev": OLD}
    build = (
        place.gitlab(kind, user=bob, object_attributes=note, merge_request=MERGE_REQUEST)
        if kind == "note"
        else place.gitlab(kind, user=bob, object_attributes=update)
    )
    assert "does not know all authors of this build" in place.refused("mallory", build)
    assert place.refused("bob", build).startswith("bob is behind this build")
    assert place.decide("root", build).status_code == 200


def test_who_pushed_to_a_pull_request_does_not_approve_what_another_asks_for(place: Place) -> None:
    place.trigger("gitea", pullRequest={"branch": "main", "commentControl": "COMMENTS_DISABLED"})
    opened = place.pull("opened", "mallory")
    assert place.refused("mallory", opened).startswith("mallory is behind this build")
    by_wendy = place.pull("synchronized", "wendy")
    assert place.refused("wendy", by_wendy).startswith("wendy is behind this build")
    assert place.refused("mallory", by_wendy).startswith("mallory is behind this build")
    by_carol = place.pull("synchronized", "carol")
    assert "does not know all authors of this build" in place.refused("wendy", by_carol)
    place.forge.say("/collaborators/carol/permission", {"permission": "write"})
    place.forge.say("/pulls/7", {"number": 7, "base": BASE, "head": HEAD})
    comment = place.gitea(
        "issue_comment",
        action="created",
        is_pull=True,
        issue={"number": 7, "title": "t", "user": {"login": "mallory"}},
        comment={"body": "/gcbrun", "user": {"login": "carol"}},
    )
    assert "does not know all authors of this build" in place.refused("wendy", comment)
    assert place.refused("carol", comment).startswith("carol is behind this build")
    assert place.decide("alice", opened).status_code == 200


def test_of_an_unknown_author_s_build_a_named_approver_decides_who_is_not_behind_it(
    place: Place,
) -> None:
    approval = {"approvers": ["wendy", "alice"]}
    place.trigger(
        "gitea", approval, pullRequest={"branch": "main", "commentControl": "COMMENTS_DISABLED"}
    )
    build = place.pull("synchronized", "wendy")
    for who in ("mallory", "root"):
        assert "wendy, alice may" in place.refused(who, build)
    assert place.refused("wendy", build).startswith("wendy is behind this build")
    assert place.decide("alice", build).status_code == 200


@pytest.mark.parametrize(
    ("pusher", "sender", "are_all"),
    [
        ("mallory", {}, True),
        ("mallory", {"login": "Mallory", "type": "User"}, True),
        ("github-actions[bot]", {}, False),
        ("project_12_bot_3f", {}, False),
        ("group_12_bot", {}, False),
        ("service_account_group_12_3f", {}, False),
        ("gitea-actions", {}, False),
        ("forgejo-actions", {}, False),
        ("web-flow", {}, False),
        ("deployer", {"login": "deployer", "type": "Bot"}, False),
        ("acme", {"login": "acme", "type": "Organization"}, False),
        ("deployer", {"login": "deployer", "type": "SERVICE"}, False),
        ("owner", {"login": "mallory"}, False),  # a key for deployments
    ],
)
def test_behind_a_push_of_a_bot_is_somebody_whom_the_server_does_not_know(
    pusher: str, sender: dict[str, str], are_all: bool
) -> None:
    """Issue: mallory had a bot push her commit, and approved its build."""
    repository = Repository(full_name="acme/app", forge="github")
    push = PushEvent(
        repository=repository, ref="refs/heads/main", author=pusher, body={"sender": sender}
    )
    pull = PullRequestEvent(
        repository=repository,
        number=1,
        base_branch="main",
        head_branch="feat",
        action="opened",
        author=pusher,
        actor=sender.get("login", pusher),
        body={"sender": sender},
    )
    assert people_behind(push).are_all is are_all
    assert people_behind(pull).are_all is (are_all and pull.author == pull.actor)
    if "login" in sender:
        assert people_behind(push).include(sender["login"])


def test_the_approver_sees_everybody_behind_a_build(place: Place) -> None:
    place.trigger("gitea", pullRequest={"branch": "main", "commentControl": "COMMENTS_DISABLED"})
    first = place.pull("opened", "mallory")
    assert place.decide("alice", first, "REJECTED").status_code == 200
    build = place.retry("bob", first)
    path = f"/buildrunner/v1/projects/p/builds/{build}/approval"
    facts = place.call("root", "GET", path).json()
    assert facts["people"] == ["gitea:mallory", "bob"]
    assert "otherPeople" not in facts
    pushed = place.pull("synchronized", "wendy")
    with signed_in(place.server, "read") as browser:
        assert "Behind it gitea:mallory, bob Commit" in words(browser.get(f"/builds/p/{build}"))
        said = words(browser.get(f"/builds/p/{pushed}"))
    others = "gitea:mallory, gitea:wendy, and people whom the server does not know"
    assert f"Behind it {others}" in said
    client = ServerClient(place.server.url, project="p", token=place.tokens["root"])
    assert f"Behind it: {others}" in approval_lines(client.approval_of(pushed))
    client.close()
