"""Approvals of builds: who may decide, and how long a build waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from buildrunner.server.events.scheduler import Scheduler
from buildrunner.server.services.authorship import People, people_behind
from buildrunner.server.services.builds import ApprovalExpiry, refusal
from buildrunner.triggers.events import Event, MessageEvent, PushEvent, Repository
from buildrunner.triggers.settings import ApprovalPolicy
from tests.api_server import ApiServer, api_server, now

GATED = {
    "name": "deploy",
    "build": {"steps": [{"name": "busybox"}]},
    "approvalConfig": {"approvalRequired": True},
}
REPOSITORY = Repository(full_name="acme/app", forge="github")
BARE = Repository(full_name="app", bare=True)
BITBUCKET = Repository(full_name="acme/app", forge="bitbucket")
APPROVE = {"approvalResult": {"decision": "APPROVED", "comment": "fine", "url": "https://t.ex/1"}}
REJECT = {"approvalResult": {"decision": "REJECTED"}}


class Place:
    """A server whose callers have tokens, and a trigger whose builds wait for an approval."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._tokens = {
            name: server.token(name, "read", "submit", "approve")
            for name in ("alice", "bob", "eve")
        }
        self._tokens["root"] = server.token("root", "admin")
        made = self.call("root", "POST", "/v1/projects/p/triggers", GATED)
        self.trigger = str(made.json()["id"])

    def call(self, who: str, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._tokens[who]}"}
        return self.server.http.request(method, path, json=body, headers=headers)

    def set(self, **approval: Any) -> None:
        path = f"/buildrunner/v1/projects/p/triggers/{self.trigger}/settings"
        assert self.call("root", "PUT", path, {"approval": approval}).status_code == 200

    def build(self, who: str = "eve") -> str:
        made = self.call(
            who, "POST", f"/v1/projects/p/locations/global/triggers/{self.trigger}:run"
        )
        build = made.json()["metadata"]["build"]
        assert build["status"] == "PENDING"
        return str(build["id"])

    def decide(self, who: str, build: str, decision: Any = APPROVE) -> httpx.Response:
        return self.call(who, "POST", f"/v1/projects/p/builds/{build}:approve", decision)

    def retry(self, who: str, build: str) -> Any:
        answer = self.call(who, "POST", f"/v1/projects/p/builds/{build}:retry")
        assert answer.status_code == 200, answer.text
        return answer.json()["metadata"]["build"]

    def document(self, build: str) -> Any:
        return self.server.store.builds.find(build).document


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with api_server(tmp_path, auth=True) as server:
        yield Place(server)


def test_without_a_policy_everybody_with_the_scope_decides(place: Place) -> None:
    build = place.build("eve")
    assert place.decide("eve", build).status_code == 200
    approval = place.document(build)["approval"]
    assert approval["state"] == "APPROVED"
    assert approval["result"]["approverAccount"] == "eve"
    assert approval["result"]["comment"] == "fine"
    assert approval["result"]["url"] == "https://t.ex/1"
    assert place.document(build)["status"] == "QUEUED"


def test_only_the_approvers_of_the_trigger_decide(place: Place) -> None:
    place.set(approvers=["alice", "bob"])
    build = place.build()
    for who in ("eve", "root"):
        for decision in (APPROVE, REJECT):
            answer = place.decide(who, build, decision)
            assert answer.status_code == 403
            assert "alice, bob may" in answer.json()["error"]["message"]
    assert place.document(build)["status"] == "PENDING"
    assert place.decide("bob", build).status_code == 200


def test_whoever_began_a_build_may_not_approve_it_but_may_give_it_up(place: Place) -> None:
    place.set(notAuthor=True)
    build = place.build("eve")
    answer = place.decide("eve", build)
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith("eve is behind this build")
    assert place.decide("eve", build, REJECT).status_code == 200
    assert place.document(build)["statusDetail"] == "rejected by eve"
    assert place.decide("alice", place.build("eve")).status_code == 200


def test_the_policy_is_that_of_the_moment_of_the_decision(place: Place) -> None:
    build = place.build("eve")
    place.set(approvers=["alice"])
    assert place.decide("eve", build).status_code == 403
    place.set()
    assert place.decide("eve", build).status_code == 200


@pytest.mark.parametrize(
    ("names", "who", "refused"),
    [
        (("github:eve",), "eve", True),
        (("github:Eve",), "eve", True),
        (("github:adam", "github:eve"), "eve", True),
        (("github:adam",), "eve", False),
        (("eve", "github:adam"), "adam", True),
    ],
)
def test_an_author_on_a_forge_is_the_token_of_that_name(
    names: tuple[str, ...], who: str, refused: bool
) -> None:
    policy = ApprovalPolicy(not_author=True)
    labels = People(names, are_all=True).labels()
    assert bool(refusal(policy, labels, who, approves=True)) is refused
    assert refusal(policy, labels, who, approves=False) == ""


@pytest.mark.parametrize("labels", [{}, {"submitter": "github:adam", "author": "github:eve"}])
def test_a_build_of_a_version_that_recorded_no_people_has_unknown_authors(
    labels: dict[str, str],
) -> None:
    policy = ApprovalPolicy(not_author=True)
    assert "does not know all authors" in refusal(policy, labels, "bob", approves=True)
    assert refusal(policy, labels, "bob", approves=True, is_admin=True) == ""
    named = ApprovalPolicy(not_author=True, approvers=("bob", "eve"))
    assert refusal(named, labels, "bob", approves=True) == ""
    is_eve_s = "author" in labels
    for who in (policy, named):
        assert bool(refusal(who, labels, "eve", approves=True, is_admin=True)) is is_eve_s


