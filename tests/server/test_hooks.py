"""What forges send to a real server: what it takes, what it keeps, what it builds."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from buildrunner.cli.triggers.deliveries import shown
from buildrunner.server.events.facts import EventFacts
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.sources.policy import SourcePolicy
from buildrunner.store.model.deliveries import Watched
from buildrunner.triggers.forges.forge import MOST_REFS
from tests.api_server import ApiServer, api_server

APP = Watched("p", "github.com/acme/app")
SECRET = "It's a Secret to Everybody"
COMMIT, OLD = "b" * 40, "a" * 40
REPOSITORY: dict[str, Any] = {
    "full_name": "acme/app",
    "clone_url": "https://github.com/acme/app.git",
    "html_url": "https://github.com/acme/app",
}
PUSH: dict[str, Any] = {
    "ref": "refs/heads/main",
    "before": OLD,
    "after": COMMIT,
    "repository": REPOSITORY,
    "pusher": {"name": "eve"},
    "head_commit": {"id": COMMIT, "message": "change"},
    "commits": [{"id": COMMIT, "added": ["src/a.py"], "modified": [], "removed": []}],
}
TRIGGER: dict[str, Any] = {
    "name": "t",
    "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
    "build": {"steps": [{"name": "busybox", "args": ["echo", "$SHORT_SHA"]}]},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        for hook in ("github", "gitlab", "bitbucket"):
            running.hook(hook, SECRET, owners=["acme"])
        running.hook("gitea", SECRET, host="git.example.com", owners=["*"])
        running.hook("bitbucket-server", SECRET, host="bb.example.com", owners=["acme"])
        running.hook("git/app", SECRET)
        running.hook("pubsub/topic", SECRET, topic="projects/p/topics/topic")
        yield running


def signed(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def github(
    server: ApiServer, body: Any, kind: str = "push", path: str = "/hooks/github", **headers: str
) -> httpx.Response:
    content = json.dumps(body).encode()
    given = {
        "X-GitHub-Event": kind,
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": signed(content),
        **headers,
    }
    return server.http.post(path, content=content, headers=given)


def handle(server: ApiServer, facts: EventFacts | None = None) -> None:
    """Handle all that waits, as the loop of a server does."""
    loop = DeliveryLoop(server.context, DeliveryHandler(server.context, facts))
    while loop.turn():
        assert loop.wait_until_idle(30)


def make_trigger(server: ApiServer, forge: tuple[str, str] = ("", ""), **fields: Any) -> str:
    document = {**TRIGGER, **fields}
    query = {"forge": forge[0], "forgeHost": forge[1]} if forge[0] else {}
    answer = server.http.post("/v1/projects/p/triggers", json=document, params=query)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def delivery(server: ApiServer, number: int) -> Any:
    answer = server.http.get(f"/buildrunner/v1/deliveries/{number}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def builds(server: ApiServer) -> list[Any]:
    return list(server.http.get("/v1/projects/p/builds").json().get("builds", []))


def test_a_push_makes_a_build_of_its_commit_and_says_why(server: ApiServer) -> None:
    make_trigger(server)
    make_trigger(server, name="other", github={**TRIGGER["github"], "push": {"branch": "^dev$"}})
    answer = github(server, PUSH)
    assert answer.status_code == 200
    assert builds(server) == []
    handle(server)
    (build,) = builds(server)
    assert build["source"]["gitSource"]["revision"] == COMMIT
    assert build["substitutions"]["BRANCH_NAME"] == "main"
    assert build["status"] == "QUEUED"
    stored = server.store.builds.find(build["id"])
    assert stored.labels["forge"] == "github"
    assert stored.labels["commit"] == COMMIT
    assert stored.labels["submitter"] == "github:eve"
    assert not stored.untrusted
    found = delivery(server, answer.json()["delivery"])
    assert found["status"] == "handled"
    assert found["body"] == PUSH
    (event,) = found["outcome"]["events"]
    verdicts = {one["trigger"]: one for one in event["verdicts"]}
    assert verdicts["t"]["build"] == build["id"]
    assert verdicts["other"]["fires"] is False
    assert verdicts["other"]["reason"] == "branch main does not match ^dev$"
    (listed,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert listed["builds"] == [build["id"]]
    assert listed["about"] == "push of refs/heads/main to bbbbbbbbbbbb in acme/app (github)"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Hub-Signature-256": signed(b"other")},
        {"X-Hub-Signature-256": ""},
        {"X-Hub-Signature-256": signed(json.dumps(PUSH).encode(), "wrong")},
        {"X-Hub-Signature-256": "sha256=é"},
    ],
)
def test_a_wrong_signature_gets_401_and_leaves_a_trace(
    server: ApiServer, headers: dict[str, str]
) -> None:
    content = json.dumps(PUSH).encode()
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    answer = server.http.post(
        "/hooks/github", content=content, headers={b"X-GitHub-Event": b"push", **raw}
    )
    assert answer.status_code == 401
    assert "signature or secret is not right" in answer.json()["error"]["message"]
    (seen,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert (seen["status"], seen["hook"], seen["address"]) == ("refused", "github", "127.0.0.1")
    refused = server.http.post(f"/buildrunner/v1/deliveries/{seen['number']}:replay")
    assert refused.status_code == 400
    assert refused.json()["error"]["status"] == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("headers", "said"),
    [({}, "it is not signed"), ({"X-Hub-Signature": "sha1=" + "0" * 40}, "only a SHA-1 signature")],
)
def test_what_a_delivery_lacks_is_in_the_trace(
    server: ApiServer, headers: dict[str, str], said: str
) -> None:
    content = json.dumps(PUSH).encode()
    given = {"X-GitHub-Event": "push", **headers}
    answer = server.http.post("/hooks/github", content=content, headers=given)
    assert answer.status_code == 401
    (refused,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert refused["status"] == "refused"
    assert said in refused["reason"]


def test_a_form_is_kept_and_shown_as_the_payload_that_it_holds(server: ApiServer) -> None:
    make_trigger(server)
    content = urlencode({"payload": json.dumps(PUSH)}).encode()
    given = {
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": signed(content),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    answer = server.http.post("/hooks/github", content=content, headers=given)
    assert answer.status_code == 200
    handle(server)
    assert len(builds(server)) == 1
    assert delivery(server, answer.json()["delivery"])["body"] == PUSH


def gitlab_signed(server: ApiServer, at: float) -> httpx.Response:
    content = b'{"object_kind": "push"}'
    stamp = f"{at:.0f}"
    digest = hmac.new(SECRET.encode(), b"id." + stamp.encode() + b"." + content, hashlib.sha256)
    given = {
        "webhook-id": "id",
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(digest.digest()).decode(),
    }
    return server.http.post("/hooks/gitlab", content=content, headers=given)


def test_what_says_when_it_was_sent_must_be_fresh(server: ApiServer) -> None:
    now = server.context.clock().timestamp()
    assert gitlab_signed(server, now - 301).status_code == 401
    assert gitlab_signed(server, now + 360).status_code == 401  # time goes on meanwhile
    assert gitlab_signed(server, now - 240).status_code == 200


def test_a_list_says_of_how_much_a_delivery_tells(server: ApiServer) -> None:
    changes = [
        {"new": {"type": "branch", "name": name, "target": {"hash": COMMIT}}} for name in "abc"
    ]
    body = {"repository": {"full_name": "acme/app"}, "push": {"changes": changes}}
    content = json.dumps(body).encode()
    given = {"X-Event-Key": "repo:push", "X-Hub-Signature": signed(content)}
    assert server.http.post("/hooks/bitbucket", content=content, headers=given).status_code == 200
    handle(server)
    (listed,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    wanted = "push of refs/heads/a to bbbbbbbbbbbb in acme/app (bitbucket), and 2 more"
    assert listed["about"] == wanted


def bitbucket_update(server: ApiServer, commit: str) -> int:
    side = {"repository": {"full_name": "acme/app"}, "commit": {"hash": commit}}
    pull = {
        "id": 3,
        "source": {**side, "branch": {"name": "feat"}},
        "destination": {**side, "branch": {"name": "main"}},
    }
    content = json.dumps({"pullrequest": pull}).encode()
    given = {
        "X-Event-Key": "pullrequest:updated",
        "X-Request-UUID": str(uuid.uuid4()),
        "X-Hub-Signature": signed(content),
    }
    answer = server.http.post("/hooks/bitbucket", content=content, headers=given)
    assert answer.status_code == 200
    handle(server)
    return int(answer.json()["delivery"])


def test_a_pull_request_whose_text_changed_is_not_built_again(server: ApiServer) -> None:
    events = {"owner": "acme", "name": "app", "pullRequest": {"branch": "."}}
    make_trigger(server, ("bitbucket", ""), github=events)
    first = bitbucket_update(server, COMMIT)
    assert len(builds(server)) == 1
    number = bitbucket_update(server, COMMIT)
    (event,) = delivery(server, number)["outcome"]["events"]
    assert event["ignored"] == "its text changed, not its commits"
    bitbucket_update(server, OLD)
    assert len(builds(server)) == 2
    server.http.post(f"/buildrunner/v1/deliveries/{first}:replay")
    handle(server)
    assert len(builds(server)) == 3


def test_bitbucket_server_need_not_tell_where_a_repository_is(server: ApiServer) -> None:
    url = "https://bb.example.com/scm/acme/app.git"
    events = {"projectKey": "ACME", "repoSlug": "app", "push": {"branch": "."}}
    forge = ("bitbucket-server", "bb.example.com")
    make_trigger(server, forge, github=None, bitbucketServerTriggerConfig=events)
    change = {"ref": {"id": "refs/heads/main"}, "fromHash": OLD, "toHash": COMMIT}
    repository = {"slug": "app", "project": {"key": "ACME"}}
    content = json.dumps({"repository": repository, "changes": [change]}).encode()
    given = {"X-Event-Key": "repo:refs_changed", "X-Hub-Signature": signed(content)}
    answer = server.http.post("/hooks/bitbucket-server", content=content, headers=given)
    assert answer.status_code == 200
    handle(server)
    (build,) = builds(server)
    assert build["source"]["gitSource"] == {"url": url, "revision": COMMIT}


def test_a_hook_without_a_secret_takes_nothing(server: ApiServer) -> None:
    del server.secrets["hooks-github"]
    assert github(server, PUSH).status_code == 401
    (seen,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert "the hook has no secret" in seen["reason"]
    assert "buildrunner secrets set hooks-github" in seen["reason"]


def test_no_secret_of_a_delivery_is_kept(server: ApiServer) -> None:
    body = {"object_kind": "push"}
    headers = {"X-Gitlab-Token": SECRET, "Authorization": f"Bearer {SECRET}"}
    headers |= dict.fromkeys(("X-Api-Key", "X-Auth", "X-Webhook-Secret"), SECRET)
    answer = server.http.post("/hooks/gitlab", json=body, headers=headers)
    assert answer.status_code == 200
    found = delivery(server, answer.json()["delivery"])
    assert SECRET not in json.dumps(found)
    assert "x-gitlab-token" not in found["headers"]


def test_the_same_delivery_twice_builds_once(server: ApiServer) -> None:
    make_trigger(server)
    first = github(server, PUSH, **{"X-GitHub-Delivery": "d-1"})
    again = github(server, PUSH, **{"X-GitHub-Delivery": "d-1"})
    assert again.json() == {"delivery": first.json()["delivery"], "duplicate": True}
    handle(server)
    github(server, PUSH, **{"X-GitHub-Delivery": "d-1"})
    handle(server)
    assert len(builds(server)) == 1


def test_a_server_that_dies_in_the_middle_makes_nothing_twice(server: ApiServer) -> None:
    make_trigger(server)
    make_trigger(server, name="second")
    github(server, PUSH)
    now = server.context.clock()
    (claimed,) = server.store.deliveries.claim(now=now, lease_s=0, limit=1)
    DeliveryHandler(server.context).handle(claimed)  # and dies before it says so
    handle(server)
    assert len(builds(server)) == 2


def test_a_replay_builds_again(server: ApiServer) -> None:
    make_trigger(server)
    number = github(server, PUSH).json()["delivery"]
    handle(server)
    answer = server.http.post(f"/buildrunner/v1/deliveries/{number}:replay")
    assert answer.json()["status"] == "received"
    handle(server)
    assert len(builds(server)) == 2
    assert server.http.post("/buildrunner/v1/deliveries/99:replay").status_code == 404


def pull(**head: Any) -> dict[str, Any]:
    repo = {"full_name": "eve/app", "clone_url": "https://github.com/eve/app.git"}
    return {
        "action": "opened",
        "number": 7,
        "repository": REPOSITORY,
        "pull_request": {
            "number": 7,
            "title": "t",
            "user": {"login": "eve"},
            "author_association": "NONE",
            "base": {"ref": "main", "sha": OLD, "repo": REPOSITORY},
            "head": {"ref": "feat", "sha": COMMIT, "repo": repo, **head},
        },
    }


PULL_TRIGGER: dict[str, Any] = {
    "github": {"owner": "acme", "name": "app", "pullRequest": {"branch": "^main$"}}
}


def test_a_fork_s_pull_request_waits_for_an_approval_and_stays_without_trust(
    server: ApiServer,
) -> None:
    make_trigger(server, **PULL_TRIGGER)
    github(server, pull(), "pull_request")
    handle(server)
    (build,) = builds(server)
    assert build["status"] == "PENDING"
    assert build["source"]["gitSource"]["url"] == "https://github.com/eve/app.git"
    assert build["substitutions"]["_HEAD_REPO_URL"] == "https://github.com/eve/app"
    stored = server.store.builds.find(build["id"])
    assert (stored.untrusted, stored.push) == (True, False)
    path = f"/v1/projects/p/builds/{build['id']}"
    answer = server.http.post(f"{path}:approve", json={"approvalResult": {"decision": "APPROVED"}})
    assert answer.status_code == 200
    assert server.store.builds.find(build["id"]).untrusted
    server.run(build["id"], "FAILURE")
    again = server.http.post(f"{path}:retry").json()["metadata"]["build"]["id"]
    assert server.store.builds.find(again).untrusted
    assert not server.store.builds.find(again).push


def test_a_branch_s_pull_request_is_trusted(server: ApiServer) -> None:
    make_trigger(server, **PULL_TRIGGER)
    github(server, pull(repo=REPOSITORY), "pull_request")
    handle(server)
    (build,) = builds(server)
    assert build["status"] == "QUEUED"
    assert not server.store.builds.find(build["id"]).untrusted


@pytest.mark.parametrize(
    ("kind", "body", "key", "said"),
    [
        ("ping", {"zen": "x"}, "ignored", "a ping: the webhook works"),
        ("star", {"action": "created"}, "ignored", '"star.created" is nothing that fires'),
        ("push", {"ref": "refs/heads/main"}, "error", "after is missing"),
        ("push", [], "error", "not a JSON object"),
    ],
)
def test_what_fires_nothing_is_kept_with_the_reason(
    server: ApiServer, kind: str, body: Any, key: str, said: str
) -> None:
    number = github(server, body, kind).json()["delivery"]
    handle(server)
    assert said in delivery(server, number)["outcome"][key]


def test_json_that_is_nested_too_deeply_spoils_nothing(server: ApiServer) -> None:
    content = b"[" * 200_000
    headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": signed(content)}
    answer = server.http.post("/hooks/github", content=content, headers=headers)
    assert answer.status_code == 200
    handle(server)
    assert "not JSON" in delivery(server, answer.json()["delivery"])["outcome"]["error"]


def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with api_server(tmp_path, max_delivery_bytes=1000) as small:
        small.secrets["hooks-github"] = SECRET
        answer = small.http.post("/hooks/github", content=b"x" * 1001)
        assert answer.status_code == 413
        chunked = small.http.post("/hooks/github", content=iter([b"x" * 600, b"x" * 600]))
        assert chunked.status_code == 413
        listed = small.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
        reasons = [(one["status"], one["reason"]) for one in listed]
        said = "the body is larger than 1000 bytes, which is all that is taken here"
        assert reasons == [("refused", said)]


@pytest.mark.parametrize("path", ["/hooks/nobody", "/hooks/github/a.b", "/hooks/git/%2e%2e"])
def test_hooks_that_can_not_be_are_not_found(server: ApiServer, path: str) -> None:
    answer = server.http.post(path, json={})
    assert answer.status_code == 404
    if not path.endswith("%2e%2e"):
        assert "there is no hook" in answer.json()["error"]["message"]
        assert "bitbucket-server" in answer.json()["error"]["message"]


def test_a_slash_at_the_end_of_an_address_does_no_harm(server: ApiServer) -> None:
    answer = github(server, PUSH, path="/hooks/github/")
    assert delivery(server, answer.json()["delivery"])["hook"] == "github"


def test_a_build_that_can_not_be_made_is_one_that_failed(server: ApiServer) -> None:
    inside = ("github", "http://127.0.0.1")
    server.hook("github", SECRET, host=inside[1], owners=["acme"])
    make_trigger(server, inside, name="a", build=None, filename="cloudbuild.yaml")
    make_trigger(server, inside)
    number = github(server, {**PUSH, "repository": {"full_name": "acme/app"}}).json()["delivery"]
    handle(server)
    found = delivery(server, number)
    verdicts = found["outcome"]["events"][0]["verdicts"]
    assert all("builds may not fetch from" in one["problem"] for one in verdicts)
    assert "the build failed: source.gitSource.url: " in shown(found)
    made = {one["id"]: one for one in builds(server)}
    assert set(made) == {one["build"] for one in verdicts}
    for build in made.values():
        assert build["status"] == "FAILURE"
        assert "builds may not fetch from" in build["statusDetail"]
        assert build["failureInfo"]["detail"] == build["statusDetail"]
        assert build["finishTime"] == build["createTime"]
        assert build["substitutions"]["COMMIT_SHA"] == COMMIT
        page = server.http.get(f"/builds/p/{build['id']}")
        assert "builds may not fetch from" in page.text
    changes = server.store.outbox.changes(limit=10)
    assert [(one.build_id in made, one.status) for one in changes] == [(True, "FAILURE")] * 2
    assert server.store.queue.length() == 0


def test_a_build_of_nobody_knows_what_is_one_that_failed(server: ApiServer) -> None:
    events = {"owner": "acme", "name": "app", "pullRequest": {"branch": "."}}
    make_trigger(server, ("gitea", "git.example.com"), github=events)
    body = {  # Gogs tells no commit
        "action": "opened",
        "number": 3,
        "repository": {"full_name": "acme/app"},
        "pull_request": {
            "base_branch": "main",
            "head_branch": "feat",
            "head_repo": {"full_name": "acme/app"},
        },
    }
    content = json.dumps(body).encode()
    headers = {
        "X-Gogs-Event": "pull_request",
        "X-Gogs-Signature": signed(content).removeprefix("sha256="),
    }
    number = server.http.post("/hooks/gitea", content=content, headers=headers).json()
    handle(server)
    (build,) = builds(server)
    assert build["status"] == "FAILURE"
    assert build["statusDetail"].startswith("the head commit of pull request #3 is unknown")
    assert build["substitutions"]["_HEAD_BRANCH"] == "feat"
    assert build["statusDetail"] in shown(delivery(server, number["delivery"]))
    again = server.http.post(f"/v1/projects/p/builds/{build['id']}:retry")
    assert again.status_code == 400
    assert "run its trigger" in again.json()["error"]["message"]


@pytest.mark.parametrize(
    "config", [{"filename": "cloudbuild.yaml", "build": None}, {"build": TRIGGER["build"]}]
)
def test_a_value_that_is_too_long_fails_the_build_and_is_shown_in_short(
    server: ApiServer, config: dict[str, Any]
) -> None:
    make_trigger(server, substitutions={"_ALL": "$(push.head_commit.message)"}, **config)
    commit = {**PUSH["head_commit"], "message": "long " * 2_000}
    github(server, {**PUSH, "head_commit": commit})
    handle(server)
    (build,) = builds(server)
    assert build["status"] == "FAILURE"
    assert "substitutions._ALL: substitution value" in build["statusDetail"]
    assert len(build["substitutions"]["_ALL"]) == 4000
    again = server.http.post(f"/v1/projects/p/builds/{build['id']}:retry")
    assert "too long" in again.json()["error"]["message"]


def test_a_failed_build_of_a_fork_needs_its_approval_when_it_is_tried_again(tmp_path: Path) -> None:
    repo = {"full_name": "eve/app"}
    inside = ("github", "http://127.0.0.1")
    with api_server(tmp_path) as strict:
        strict.hook("github", SECRET, host=inside[1], owners=["acme"])
        make_trigger(strict, inside, **PULL_TRIGGER)
        base = {"full_name": "acme/app"}
        github(strict, {**pull(repo=repo), "repository": base}, "pull_request")
        handle(strict)
        (failed,) = builds(strict)
        assert (failed["status"], failed["approval"]["state"]) == ("FAILURE", "CANCELLED")
        again = f"/v1/projects/p/builds/{failed['id']}:retry"
        assert strict.http.post(again).status_code == 400
    sources = SourcePolicy(private=True)
    with api_server(tmp_path, sources=sources) as open_to_all:
        assert open_to_all.http.post(again).status_code == 200
        build, _ = builds(open_to_all)
        assert (build["status"], build["approval"]["state"]) == ("PENDING", "PENDING")
        assert open_to_all.store.builds.find(build["id"]).untrusted


def hook_body(**ref: Any) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "time": int(time.time()),
        "repository": {"name": "app", "url": "https://git.example.com/app.git"},
        "pusher": "eve",
        "refs": [
            {
                "ref": "refs/heads/main",
                "before": OLD,
                "after": COMMIT,
                "message": "m",
                "files": ["docs/a.md"],
                "forced": False,
                **ref,
            }
        ],
    }


def bare(server: ApiServer, body: Any, name: str = "app") -> httpx.Response:
    content = json.dumps(body).encode()
    headers = {"X-Buildrunner-Signature": signed(content)}
    return server.http.post(f"/hooks/git/{name}", content=content, headers=headers)


BARE_TRIGGER: dict[str, Any] = {
    "github": None,
    "repositoryEventConfig": {"repository": "app", "push": {"branch": "^main$"}},
}


def test_the_hook_of_a_bare_repository_makes_builds(server: ApiServer) -> None:
    trigger = {name: value for name, value in {**TRIGGER, **BARE_TRIGGER}.items() if value}
    server.http.post("/v1/projects/p/triggers", json={**trigger, "ignoredFiles": ["docs/**"]})
    first = bare(server, hook_body()).json()["delivery"]
    bare(server, hook_body(files=["src/a"], after="c" * 40))
    handle(server)
    (verdict,) = delivery(server, first)["outcome"]["events"][0]["verdicts"]
    assert "ignored" in verdict["reason"]
    (build,) = builds(server)
    assert build["source"]["gitSource"] == {
        "url": "https://git.example.com/app.git",
        "revision": "c" * 40,
    }


def test_an_old_delivery_of_a_bare_repository_is_refused(server: ApiServer) -> None:
    answer = bare(server, {**hook_body(), "time": int(time.time()) - 301})
    assert answer.status_code == 401
    assert "too long ago" in answer.json()["error"]["message"]
    (seen,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert seen["status"] == "refused"


@pytest.mark.parametrize("hook", ["git/app", "bitbucket", "bitbucket-server"])
def test_a_delivery_of_too_many_refs_is_refused(server: ApiServer, hook: str) -> None:
    """Issue: the server handled each ref of one delivery by itself, however many there were."""
    ref = {"new": {"type": "branch", "name": "a", "target": {"hash": COMMIT}}}
    project = {"project": {"key": "acme"}, "slug": "app", "full_name": "acme/app"}
    bodies: dict[str, tuple[str, Any]] = {
        "git/app": ("", lambda n: {**hook_body(), "refs": [{"ref": "refs/heads/a"}] * n}),
        "bitbucket": (
            "repo:push",
            lambda n: {"repository": project, "push": {"changes": [ref] * n}},
        ),
        "bitbucket-server": (
            "repo:refs_changed",
            lambda n: {
                "repository": project,
                "changes": [{"ref": {"id": "refs/heads/a"}, "toHash": COMMIT}] * n,
            },
        ),
    }
    kind, body = bodies[hook]

    def sent(refs: int) -> httpx.Response:
        content = json.dumps(body(refs)).encode()
        name = "X-Buildrunner-Signature" if hook == "git/app" else "X-Hub-Signature"
        headers = {"X-Event-Key": kind, name: signed(content)}
        return server.http.post(f"/hooks/{hook}", content=content, headers=headers)

    assert sent(MOST_REFS).status_code == 200
    answer = sent(MOST_REFS + 1)
    assert answer.status_code == 400
    reason = "the delivery is refused: it reports 1001 refs, and 1000 are the most"
    assert answer.json()["error"]["message"] == reason
    listed = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert [one["status"] for one in listed] == ["refused", "received"]


def test_a_hook_speaks_for_its_own_repository_only(server: ApiServer) -> None:
    body = {**hook_body(), "repository": {"name": "bank", "url": "https://git.example.com/bank"}}
    number = bare(server, body).json()["delivery"]
    handle(server)
    said = delivery(server, number)["outcome"]["error"]
    assert said == "the hook of app may not report bank"


def test_a_message_of_a_topic_fires_the_triggers_of_that_topic(server: ApiServer) -> None:
    for name in ("topic", "other"):
        trigger = {
            "name": name,
            "pubsubConfig": {"topic": f"projects/p/topics/{name}"},
            "build": {"steps": [{"name": "busybox", "args": ["$_D"]}]},
            "substitutions": {"_D": "$(body.message.attributes.a)"},
            "filter": "_D == 'x'",
        }
        assert server.http.post("/v1/projects/p/triggers", json=trigger).status_code == 200
    for attribute in ("x", "y"):
        message = {"message": {"attributes": {"a": attribute}, "messageId": attribute}}
        path = f"/hooks/pubsub/topic?secret={SECRET}"
        assert server.http.post(path, json=message).status_code == 200
        assert server.http.post(path, json=message).json()["duplicate"] is True
    assert server.http.post("/hooks/pubsub/topic?secret=no", json={}).status_code == 401
    handle(server)
    (build,) = builds(server)
    assert build["steps"][0]["args"] == ["x"]


def test_a_push_that_the_server_found_by_itself_is_not_built_again(server: ApiServer) -> None:
    make_trigger(server)
    key = APP
    server.store.refs.note(key, "refs/heads/main", COMMIT, "delivery 0")
    number = github(server, PUSH).json()["delivery"]
    handle(server)
    event = delivery(server, number)["outcome"]["events"][0]
    assert "was seen at bbbbbbbbbbbb already" in event["ignored"]
    assert builds(server) == []
    github(server, {**PUSH, "after": "c" * 40, "head_commit": {"id": "c" * 40}})
    github(server, {**PUSH, "before": "c" * 40})  # and back, by force
    handle(server)
    assert len(builds(server)) == 2


def test_a_push_that_was_noted_by_a_server_that_died_is_built_once_though_told_twice(
    server: ApiServer,
) -> None:
    make_trigger(server)
    first, second = (github(server, PUSH).json()["delivery"] for _ in range(2))
    assert first != second
    server.store.refs.note(
        Watched("p", "github.com/acme/app"), "refs/heads/main", COMMIT, f"delivery {first}"
    )
    handler = DeliveryHandler(server.context)
    told = handler.handle(server.store.deliveries.get(second))
    assert "was seen at bbbbbbbbbbbb already" in told["events"][0]["ignored"]
    handler.handle(server.store.deliveries.get(first))
    handler.handle(server.store.deliveries.get(first))
    assert len(builds(server)) == 1


def test_a_push_from_before_the_server_looked_does_not_build_or_turn_back(
    server: ApiServer,
) -> None:
    make_trigger(server)
    key = APP
    server.store.refs.note(key, "refs/heads/main", "c" * 40, "reconcile 0")
    late = github(server, PUSH).json()["delivery"]
    github(server, {**PUSH, "before": COMMIT, "after": "c" * 40, "head_commit": {"id": "c" * 40}})
    handle(server)
    event = delivery(server, late)["outcome"]["events"][0]
    assert event["ignored"].startswith("the server has looked at refs/heads/main since")
    assert builds(server) == []
    github(server, {**PUSH, "before": "c" * 40, "after": "d" * 40})
    handle(server)
    assert len(builds(server)) == 1


def test_an_annotated_tag_that_is_moved_after_the_server_looked_is_built(
    server: ApiServer,
) -> None:
    make_trigger(server, github={"owner": "acme", "name": "app", "push": {"tag": "."}})
    server.store.refs.note(
        Watched("p", "github.com/acme/app"), "refs/tags/v1", "c" * 40, "reconcile 0"
    )
    tag = {**PUSH, "ref": "refs/tags/v1", "before": "d" * 40, "after": "e" * 40}
    github(server, tag)  # before and after are the tags' objects, the head commit is what they mean
    handle(server)
    (build,) = builds(server)
    assert build["substitutions"]["COMMIT_SHA"] == PUSH["head_commit"]["id"]


WEBHOOK_SECRET = "projects/p/secrets/w/versions/1"


def webhook(server: ApiServer, body: bytes, secret: str = "hush", **headers: str) -> httpx.Response:
    path = f"/v1/projects/p/triggers/call:webhook?secret={secret}"
    return server.http.post(path, content=body, headers=headers)


def make_webhook(server: ApiServer, **fields: Any) -> None:
    server.secrets[WEBHOOK_SECRET] = "hush"
    make_trigger(
        server,
        name="call",
        **{
            "github": None,
            "webhookConfig": {"secret": WEBHOOK_SECRET},
            "substitutions": {"_A": "$(body.a)"},
            "build": {"steps": [{"name": "busybox", "args": ["$_A"]}]},
            **fields,
        },
    )


def test_calls_of_a_webhook_trigger_are_kept_with_the_reason_and_can_be_replayed(
    server: ApiServer,
) -> None:
    make_webhook(server, filter='_A == "1"')
    other = make_trigger(server)
    for body in (b'{"a": "1"}', b'{"a": "2"}'):
        assert webhook(server, body).json() == {}
    assert len(builds(server)) == 1
    no, yes = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert (yes["hook"], yes["status"], len(yes["builds"])) == ("webhook/p/call", "handled", 1)
    (event,) = delivery(server, no["number"])["outcome"]["events"]
    (verdict,) = event["verdicts"]
    assert verdict["triggerId"] != other
    assert verdict["reason"] == 'the filter is false: _A == "1"'
    assert delivery(server, yes["number"])["body"] == {"a": "1"}
    assert "hush" not in json.dumps(delivery(server, yes["number"]))
    handle(server)
    assert len(builds(server)) == 1
    server.http.post(f"/buildrunner/v1/deliveries/{yes['number']}:replay")
    handle(server)
    assert [one["steps"][0]["args"] for one in builds(server)] == [["1"], ["1"]]
    server.http.delete("/v1/projects/p/triggers/call")
    server.http.post(f"/buildrunner/v1/deliveries/{yes['number']}:replay")
    handle(server)
    (event,) = delivery(server, yes["number"])["outcome"]["events"]
    assert event["ignored"] == "the trigger was deleted"


@pytest.mark.parametrize("name", ["Idempotency-Key", "webhook-id", "X-GitHub-Delivery"])
def test_a_call_that_is_sent_again_builds_once(server: ApiServer, name: str) -> None:
    make_webhook(server)
    for identity in ("one", "one", "two"):
        assert webhook(server, b'{"a": "1"}', **{name: identity}).status_code == 200
    assert len(builds(server)) == 2


@pytest.mark.parametrize(
    ("body", "secret", "code", "reason"),
    [
        (b"{}", "wrong", 403, "the secret is not right"),
        (b"{", "hush", 400, "the body is not JSON"),
        (b"[" * 5000 + b"]" * 5000, "hush", 400, ""),
        (b"[" * 101 + b"]" * 101, "hush", 400, "nested more than 100 deep"),
        (b" " * 1_100_000, "hush", 413, "the body is larger than 1048576 bytes"),
    ],
)
def test_calls_that_are_refused_leave_a_trace(
    server: ApiServer, body: bytes, secret: str, code: int, reason: str
) -> None:
    make_webhook(server)
    assert webhook(server, body, secret).status_code == code
    (refused,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert refused["status"] == "refused"
    assert reason in refused["reason"]
    assert builds(server) == []


def test_files_are_asked_of_git_where_the_payload_does_not_tell(server: ApiServer) -> None:
    requested = []

    def files(url: str, old: str, new: str, from_merge_base: bool) -> tuple[str, ...]:
        requested.append((url, old, new, from_merge_base))
        return ("docs/a.md",)

    make_trigger(server, includedFiles=["src/**"])
    number = github(server, {**PUSH, "forced": True}).json()["delivery"]
    handle(server, EventFacts(files=files))
    (verdict,) = delivery(server, number)["outcome"]["events"][0]["verdicts"]
    assert verdict["fires"] is False
    assert verdict["rules"][-1]["name"] == "files"
    assert requested == [("https://github.com/acme/app.git", OLD, COMMIT, False)]


def test_all_of_very_many_triggers_are_asked_and_those_that_matter_are_told_of(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.events.handling.MOST_VERDICTS", 3)
    for number in range(6):
        other = make_trigger(server, name=f"other{number}")
        elsewhere = {"forge": {"kind": "gitea", "host": "https://git.example.com"}}
        server.store.triggers.set_settings("p", other, elsewhere)
    make_trigger(server, name="unrelated", github={**TRIGGER["github"], "name": "unrelated"})
    make_trigger(server)
    make_trigger(server, name="second")
    number = github(server, PUSH).json()["delivery"]
    handle(server)
    (event,) = delivery(server, number)["outcome"]["events"]
    assert len(builds(server)) == 2
    assert {one["trigger"] for one in event["verdicts"][:2]} == {"t", "second"}
    assert (len(event["verdicts"]), event["more"]) == (3, 5)
    assert "5 more triggers of other repositories" in shown(delivery(server, number))


def test_a_trigger_that_was_changed_counts_as_it_is_now(server: ApiServer) -> None:
    handler = DeliveryHandler(server.context)
    trigger = make_trigger(server)
    for disabled, digit in ((False, "1"), (True, "2"), (False, "3")):
        change = {"disabled": disabled}
        path, mask = f"/v1/projects/p/triggers/{trigger}", {"updateMask": "disabled"}
        assert server.http.patch(path, params=mask, json=change).status_code == 200
        github(server, {**PUSH, "after": digit * 40})
        DeliveryLoop(server.context, handler).turn()
    assert len(builds(server)) == 2


def test_a_bug_that_one_trigger_meets_leaves_the_others_firing(server: ApiServer) -> None:
    def files(*_: Any) -> tuple[str, ...]:
        raise ZeroDivisionError

    make_trigger(server, includedFiles=["src/**"])
    make_trigger(server, name="other")
    number = github(server, {**PUSH, "forced": True}).json()["delivery"]
    handle(server, EventFacts(files=files))
    good, bad = delivery(server, number)["outcome"]["events"][0]["verdicts"]
    assert (good["trigger"], bad["trigger"]) == ("other", "t")
    assert bad["fires"] is False
    assert bad["reason"] == "internal error, see the server's log: ZeroDivisionError"
    assert good["build"] == builds(server)[0]["id"]


def test_would_this_fire(server: ApiServer) -> None:
    make_trigger(server, includedFiles=["src/**"])
    path = "/buildrunner/v1/projects/p/triggers/t:test"

    def tried(**requested: Any) -> Any:
        answer = server.http.post(path, json=requested)
        assert answer.status_code == 200, answer.text
        (verdict,) = answer.json()["verdicts"]
        return verdict

    assert tried(ref="main", files=["src/a"])["fires"]
    assert not tried(ref="main", files=["a"])["fires"]
    assert "does not match" in tried(ref="dev")["reason"]
    assert "[skip ci]" in tried(ref="main", message="x [skip ci]")["reason"]
    assert "for branches" in tried(ref="refs/tags/v1")["reason"]
    assert tried(hook="github", event=PUSH)["fires"]
    assert "does not listen to pull requests" in tried(event=pull())["reason"]
    merged = {"hook": "bitbucket-server", "event": {"eventKey": "pr:merged"}}
    ping = server.http.post(path, json={"event": {"zen": "x", "repository": REPOSITORY}})
    assert "a ping: the webhook works" in ping.json()["error"]["message"]
    assert "pr:merged" in server.http.post(path, json=merged).json()["error"]["message"]
    assert builds(server) == []
    assert server.http.post(path, json={}).status_code == 400


@pytest.mark.parametrize(
    ("body", "forge"),
    [
        (
            {
                "object_kind": "push",
                "ref": "refs/heads/main",
                "after": COMMIT,
                "project": {"path_with_namespace": "acme/app"},
            },
            "gitlab",
        ),
        (
            {
                "repository": {"full_name": "acme/app"},
                "push": {
                    "changes": [
                        {"new": {"type": "branch", "name": "main", "target": {"hash": COMMIT}}}
                    ]
                },
            },
            "bitbucket",
        ),
        (
            {
                "eventKey": "repo:refs_changed",
                "repository": {"slug": "app", "project": {"key": "ACME"}},
                "changes": [{"ref": {"id": "refs/heads/main"}, "fromHash": OLD, "toHash": COMMIT}],
            },
            "bitbucket-server",
        ),
        ({**PUSH, "compare_url": "https://git.example.com/acme/app/compare/a...b"}, "gitea"),
        (PUSH, "github"),
    ],
)
def test_whose_payload_is_tried_the_payload_tells(
    server: ApiServer, body: dict[str, Any], forge: str
) -> None:
    make_trigger(server)
    path = "/buildrunner/v1/projects/p/triggers/t:test"
    (verdict,) = server.http.post(path, json={"event": body}).json()["verdicts"]
    assert verdict["fires"] is (forge == "github")
    assert verdict["event"].endswith(f"({forge})")


def test_deliveries_are_not_for_everybody(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True) as closed:
        narrow = closed.token("narrow", "admin", projects=("p",))
        reader = closed.token("reader", "read")
        for token, path, code in (
            (narrow, "/buildrunner/v1/deliveries", 403),
            (reader, "/buildrunner/v1/deliveries", 200),
            (reader, "/buildrunner/v1/deliveries/1", 403),
        ):
            answer = closed.http.get(path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == code


def test_what_arrives_comes_before_what_is_handled(server: ApiServer) -> None:
    for _ in range(3):
        github(server, PUSH)
    pauses: list[float] = []

    class Handler(DeliveryHandler):
        def handle(self, delivery: Any, *, may_ask: bool = True) -> dict[str, Any]:
            if delivery.number == 2:
                loop.wake()
            return super().handle(delivery, may_ask=may_ask)

    loop = DeliveryLoop(server.context, Handler(server.context), pauses.append)
    while loop.turn():
        pass
    assert len(pauses) == 1
    assert 0 < pauses[0] <= 0.1
    listed = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert {one["status"] for one in listed} == {"handled"}


def test_the_loop_handles_what_arrives_and_what_was_left(server: ApiServer) -> None:
    make_trigger(server)
    github(server, PUSH)
    loop = DeliveryLoop(server.context, DeliveryHandler(server.context))
    loop.start()
    try:
        deadline = time.monotonic() + 30
        while not builds(server) and time.monotonic() < deadline:
            server.woken.wait(0.1)
    finally:
        loop.stop()
    assert len(builds(server)) == 1
