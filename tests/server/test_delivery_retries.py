"""Deliveries about which somebody does not answer: they are tried again, and hold up nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.cli.triggers.deliveries import shown
from buildrunner.errors import ServerError, ServerUnavailable
from buildrunner.server.events.facts import EventFacts, SilentPlaces
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.store.model.deliveries import StoredDelivery
from buildrunner.store.sql.deliveries import SqlDeliveries
from buildrunner.triggers.events import PullRequestEvent
from tests.api_server import ApiServer, api_server
from tests.conftest import wait_until
from tests.server.test_hooks import (
    COMMIT,
    PULL_TRIGGER,
    PUSH,
    REPOSITORY,
    SECRET,
    builds,
    delivery,
    github,
    make_trigger,
    pull,
)

API = "https://api.github.com/repos/acme/app/pulls/7"
DOWN = ServerUnavailable("api.github.com does not answer: ConnectTimeout")


class Place:
    """A server whose clock stands still, and whose forge says what it is told to."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.now = server.context.clock()
        self.requested: list[str] = []
        self.says: Callable[[PullRequestEvent], PullRequestEvent] = self.down
        self.context = replace(server.context, clock=lambda: self.now)
        self.rights: Callable[[], bool] = lambda: True

    def down(self, event: PullRequestEvent) -> PullRequestEvent:
        raise DOWN

    def up(self, event: PullRequestEvent) -> PullRequestEvent:
        return replace(event, base_branch="main", head_branch="feat", head_commit=COMMIT)

    def facts(self) -> EventFacts:
        def complete(event: PullRequestEvent) -> PullRequestEvent:
            assert event.repository.host is not None
            self.requested.append(event.repository.host.pull_request_api("acme/app", event.number))
            return self.says(event)

        return EventFacts(complete=complete, may_write=lambda *_: self.rights())

    def handle(self) -> None:
        """What is due, by a server that was just started."""
        loop = DeliveryLoop(self.context, DeliveryHandler(self.context, self.facts()))
        while loop.turn():
            assert loop.wait_until_idle(30)

    def told(self, number: int) -> Any:
        return delivery(self.server, number)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with api_server(tmp_path) as running:
        running.hook("github", SECRET, owners=["acme"])
        running.hook("gitlab", SECRET, owners=["acme"])
        yield Place(running)


def comment(text: str = "/gcbrun") -> dict[str, Any]:
    return {
        "action": "created",
        "repository": REPOSITORY,
        "issue": {"number": 7, "user": {"login": "eve"}, "pull_request": {"url": API}},
        "comment": {"body": text, "user": {"login": "adam"}, "author_association": "MEMBER"},
    }


def commented(place: Place) -> int:
    return int(github(place.server, comment(), "issue_comment").json()["delivery"])


def test_a_comment_is_obeyed_when_the_forge_answers_again_after_an_hour(place: Place) -> None:
    make_trigger(place.server, **PULL_TRIGGER)
    number = commented(place)
    begun = place.now
    tries = []
    for _ in range(20):
        place.handle()
        found = place.told(number)
        if found["status"] == "handled":
            break
        assert builds(place.server) == []
        tries.append(datetime.fromisoformat(found["nextTry"]))
        place.now = tries[-1]
        if place.now - begun > timedelta(hours=1):
            place.says = place.up
    (build,) = builds(place.server)
    assert build["source"]["gitSource"]["revision"] == COMMIT
    pauses = [later - earlier for earlier, later in zip([begun, *tries], tries, strict=False)]
    assert pauses[:3] == [timedelta(seconds=s) for s in (30, 60, 120)]
    assert max(pauses) == timedelta(minutes=10)
    assert set(place.requested) == {API}
    assert len(place.requested) == len(tries) + 1
    assert "retry" not in place.told(number)["outcome"]


def test_a_delivery_that_waits_says_for_whom_and_until_when(place: Place) -> None:
    make_trigger(place.server, **PULL_TRIGGER)
    number = commented(place)
    place.handle()
    found = place.told(number)
    assert found["status"] == "waiting"
    assert found["waitsFor"] == str(DOWN)
    text = shown(found)
    assert f"waits     {DOWN}" in text
    assert f"retried   {found['nextTry'][:19]} (tried once since " in text
    page = place.server.http.get(f"/deliveries/{number}").text
    assert f"Waits: {DOWN}. Again at" in page
    assert str(DOWN) in place.server.http.get("/deliveries").text
    place.handle()
    assert len(place.requested) == 1  # it is not due


def test_what_waits_too_long_is_given_up_with_the_reason(place: Place) -> None:
    make_trigger(place.server, **PULL_TRIGGER)
    number = commented(place)
    place.handle()
    place.now += timedelta(days=1)
    place.handle()
    found = place.told(number)
    assert found["status"] == "handled"
    assert found["problem"] == f"given up: {DOWN}"
    assert "retry" not in found["outcome"]
    assert builds(place.server) == []


