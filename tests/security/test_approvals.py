"""Whoever approves a build is told whose code it is and what the approval grants, and is told the
truth: nothing that the author of a pull request writes can say otherwise.

A writer's comment asks for the build of a fork's pull request: what was shown then was the
repository that it is for, as the source, and the writer, as the author.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from buildrunner.cli.builds.remote import approval_lines
from buildrunner.cli.serve.loops import delivery_loop
from buildrunner.client.client import ServerClient
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from tests.api_server import ApiServer, api_server
from tests.held_secrets import token_name
from tests.server.test_forge_api import Forge
from tests.server.test_pages import csrf_of, signed_in

SECRET = "of the hook"
OLD, COMMIT = "a" * 40, "b" * 40
SECRET_NAME = "projects/p/secrets/deploy-key/versions/latest"
NEEDS = {"secretManager": [{"versionName": SECRET_NAME, "env": "KEY"}]}
STEPS = [{"name": "busybox", "secretEnv": ["KEY"], "script": "true"}]
HOLDS = {"availableSecrets": NEEDS, "steps": STEPS}
COMMENTS = {"branch": ".", "commentControl": "COMMENTS_ENABLED"}
BASE = {"ref": "main", "sha": OLD, "repo": {"full_name": "acme/app"}}
FORK = {"ref": "feat", "sha": COMMIT, "repo": {"full_name": "mallory/app"}}
BRANCH = {"ref": "feat", "sha": COMMIT, "repo": {"full_name": "acme/app"}}


class Place:
    """A server, which asks for tokens, and a forge; a trigger on pull requests of acme/app."""

    def __init__(self, server: ApiServer, forge: Forge) -> None:
        self.server = server
        self.forge = forge
        server.hook("gitea", SECRET, host=forge.url, owners=["acme"])
        server.secrets[token_name(forge.url)] = "t0ken"
        self._root = {"Authorization": f"Bearer {server.token('root', 'admin')}"}
        forge.say("/collaborators/wendy/permission", {"permission": "write"})

    def trigger(self, control: str = "COMMENTS_ENABLED", **fields: Any) -> None:
        pull = {"branch": ".", "commentControl": control}
        document = {
            "name": "pulls",
            "github": {"owner": "acme", "name": "app", "pullRequest": pull},
            "build": HOLDS,
            **fields,
        }
        self.ask(
            "POST",
            "/v1/projects/p/triggers",
            json=document,
            params={"forge": "gitea", "forgeHost": self.forge.url},
        )

    def ask(self, method: str, path: str, **request: Any) -> Any:
        answer = self.server.http.request(method, path, headers=self._root, **request)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def comment(self, head: dict[str, Any] = FORK, title: str = "Faster") -> str:
        """Wendy, who may write, asks for the build of mallory's pull request; its id."""
        self.forge.say("/pulls/7", {"number": 7, "base": BASE, "head": head})
        return self._deliver(
            "issue_comment",
            {
                "action": "created",
                "is_pull": True,
                "repository": {"full_name": "acme/app"},
                "issue": {"number": 7, "title": title, "user": {"login": "mallory"}},
                "comment": {"body": "/gcbrun", "user": {"login": "wendy"}},
            },
        )

    def push(self, sender: str, head: dict[str, Any] = FORK) -> str:
        """Somebody pushes to the pull request that mallory opened; the build's id."""
        pull = {"number": 7, "title": "Faster", "user": {"login": "mallory"}}
        return self._deliver(
            "pull_request",
            {
                "action": "synchronized",
                "number": 7,
                "repository": {"full_name": "acme/app"},
                "sender": {"login": sender},
                "pull_request": {**pull, "base": BASE, "head": head},
            },
        )

    def _deliver(self, kind: str, body: dict[str, Any]) -> str:
        content = json.dumps(body).encode()
        signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
        headers = {"X-Gitea-Event": kind, "X-Gitea-Signature": signature}
        answer = self.server.http.post("/hooks/gitea", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        loop = delivery_loop(self.server.context, Settings())
        while loop.turn():
            assert loop.wait_until_idle(60)
        outcome = self.server.store.deliveries.get(answer.json()["delivery"]).outcome
        (build,) = self.server.store.builds.page("p").builds
        assert not outcome.get("error"), outcome
        return build.id

    def facts(self, build: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/buildrunner/v1/projects/p/builds/{build}/approval"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    forge = Forge()
    try:
        with api_server(tmp_path, auth=True, sources=SourcePolicy(private=True)) as server:
            yield Place(server, forge)
    finally:
        forge.close()


def words(page: httpx.Response) -> str:
    """What a person reads on a page, in one line."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split()).replace(" ,", ",")


def test_the_page_says_that_it_is_a_fork_s_and_whose_and_what_it_gets(place: Place) -> None:
    place.trigger()
    build = place.comment()
    with signed_in(place.server, "read", "approve") as browser:
        page = browser.get(f"/builds/p/{build}")
    said = words(page)
    for text in (
        "Pull request #7 Faster",
        "Source fork mallory/app, branch feat",
        "Into acme/app, branch main",
        "Author mallory",
        "Requested by a comment of wendy",
        "Code of a fork, mallory/app by mallory",
        "Trust: none .",
        "It gets no secret and no login of the server",
        "It gets neither the engine's socket nor privileged steps",
        "It pushes no image",
    ):
        assert text in said, (text, said)
    assert "Source acme/app" not in said
    assert "By gitea:wendy" not in said
    assert f'href="{place.forge.url}/acme/app/pulls/7"' in page.text
    assert SECRET_NAME not in said.split("Views of this build")[0].split("Steps")[0]


def test_the_list_of_builds_marks_it(place: Place) -> None:
    place.trigger()
    place.comment()
    with signed_in(place.server, "read") as browser:
        assert "fork #7 mallory/app by mallory" in words(browser.get("/builds?project=p"))


def test_the_api_says_the_same(place: Place) -> None:
    place.trigger()
    facts = place.facts(place.comment())
    grants = facts.pop("grants")
    assert facts == {
        "state": "PENDING",
        "fork": True,
        "forge": "gitea",
        "pullRequest": 7,
        "title": "Faster",
        "url": f"{place.forge.url}/acme/app/pulls/7",
        "author": "mallory",
        "commenter": "wendy",
        "people": ["gitea:mallory", "gitea:wendy"],
        "otherPeople": True,
        "headRepository": "mallory/app",
        "headBranch": "feat",
        "baseRepository": "acme/app",
        "baseBranch": "main",
        "commit": COMMIT,
        "trusted": False,
    }
    said = "no login of the server, no dependencies, submodules or files of Git LFS"
    assert f"It gets no secret and {said}" in grants


def test_a_pull_request_of_the_repository_s_own_branch_tells_which_secrets_it_gets(
    place: Place,
) -> None:
    place.trigger(approvalConfig={"approvalRequired": True})
    build = place.comment(BRANCH)
    facts = place.facts(build)
    assert "fork" not in facts
    assert "trusted" not in facts  # true, which is what is meant where nothing is said
    assert facts["secrets"] == [SECRET_NAME]
    assert f"It gets these secrets: {SECRET_NAME}" in facts["grants"]
    assert "It acts with the rights of project p" in facts["grants"]
    with signed_in(place.server, "read") as browser:
        said = words(browser.get(f"/builds/p/{build}"))
    assert "Trust: the project's ." in said
    assert f"It gets these secrets: {SECRET_NAME}" in said
    assert "Source acme/app, branch feat" in said
    assert "Approve" not in said.split("Once it is approved")[1]  # who only reads has no form


def test_secrets_of_a_config_in_the_repository_are_not_said_to_be_none(place: Place) -> None:
    place.trigger(build=None, filename="cloudbuild.yaml", approvalConfig={"approvalRequired": True})
    facts = place.facts(place.comment(BRANCH))
    said = "It gets the secrets that its config asks for, as far as their scopes allow"
    assert said in facts["grants"]
    assert "Its steps are those of the config in the commit" in facts["grants"]


def test_the_approver_reads_what_the_caller_of_a_run_chose(place: Place) -> None:
    document = {
        "name": "deploy",
        "sourceToBuild": {"uri": "https://github.com/acme/app", "ref": "refs/heads/main"},
        "filename": "cloudbuild.yaml",
        "substitutions": {"_TARGET": "staging", "_CHECK": "./verify.sh"},
        "approvalConfig": {"approvalRequired": True},
    }
    place.ask("POST", "/v1/projects/p/triggers", json=document)
    chosen = {"BRANCH_NAME": "release", "_TARGET": "production"}
    chosen["TRIGGER_NAME"] = "update-docs"
    chosen["_CHECK"] = 'true". It asks for no secret\x1b[8m'
    source = {"branchName": "main", "dir": "examples/evil", "substitutions": chosen}
    made = place.ask("POST", "/v1/projects/p/triggers/deploy:run", json={"source": source})
    build = made["metadata"]["build"]["id"]
    expected = (
        "It is a build of trigger deploy",
        'Its caller set _CHECK to "true\\". It asks for no secret\\u001b[8m"',
        'Its caller set _TARGET to "production"',
        'Its caller set BRANCH_NAME to "release"',
        'Its caller set TRIGGER_NAME to "update-docs"',
        'Its caller chose the folder "examples/evil" of the source',
    )
    token = place.server.token("dora", "admin")
    client = ServerClient(place.server.url, project="p", token=token)
    lines = approval_lines(client.approval_of(build))
    client.close()
    with signed_in(place.server, "read", "approve") as browser:
        card = words(browser.get(f"/builds/p/{build}")).split("Once it is approved")[1]
    for sentence in expected:
        assert sentence in place.facts(build)["grants"]
        assert f"- {sentence}" in lines
        assert f"{sentence}." in card
    path = f"/v1/projects/p/builds/{build}:approve"
    place.ask("POST", path, json={"approvalResult": {"decision": "REJECTED"}})
    again = place.ask("POST", f"/v1/projects/p/builds/{build}:retry")["metadata"]["build"]["id"]
    assert set(expected) <= set(place.facts(again)["grants"])


def test_nobody_chooses_which_trigger_pages_name(place: Place) -> None:
    place.trigger()
    name = place.server.store.triggers.page("p", page_size=1)[0][0]["name"]
    source = {"branchName": "main", "substitutions": {"TRIGGER_NAME": "update-docs"}}
    made = place.ask("POST", f"/v1/projects/p/triggers/{name}:run", json={"source": source})
    build = made["metadata"]["build"]["id"]
    plain = {
        "steps": [{"name": "x", "env": ["NAME=$TRIGGER_NAME"]}],
        "substitutions": {"TRIGGER_NAME": "update-docs"},
    }
    of_none = place.ask("POST", "/v1/projects/p/builds", json=plain)["metadata"]["build"]["id"]
    with signed_in(place.server, "read") as browser:
        for path in (f"/builds/p/{build}", f"/builds/p/{of_none}"):
            shown = browser.get(path).text
            for title in ("title", 'h1 id="build-title"'):
                said = shown.split(f"<{title}>")[1].split("</")[0]
                assert "update-docs" not in said
        listed = browser.get("/builds?project=p").text
    assert f">{name}</a>" in listed
    assert "update-docs" not in listed


def test_the_author_of_a_link_does_not_choose_what_a_page_says(place: Place) -> None:
    place.trigger()
    build = place.comment()
    said = "this build was checked by security"
    with signed_in(place.server, "read", "approve", "admin") as browser:
        path = f"/builds/p/{build}"
        for page in (path, "/outbox"):
            shown = browser.get(page, params={"project": "p", "wrong": said, "seal": "0" * 64})
            assert said not in shown.text
        fields = {"csrf": csrf_of(browser.get(path))}
        assert browser.post(f"{path}/approve", data=fields).status_code == 200
        refused = browser.post(f"{path}/approve", data=fields)
        assert 'role="alert"' in refused.text  # the server's own refusal is shown
        own = refused.url
    with signed_in(place.server, "read") as browser:
        assert 'role="alert"' not in browser.get(str(own)).text


def test_whoever_pushes_to_somebody_s_pull_request_is_not_its_author(place: Place) -> None:
    place.trigger("COMMENTS_DISABLED")
    build = place.push("wendy")
    facts = place.facts(build)
    assert facts["author"] == "mallory"
    assert "commenter" not in facts
    with signed_in(place.server, "read") as browser:
        said = words(browser.get(f"/builds/p/{build}"))
    assert "Author mallory" in said
    assert "By gitea:wendy" in said


@pytest.mark.parametrize(("decision", "word"), [("approve", "Approved"), ("reject", "Rejected")])
def test_afterwards_it_says_who_decided_when_and_why(
    place: Place, decision: str, word: str
) -> None:
    place.trigger()
    build = place.comment()
    with signed_in(place.server, "read", "approve") as browser:
        path = f"/builds/p/{build}"
        fields = {"csrf": csrf_of(browser.get(path)), "comment": "read <b>all</b> of it"}
        page = browser.post(f"{path}/{decision}", data=fields)
    said = words(page)
    assert re.search(rf"{word} \S.* by read-approve : read <b>all</b> of it", said), said
    assert "Once it is approved" not in said
    facts = place.facts(build)
    assert facts["state"] == word.upper()
    assert facts["approver"] == "read-approve"
    assert facts["comment"] == "read <b>all</b> of it"
    assert f'datetime="{facts["time"]}"' in page.text


def test_a_build_that_is_run_again_is_the_same_stranger_s(place: Place) -> None:
    place.trigger()
    build = place.comment()
    path = f"/v1/projects/p/builds/{build}:approve"
    place.ask("POST", path, json={"approvalResult": {"decision": "REJECTED"}})
    again = place.ask("POST", f"/v1/projects/p/builds/{build}:retry")["metadata"]["build"]["id"]
    facts = place.facts(again)
    assert (facts["state"], facts["fork"], facts["author"]) == ("PENDING", True, "mallory")
    assert "approver" not in facts
    with signed_in(place.server, "read") as browser:
        said = words(browser.get(f"/builds/p/{again}"))
    assert "Requested by a comment of wendy" in said
    assert "By root" in said


@pytest.mark.parametrize(
    "title",
    [
        "<script>alert(1)</script>",
        '"><h2>Approved by root</h2>',
        "\u202eyllaer \u2066fo krof\u2069",
        "a\x1b[2Jb",
    ],
)
def test_what_an_author_writes_is_text_and_turns_nothing_around(place: Place, title: str) -> None:
    place.trigger()
    head = {**FORK, "ref": "\u202efeat"}
    build = place.comment(head, title)
    with signed_in(place.server, "read") as browser:
        page = browser.get(f"/builds/p/{build}")
        pages = page.text + browser.get("/builds?project=p").text
    assert "<script>alert" not in pages
    assert "<h2>Approved" not in pages
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", page.text.split('class="tabs"')[0])
    lines = "\n".join(approval_lines(place.facts(build)))
    assert lines.replace("\n", "").isprintable()


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", " https://x"])
def test_the_link_of_a_decision_leads_to_the_web_only(place: Place, url: str) -> None:
    place.trigger()
    build = place.comment()
    path = f"/v1/projects/p/builds/{build}:approve"
    place.ask("POST", path, json={"approvalResult": {"decision": "APPROVED", "url": url}})
    with signed_in(place.server, "read") as browser:
        page = browser.get(f"/builds/p/{build}")
    assert f'href="{url}"' not in page.text
    assert html.escape(url) in page.text


def test_a_terminal_says_the_same(place: Place) -> None:
    place.trigger()
    build = place.comment()
    client = ServerClient(place.server.url, project="p", token=place.server.token("dora", "admin"))
    lines = approval_lines(client.approval_of(build))
    assert lines[:5] == [
        "Of a fork's pull request #7 by mallory, from mallory/app, branch feat into acme/app",
        "Requested by a comment of wendy",
        f"{place.forge.url}/acme/app/pulls/7",
        "Behind it: gitea:mallory, gitea:wendy, and people whom the server does not know",
        "Trust: none. Once it is approved:",
    ]
    client.decide_build(build, approved=False, comment="no")
    told = approval_lines(client.approval_of(build))
    client.close()
    assert re.fullmatch(r"Rejected by dora at \S+Z: no", told[-1]), told


def test_a_build_from_before_its_trigger_demanded_approvals_is_not_run_again_without(
    place: Place,
) -> None:
    trigger = {"name": "t", "build": {"steps": [{"name": "busybox"}]}}
    place.ask("POST", "/v1/projects/p/triggers", json=trigger)
    made = place.ask("POST", "/v1/projects/p/triggers/t:run")
    old = made["metadata"]["build"]["id"]
    place.server.run(old, "FAILURE")
    again = place.ask("POST", f"/v1/projects/p/builds/{old}:retry")
    assert again["metadata"]["build"]["status"] == "QUEUED"
    demands = {**trigger, "approvalConfig": {"approvalRequired": True}}
    place.ask("PATCH", "/v1/projects/p/triggers/t", json=demands)
    again = place.ask("POST", f"/v1/projects/p/builds/{old}:retry")
    assert again["metadata"]["build"]["status"] == "PENDING"
