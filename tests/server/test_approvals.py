"""Approvals of builds: who may decide, and how long a build waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from buildrunner.server.services.builds import ApprovalExpiry, refusal
from buildrunner.triggers.settings import ApprovalPolicy
from tests.api_server import ApiServer, api_server, now

GATED = {
    "name": "deploy",
    "build": {"steps": [{"name": "busybox"}]},
    "approvalConfig": {"approvalRequired": True},
}
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
    assert answer.json()["error"]["message"].startswith("eve started this build")
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
    ("labels", "who", "refused"),
    [
        ({"submitter": "github:eve"}, "eve", True),
        ({"submitter": "github:Eve"}, "eve", True),
        ({"submitter": "github:adam", "author": "github:eve"}, "eve", True),
        ({"submitter": "github:adam"}, "eve", False),
        ({}, "eve", False),
    ],
)
def test_an_author_on_a_forge_is_the_token_of_that_name(
    labels: dict[str, str], who: str, refused: bool
) -> None:
    policy = ApprovalPolicy(not_author=True)
    assert bool(refusal(policy, labels, who, approves=True)) is refused
    assert refusal(policy, labels, who, approves=False) == ""


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