def test_a_refusal_is_final(place: Place) -> None:
    def refuses(_: PullRequestEvent) -> PullRequestEvent:
        raise ServerError("api.github.com answers 404")

    make_trigger(place.server, **PULL_TRIGGER)
    place.says = refuses
    number = commented(place)
    place.handle()
    found = place.told(number)
    assert found["status"] == "handled"
    assert "answers 404" in found["outcome"]["events"][0]["problem"]


def test_who_fires_at_once_does_so_once_while_another_waits_for_an_answer(place: Place) -> None:
    def unknown() -> bool:
        raise DOWN

    there = ("gitea", "git.example.com")
    make_trigger(place.server, there, **PULL_TRIGGER)
    external = {"branch": ".", "commentControl": "COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY"}
    events = {"owner": "acme", "name": "app", "pullRequest": external}
    make_trigger(place.server, there, name="external", github=events)
    place.rights = unknown
    body = pull()
    body["pull_request"]["author_association"] = ""
    body["repository"] = {"full_name": "acme/app"}
    number = gitea(place, body)
    place.handle()
    (build,) = builds(place.server)
    assert place.told(number)["status"] == "waiting"
    place.rights = lambda: True
    place.now += timedelta(minutes=5)
    make_trigger(place.server, there, name="later", **PULL_TRIGGER)
    place.handle()
    verdicts = {
        one["trigger"]: one for one in place.told(number)["outcome"]["events"][0]["verdicts"]
    }
    assert verdicts["t"]["build"] == build["id"]
    assert verdicts["external"]["fires"]
    assert len(builds(place.server)) == 3


def gitea(place: Place, body: dict[str, Any]) -> int:
    place.server.hook("gitea", SECRET, host="git.example.com", owners=["acme"])
    answer = github(
        place.server, body, "pull_request", **{"X-Gitea-Event": "pull_request"}, path="/hooks/gitea"
    )
    assert answer.status_code == 200
    return int(answer.json()["delivery"])


def test_nobody_is_asked_about_a_repository_that_no_trigger_listens_to(place: Place) -> None:
    make_trigger(place.server)  # of pushes
    events = {**PULL_TRIGGER["github"], "name": "other"}
    make_trigger(place.server, name="other", github=events)
    make_trigger(place.server, name="off", disabled=True, **PULL_TRIGGER)
    number = commented(place)
    place.handle()
    assert place.requested == []
    assert place.told(number)["status"] == "handled"


def test_a_replay_of_what_waits_begins_anew(place: Place) -> None:
    make_trigger(place.server, **PULL_TRIGGER)
    number = commented(place)
    place.handle()
    place.says = place.up
    place.server.http.post(f"/buildrunner/v1/deliveries/{number}:replay")
    place.handle()
    assert len(builds(place.server)) == 1
    assert place.told(number)["status"] == "handled"


class Hanging:
    """A Git server that does not answer until it is told to."""

    def __init__(self) -> None:
        self.requested = threading.Semaphore(0)
        self.answer = threading.Event()
        self.commits: list[str] = []

    def files(self, _url: str, _old: str, new: str, *_: Any) -> tuple[str, ...]:
        self.commits.append(new)
        self.requested.release()
        assert self.answer.wait(30)
        return ("src/a",)


def pushed(place: Place, repository: str, commit: str = COMMIT) -> int:
    there = {
        "full_name": f"acme/{repository}",
        "clone_url": f"https://github.com/acme/{repository}.git",
    }
    body = {**PUSH, "after": commit, "forced": True, "repository": there}
    return int(github(place.server, body).json()["delivery"])


def listening(place: Place, repository: str, **fields: Any) -> None:
    events = {"owner": "acme", "name": repository, "push": {"branch": "."}}
    make_trigger(place.server, name=repository, github=events, **fields)


def test_a_repository_whose_git_server_hangs_holds_up_no_other_and_keeps_its_order(
    place: Place,
) -> None:
    git = Hanging()
    listening(place, "slow", includedFiles=["src/**"])
    listening(place, "quick")
    commits = [digit * 40 for digit in "1234"]
    slow = [pushed(place, "slow", one) for one in commits[:3]]
    quick = [pushed(place, "quick", one) for one in commits[:2]]
    handler = DeliveryHandler(place.context, EventFacts(files=git.files))
    loop = DeliveryLoop(place.context, handler)
    while loop.turn():
        pass
    assert git.requested.acquire(timeout=30)
    wait_until(lambda: {place.told(one)["status"] for one in quick} == {"handled"})
    assert {place.told(one)["status"] for one in slow} == {"received"}
    assert pushed(place, "quick", commits[2])
    assert loop.turn()
    assert len(git.commits) == 1  # the others of its lane wait for it
    git.answer.set()
    assert loop.wait_until_idle(30)
    while loop.turn():
        assert loop.wait_until_idle(30)
    assert git.commits == commits[:3]
    assert {place.told(one)["status"] for one in slow} == {"handled"}
    assert len(builds(place.server)) == 6