@pytest.mark.parametrize(
    ("event", "are_all"),
    [
        (PushEvent(repository=REPOSITORY, ref="refs/heads/main", author="eve"), True),
        (PushEvent(repository=REPOSITORY, ref="refs/heads/main"), False),
        (PushEvent(repository=BARE, ref="refs/heads/main", author="git"), False),
        (PushEvent(repository=BITBUCKET, ref="refs/heads/main", author="chosen"), False),
        (MessageEvent(kind="webhook", body={}), False),
    ],
)
def test_an_event_tells_everybody_behind_it_only_by_the_login_of_a_pusher(
    event: Event, are_all: bool
) -> None:
    assert people_behind(event).are_all is are_all


def test_what_nobody_approves_in_time_is_cancelled(place: Place) -> None:
    place.set(expires="3600s")
    build = place.build()
    decided = place.build()
    assert place.decide("alice", decided).status_code == 200
    later = [now() + timedelta(seconds=3590)]
    expiry = ApprovalExpiry(replace(place.server.context, clock=lambda: later[0]))
    assert expiry.turn() == 0
    later[0] += timedelta(seconds=20)
    assert expiry.turn() == 1
    assert expiry.turn() == 0
    document = place.document(build)
    assert document["status"] == "CANCELLED"
    assert document["statusDetail"] == "nobody approved it within 3600s"
    assert document["approval"]["state"] == "CANCELLED"
    assert "finishTime" in document
    assert place.document(decided)["status"] == "QUEUED"
    answer = place.decide("alice", build)
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "FAILED_PRECONDITION"


def test_without_a_limit_a_build_waits_for_ever(place: Place) -> None:
    place.build()
    years = now() + timedelta(days=10_000)
    assert ApprovalExpiry(replace(place.server.context, clock=lambda: years)).turn() == 0


def test_the_thread_looks_by_itself_and_ends(place: Place) -> None:
    place.set(expires="1s")
    build = place.build()
    soon = now() + timedelta(seconds=2)
    expiry = ApprovalExpiry(replace(place.server.context, clock=lambda: soon))
    expiry.start()
    expiry.stop()
    expiry.stop()
    assert place.document(build)["status"] == "CANCELLED"


def test_only_an_admin_approves_a_build_whose_trigger_was_deleted(place: Place) -> None:
    builds = [place.build("eve"), place.build("eve")]
    path = f"/v1/projects/p/triggers/{place.trigger}"
    assert place.call("root", "DELETE", path).status_code == 200
    answer = place.decide("alice", builds[0])
    assert answer.status_code == 403
    assert "only an admin of the project may" in answer.json()["error"]["message"]
    assert place.decide("alice", builds[0], REJECT).status_code == 200
    assert place.decide("root", builds[1]).status_code == 200


def test_a_deleted_trigger_lifts_no_approval_from_retries(place: Place) -> None:
    trigger = {"name": "free", "build": {"steps": [{"name": "busybox"}]}}
    made = place.call("root", "POST", "/v1/projects/p/triggers", trigger).json()
    path = f"/v1/projects/p/triggers/{made['id']}"
    build = place.call("eve", "POST", f"{path}:run").json()["metadata"]["build"]["id"]
    place.server.run(build, "FAILURE")
    demands = {"approvalConfig": {"approvalRequired": True}}
    asked = place.call("root", "PATCH", f"{path}?updateMask=approvalConfig", demands)
    assert asked.status_code == 200
    assert place.retry("eve", build)["status"] == "PENDING"
    assert place.call("root", "DELETE", path).status_code == 200
    again = place.retry("eve", build)
    assert again["status"] == "PENDING"
    assert place.decide("eve", again["id"]).status_code == 403
    assert place.decide("root", again["id"]).status_code == 200


@pytest.mark.parametrize("retrying", ["bob", "eve"])
def test_who_chose_the_values_of_a_build_does_not_approve_its_retry(
    place: Place, retrying: str
) -> None:
    place.set(notAuthor=True)
    build = place.build("eve")
    assert place.call("eve", "POST", f"/v1/projects/p/builds/{build}:cancel").status_code == 200
    again = place.retry(retrying, build)["id"]
    for who in {"eve", retrying}:
        answer = place.decide(who, again)
        assert answer.status_code == 403
        assert answer.json()["error"]["message"].startswith(f"{who} is behind this build")
    assert place.decide("alice", again).status_code == 200


def test_nobody_is_behind_a_scheduled_build_so_that_an_admin_approves_it(place: Place) -> None:
    nightly = {**GATED, "name": "nightly", "cron": {"schedule": "0 3 * * *"}}
    trigger = place.call("root", "POST", "/v1/projects/p/triggers", nightly).json()["id"]
    path = f"/buildrunner/v1/projects/p/triggers/{trigger}/settings"
    settings = {"approval": {"notAuthor": True}}
    assert place.call("root", "PUT", path, settings).status_code == 200
    at = [now()]
    scheduler = Scheduler(replace(place.server.context, clock=lambda: at[0]))
    scheduler.turn()
    at[0] = (at[0] + timedelta(days=1)).replace(hour=3, minute=0, second=0, microsecond=0)
    scheduler.turn()
    (build,) = place.server.store.builds.page("p").builds
    answer = place.decide("alice", build.id)
    assert answer.status_code == 403
    assert "does not know all authors" in answer.json()["error"]["message"]
    assert place.decide("root", build.id).status_code == 200