def test_one_host_takes_its_share_of_those_who_ask_and_no_more(place: Place) -> None:
    git = Hanging()
    for number in range(6):
        listening(place, f"r{number}", includedFiles=["src/**"])
        pushed(place, f"r{number}")
    handler = DeliveryHandler(place.context, EventFacts(files=git.files))
    loop = DeliveryLoop(place.context, handler)
    while loop.turn():
        pass
    for _ in range(4):
        assert git.requested.acquire(timeout=30)
    assert not git.requested.acquire(blocking=False)
    git.answer.set()
    assert loop.wait_until_idle(30)
    assert len(git.commits) == 6


def test_a_server_that_ends_leaves_what_it_asks_about_to_the_next(place: Place) -> None:
    git = Hanging()

    def files(url: str, *requested: Any) -> tuple[str, ...]:
        git.files(url, *requested)
        raise ServerUnavailable("cut short")

    listening(place, "slow", includedFiles=["src/**"])
    number = pushed(place, "slow")
    facts = EventFacts(files=files, stop=git.answer.set)
    loop = DeliveryLoop(place.context, DeliveryHandler(place.context, facts))
    loop.start()
    assert git.requested.acquire(timeout=30)
    loop.stop()
    assert builds(place.server) == []
    assert place.told(number)["status"] == "received"
    assert place.server.store.deliveries.get(number).attempts == 0  # however often servers end
    answering = EventFacts(files=lambda *_: ("src/a",))
    again = DeliveryLoop(place.context, DeliveryHandler(place.context, answering))
    assert again.turn()
    assert again.wait_until_idle(30)
    assert len(builds(place.server)) == 1


def test_what_was_lined_up_when_a_server_ended_is_for_the_next_at_once(place: Place) -> None:
    git = Hanging()
    for number in range(6):
        listening(place, f"r{number}", includedFiles=["src/**"])
        pushed(place, f"r{number}")
    facts = EventFacts(files=git.files, stop=git.answer.set)
    loop = DeliveryLoop(place.context, DeliveryHandler(place.context, facts))
    loop.start()
    for _ in range(4):
        assert git.requested.acquire(timeout=30)
    loop.stop()
    answering = EventFacts(files=lambda *_: ("src/a",))
    again = DeliveryLoop(place.context, DeliveryHandler(place.context, answering))
    while again.turn():
        assert again.wait_until_idle(30)
    assert len(builds(place.server)) == 6


def test_what_can_not_be_kept_of_one_delivery_harms_no_other(place: Place) -> None:
    class Handler(DeliveryHandler):
        def handle(self, delivery: Any, *, may_ask: bool = True) -> dict[str, Any]:
            if delivery.number == bad:
                return {"kind": "\udce9"}
            return super().handle(delivery, may_ask=may_ask)

    make_trigger(place.server)
    bad = int(github(place.server, PUSH).json()["delivery"])
    good = int(github(place.server, {**PUSH, "after": "c" * 40}).json()["delivery"])
    assert DeliveryLoop(place.context, Handler(place.context)).turn()
    assert place.told(bad)["problem"].startswith("internal error, see the server's log: ")
    assert "problem" not in place.told(good)
    assert len(builds(place.server)) == 1


def test_a_bug_does_not_end_the_loop(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, failed = SqlDeliveries.claim, threading.Event()

    def claimed(self: SqlDeliveries, **requested: Any) -> list[StoredDelivery]:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return claim(self, **requested)

    monkeypatch.setattr(SqlDeliveries, "claim", claimed)
    make_trigger(place.server)
    number = int(github(place.server, PUSH).json()["delivery"])
    loop = DeliveryLoop(place.context, DeliveryHandler(place.context))
    loop.start()
    try:
        assert failed.wait(30)
        deadline = time.monotonic() + 30
        while place.told(number)["status"] != "handled" and time.monotonic() < deadline:
            place.server.woken.wait(0.05)
    finally:
        loop.stop()
    assert len(builds(place.server)) == 1


def test_a_filter_that_thinks_long_holds_up_no_other_delivery(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SilentPlaces, "filter_s", 0.3)
    begun, go_on = threading.Event(), threading.Event()

    class Handler(DeliveryHandler):
        """Says when it may take its time, and takes it."""

        def handle(self, delivery: Any, *, may_ask: bool = True) -> dict[str, Any]:
            if may_ask:
                begun.set()
                assert go_on.wait(30)
            return super().handle(delivery, may_ask=may_ask)

    many = "body.list.all(a, body.list.all(b, body.list.all(c, a + b + c >= 0)))"
    listening(place, "slow", filter=many)
    listening(place, "quick")
    there = {"full_name": "acme/slow", "clone_url": "https://github.com/acme/slow.git"}
    body = {**PUSH, "repository": there, "list": list(range(200))}
    slow = int(github(place.server, body).json()["delivery"])
    quick = pushed(place, "quick")
    loop = DeliveryLoop(place.context, Handler(place.context))
    while loop.turn():
        pass
    assert begun.wait(30)
    assert place.told(quick)["status"] == "handled"
    assert place.told(slow)["status"] == "received"
    go_on.set()
    assert loop.wait_until_idle(30)
    verdicts = place.told(slow)["outcome"]["events"][0]["verdicts"]
    (verdict,) = (one for one in verdicts if one["trigger"] == "slow")
    assert "it takes longer than 0.3 seconds" in verdict["reason"]
