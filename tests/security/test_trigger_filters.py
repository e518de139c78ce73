"""Filters of triggers: whatever is in one, it takes bounded time and memory of the server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner.server.bounded import BoundedCalls, Busy
from buildrunner.server.events import handling
from buildrunner.server.events.facts import KnownEvent, MustAsk, SilentPlaces
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.server.events.reconcile import Reconciler, RemoteRefs
from buildrunner.server.services import queueing
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.deliveries import WAITING, NewDelivery, StoredDelivery
from buildrunner.triggers.file_filter import file_rule
from buildrunner.triggers.hook_binding import read_binding
from tests.api_server import ApiServer, api_server, now
from tests.security.test_templates import CEL
from tests.unit.triggers.test_forges import github_push

BOUND_S = 40.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr("buildrunner.server.bounded.CPU_S", 0.5)
    monkeypatch.setattr(SilentPlaces, "filter_s", 0.3)
    with api_server(tmp_path) as running:
        running.hook("github", "s3cret", owners=["acme"])
        yield running


def trigger(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "build": {"steps": [{"name": "busybox"}]},
        "github": {"owner": "acme", "name": "app", "push": {"branch": "main"}},
        **fields,
    }


def pushed(server: ApiServer, number: int, **fields: Any) -> None:
    body = json.dumps({**github_push(), **fields}).encode()
    headers = {"x-github-event": "push"}
    new = NewDelivery(hook="github", delivery_id=str(number), headers=headers, body=body)
    server.store.deliveries.add([new], now=now())


@pytest.mark.parametrize("text", CEL.values(), ids=CEL.keys())
def test_an_attack_neither_stops_the_request_that_makes_it_nor_another(
    server: ApiServer, text: str
) -> None:
    begun = time.monotonic()
    made = server.http.post("/v1/projects/evil/triggers", json=trigger("t", filter=text))
    assert made.status_code in (200, 400), made.text
    assert server.http.get("/healthz").status_code == 200
    assert time.monotonic() - begun < BOUND_S


@pytest.mark.parametrize("text", CEL.values(), ids=CEL.keys())
def test_an_attack_does_not_keep_another_project_s_trigger_from_firing(
    server: ApiServer, text: str
) -> None:
    # As an earlier version may have kept it: no check has seen it.
    evil = {**trigger("evil", filter=f"{text} || body.ref == ''"), "id": "e" * 8}
    server.store.triggers.create("evil", "global", evil)
    made = server.http.post("/v1/projects/good/triggers", json=trigger("good"))
    assert made.status_code == 200, made.text
    loop = DeliveryLoop(server.context, DeliveryHandler(server.context))
    begun = time.monotonic()
    pushed(server, 1)
    while loop.turn():
        pass
    assert loop.wait_until_idle(BOUND_S)
    assert time.monotonic() - begun < BOUND_S
    (delivery,) = server.store.deliveries.page(limit=10)
    verdicts = {
        one["trigger"]: one for event in delivery.outcome["events"] for one in event["verdicts"]
    }
    assert verdicts["good"]["fires"]
    assert not verdicts["evil"]["fires"]
    reason = verdicts["evil"]["reason"]
    assert "the filter can't be evaluated for this event" in reason or "asked later" in reason
    loop.stop()


def test_triggers_that_take_long_come_after_those_of_other_projects_and_are_asked_later(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: a project's slow filters delayed another project's build at each push."""
    for name in ("e1", "e2", "e3"):
        made = server.http.post("/v1/projects/evil/triggers", json=trigger(name, filter="true"))
        assert made.status_code == 200, made.text
    made = server.http.post("/v1/projects/good/triggers", json=trigger("good"))
    assert made.status_code == 200, made.text
    asked: list[str] = []
    clock = [0.0]
    handler = DeliveryHandler(server.context, seconds=lambda: clock[0])
    judge = KnownEvent.judge

    def judged(self: KnownEvent, trigger: Any, *arguments: Any) -> Any:
        asked.append(trigger.name)
        clock[0] += 7.0 if trigger.name != "good" else 0.1
        return judge(self, trigger, *arguments)

    monkeypatch.setattr(KnownEvent, "judge", judged)
    pushed(server, 1)
    (first,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
    outcome = handler.handle(first)
    assert asked == ["e1", "e2", "good"]
    verdicts = {one["trigger"]: one for one in outcome["events"][0]["verdicts"]}
    assert [one["trigger"] for one in outcome["events"][0]["verdicts"]][:3] == ["e1", "e2", "e3"]
    assert verdicts["good"]["fires"]
    assert not verdicts["e3"]["fires"]
    assert "asked later" in verdicts["e3"]["reason"]
    assert outcome["retry"]["because"] == verdicts["e3"]["reason"]
    asked.clear()
    again = msgspec.structs.replace(first, status=WAITING, outcome=outcome)
    later = handler.handle(again)
    assert asked == ["e3"]
    assert all(one["fires"] for one in later["events"][0]["verdicts"])
    assert "retry" not in later
    asked.clear()
    handler.handle(msgspec.structs.replace(first, number=first.number + 1, replays=1))
    assert asked[0] == "good"


class Asked:
    """A handler of deliveries, whose clock shows what the triggers that it asks take."""

    def __init__(self, server: ApiServer, monkeypatch: pytest.MonkeyPatch, **took: float) -> None:
        self.server, self.names, self.time, self.work = server, [], 0.0, 0.0
        self.handler = DeliveryHandler(
            server.context, seconds=lambda: self.time, worked=lambda: self.work
        )
        self.numbers = count()
        judge = KnownEvent.judge

        def judged(known: KnownEvent, trigger: Any, *arguments: Any) -> Any:
            self.names.append(trigger.name)
            self.time += took.get(trigger.name, 0.0)
            return judge(known, trigger, *arguments)

        monkeypatch.setattr(KnownEvent, "judge", judged)

    names: list[str]

    def make(self, project: str, *names: str, **fields: Any) -> None:
        for name in names:
            path = f"/v1/projects/{project}/triggers"
            made = self.server.http.post(path, json=trigger(name, **fields))
            assert made.status_code == 200, made.text

    def push(self) -> StoredDelivery:
        number = next(self.numbers)
        commits = {"before": f"{number + 100:040x}", "after": f"{number + 101:040x}"}
        pushed(self.server, number, **commits)
        (claimed,) = self.server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
        self.names.clear()
        return claimed

    def builds(self, project: str) -> int:
        answer = self.server.http.get(f"/v1/projects/{project}/builds")
        return len(answer.json().get("builds", []))


def test_what_a_project_must_be_waited_for_is_asked_after_the_builds_of_others(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: the whole delivery went into the line of the project with slow triggers."""
    asked = Asked(server, monkeypatch)
    slow = "[1,1,1,1,1,1,1,1,1,1].all(a, " * 12 + "body.ref != ''" + ")" * 12
    asked.make("evil", "slow", filter=slow)
    asked.make("good", "good")
    with pytest.raises(MustAsk) as requested:
        asked.handler.handle(asked.push(), may_ask=False)
    assert requested.value.project == "evil"
    assert asked.names == ["slow", "good"]
    assert asked.builds("good") == 1


def test_the_making_of_builds_is_a_debt_of_their_project(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(server, monkeypatch)
    asked.make("evil", "heavy")
    asked.make("good", "good")
    admit = queueing.admit

    def admitted(request: Any, arrival: Any) -> Any:
        asked.work += 2.5 if arrival.project == "evil" else 0.0
        return admit(request, arrival)

    monkeypatch.setattr(queueing, "admit", admitted)
    asked.handler.handle(asked.push())
    outcome = asked.handler.handle(asked.push())
    assert asked.names == ["good"]
    assert outcome["retry"]  # the other project's trigger is asked later
    assert (asked.builds("good"), asked.builds("evil")) == (2, 1)


def test_the_thread_of_all_deliveries_works_for_one_project_a_short_time(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(server, monkeypatch, **{f"e{number}": 0.15 for number in range(9)})
    asked.make("evil", *(f"e{number}" for number in range(9)))
    for _ in range(6):  # 0.3 s each
        with pytest.raises(MustAsk):
            asked.handler.handle(asked.push(), may_ask=False)
        assert asked.names == ["e0", "e1"]
    asked.handler.handle(asked.push())
    assert len(asked.names) == 9
    with pytest.raises(MustAsk) as requested:
        asked.handler.handle(asked.push(), may_ask=False)
    assert requested.value.project == "evil"
    assert asked.names == []
    asked.time += 60.0
    with pytest.raises(MustAsk):
        asked.handler.handle(asked.push(), may_ask=False)
    assert asked.names == ["e0", "e1"]


@pytest.mark.parametrize(
    ("projects", "owner"), [(["evil"], "evil"), (["evil", "good"], "hook git/app")]
)
def test_the_thread_of_all_deliveries_works_for_one_delivery_a_short_time(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, projects: list[str], owner: str
) -> None:
    """Issue: a push of thousands of refs was handled as a whole before all other deliveries."""
    bound = {"repository": "https://git.example.com/app", "projects": projects}
    server.store.hooks.put("git/app", msgspec.to_builtins(read_binding("git/app", bound)))
    asked = Asked(server, monkeypatch)
    event, seen = DeliveryHandler._event, []

    def slow(self: DeliveryHandler, reported: Any, *arguments: Any) -> dict[str, Any]:
        seen.append(reported.number)
        asked.time += 0.3
        return event(self, reported, *arguments)

    monkeypatch.setattr(DeliveryHandler, "_event", slow)
    refs = [{"ref": f"refs/heads/{n}", "before": "a" * 40, "after": "b" * 40} for n in range(9)]
    body = {"repository": {"name": "app", "url": "https://git.example.com/app"}, "refs": refs}
    new = NewDelivery(hook="git/app", delivery_id="1", headers={}, body=json.dumps(body).encode())
    server.store.deliveries.add([new], now=now())
    (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
    with pytest.raises(MustAsk, match="git/app") as requested:
        asked.handler.handle(claimed, may_ask=False)
    assert requested.value.project == owner  # all long deliveries shared one line
    assert seen == [0, 1, 2, 3]
    assert len(asked.handler.handle(claimed)["events"]) == 9


def test_events_that_cost_nothing_do_not_bring_a_slow_project_to_the_front(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: one quick event of the project, and its slow triggers came before those of others."""
    took = {"e1": 7.0}
    asked = Asked(server, monkeypatch, **took)
    asked.make("evil", "e1")
    asked.handler.handle(asked.push())
    other = {"owner": "acme", "name": "quick", "push": {"branch": "main"}}
    asked.make("evil", "quick", github=other)
    quick = {**github_push()["repository"], "full_name": "acme/quick"}
    for number in range(3):
        pushed(server, 100 + number, repository=quick)
        (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
        asked.handler.handle(claimed)
    asked.make("good", "good")
    shared = asked.push()
    outcome = asked.handler.handle(shared, may_ask=False)
    assert asked.names == ["good"]
    verdicts = {one["trigger"]: one for one in outcome["events"][0]["verdicts"]}
    assert verdicts["good"]["fires"]
    assert "asked later" in verdicts["e1"]["reason"]
    again = msgspec.structs.replace(shared, status=WAITING, outcome=outcome)
    with pytest.raises(MustAsk) as requested:  # in the line of its own project
        asked.handler.handle(again, may_ask=False)
    assert requested.value.project == "evil"
    later = asked.handler.handle(again)
    assert asked.names == ["good", "e1"]
    assert all(one["fires"] for one in later["events"][0]["verdicts"])


def test_the_last_try_of_a_delivery_takes_no_longer_than_others(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: after a day, all triggers that had not been asked were asked in one try."""
    asked = Asked(server, monkeypatch, e1=7.0, e2=7.0, e3=7.0, e4=7.0)
    asked.make("evil", "e1", "e2", "e3", "e4")
    first = asked.push()
    retry = {"tries": 99, "since": encode_instant(now() - timedelta(days=2)), "because": "x"}
    last = msgspec.structs.replace(first, status=WAITING, outcome={"events": [], "retry": retry})
    outcome = asked.handler.handle(last)
    assert asked.names == ["e1", "e2"]
    assert outcome["error"].startswith("given up: the project's triggers take long")
    assert "retry" not in outcome


def test_a_project_whose_filters_have_no_place_is_asked_later_and_others_now(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: the delivery was given back, and began again with the same project, for ever."""
    asked = Asked(server, monkeypatch)
    asked.make("evil", "e1", filter="body.ref != ''")
    asked.make("good", "good")

    def busy(*_: Any, **__: Any) -> Any:
        raise Busy("project evil has others under way")

    monkeypatch.setattr(BoundedCalls, "call", busy)
    delivery = asked.push()
    with pytest.raises(MustAsk):
        asked.handler.handle(delivery, may_ask=False)
    outcome = asked.handler.handle(delivery)
    verdicts = {one["trigger"]: one for one in outcome["events"][0]["verdicts"]}
    assert verdicts["good"]["fires"]
    assert verdicts["e1"]["waitsForAnswer"]
    assert "retry" in outcome


def test_a_later_try_of_a_push_sets_no_project_s_commits_back(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: the look for missed pushes fired triggers of other projects again, at each retry."""
    for project, names in (("evil", ("e1", "e2", "e3")), ("good", ("deploy",))):
        for name in names:
            made = server.http.post(f"/v1/projects/{project}/triggers", json=trigger(name))
            assert made.status_code == 200, made.text
    clock = [0.0]
    handler = DeliveryHandler(server.context, seconds=lambda: clock[0])
    judge = KnownEvent.judge

    def judged(self: KnownEvent, trigger: Any, *arguments: Any) -> Any:
        clock[0] += 7.0 if trigger.name != "deploy" else 0.0
        return judge(self, trigger, *arguments)

    monkeypatch.setattr(KnownEvent, "judge", judged)
    commits = [name * 40 for name in "1abc"]
    head = [commits[0]]
    looked = RemoteRefs(list_refs=lambda _: {"refs/heads/main": head[0]}, message=lambda *_: "m")
    reconciler = Reconciler(server.context, looked)
    reconciler.look()
    tries: list[tuple[StoredDelivery, dict[str, Any]]] = []
    for number, (before, after) in enumerate(pairwise(commits)):
        pushed(server, number, before=before, after=after)
        (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
        outcome = handler.handle(claimed)
        server.store.deliveries.finish([(claimed, outcome)])
        tries.append((claimed, outcome))
    first, outcome = tries[0]
    assert "retry" in outcome
    handler.handle(msgspec.structs.replace(first, status=WAITING, outcome=outcome))
    head[0] = commits[-1]
    reconciler.look()
    assert server.store.deliveries.claim(now=now(), lease_s=60, limit=1) == []


def test_a_later_try_asks_no_trigger_again_however_many_there_are(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: decisions beyond the thousand that are stored were made again at each try."""
    monkeypatch.setattr(handling, "MOST_VERDICTS", 3)
    asked = Asked(server, monkeypatch, e1=7.0, e2=7.0)
    asked.make("evil", "e1", "e2", "e3", "e4")
    asked.make("good", "g1", "g2", "g3")
    shared = asked.push()
    outcome = asked.handler.handle(shared)
    assert sorted(asked.names) == ["e1", "e2", "g1", "g2", "g3"]
    for _ in range(2):
        (event,) = outcome["events"]
        assert (len(event["verdicts"]), event["more"]) == (3, 4)
        asked.names.clear()
        asked.time += 600.0
        again = msgspec.structs.replace(shared, status=WAITING, outcome=outcome)
        outcome = asked.handler.handle(again)
        assert asked.names in (["e3", "e4"], [])
        if "retry" not in outcome:
            break
    assert "retry" not in outcome
    assert "decided" not in outcome["events"][0]
    assert (asked.builds("evil"), asked.builds("good")) == (4, 3)


def test_a_later_try_of_an_updated_pull_request_sets_its_head_not_back(server: ApiServer) -> None:
    """Issue: the next change of the text of a pull request counted as new commits."""
    server.hook("bitbucket", "s3cret", owners=["acme"])
    handler = DeliveryHandler(server.context)
    pulls = {"owner": "acme", "name": "app", "pullRequest": {"branch": "."}}
    made = server.http.post(
        "/v1/projects/p/triggers",
        json=trigger("t", github=pulls),
        params={"forge": "bitbucket"},
    )
    assert made.status_code == 200, made.text

    def updated(number: int, commit: str) -> StoredDelivery:
        side = {"repository": {"full_name": "acme/app"}, "commit": {"hash": commit}}
        pull = {
            "id": 3,
            "source": {**side, "branch": {"name": "feat"}},
            "destination": {**side, "branch": {"name": "main"}},
        }
        body = json.dumps({"pullrequest": pull}).encode()
        headers = {"x-event-key": "pullrequest:updated"}
        new = NewDelivery(hook="bitbucket", delivery_id=str(number), headers=headers, body=body)
        server.store.deliveries.add([new], now=now())
        (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
        return claimed

    first = updated(1, "a" * 40)
    outcome = handler.handle(first)
    assert outcome["events"][0]["verdicts"][0]["fires"]
    assert handler.handle(updated(2, "b" * 40))["events"][0]["verdicts"][0]["fires"]
    waits = {"verdicts": [{"triggerId": "x", "waitsForAnswer": True}]}
    handler.handle(msgspec.structs.replace(first, status=WAITING, outcome={"events": [waits]}))
    text_changed = handler.handle(updated(3, "b" * 40))
    assert text_changed["events"][0]["ignored"] == "its text changed, not its commits"


def test_a_trial_of_an_attack_ends(server: ApiServer) -> None:
    evil = {**trigger("evil", filter=CEL["a comparison"]), "id": "e" * 8}
    server.store.triggers.create("evil", "global", evil)
    path = "/buildrunner/v1/projects/evil/triggers/evil:test"
    begun = time.monotonic()
    answer = server.http.post(path, json={"ref": "main"}, timeout=BOUND_S)
    assert answer.status_code == 200, answer.text
    assert not answer.json()["verdicts"][0]["fires"]
    assert time.monotonic() - begun < BOUND_S


def test_a_filter_means_what_it_meant(server: ApiServer) -> None:
    for name, text in (("yes", "body.ref == 'refs/heads/main'"), ("no", "body.ref == 'x'")):
        made = server.http.post("/v1/projects/p/triggers", json=trigger(name, filter=text))
        assert made.status_code == 200, made.text
    bad = server.http.post("/v1/projects/p/triggers", json=trigger("bad", filter="body.ref =="))
    assert bad.status_code == 400
    assert "is no CEL expression" in bad.json()["error"]["message"]
    handler = DeliveryHandler(server.context)
    pushed(server, 1)
    (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
    outcome = handler.handle(claimed)
    fires = {one["trigger"]: one["fires"] for one in outcome["events"][0]["verdicts"]}
    assert fires == {"yes": True, "no": False}


@pytest.mark.parametrize(
    "pattern",
    ["src/{}/**/*.py", "**/" * 40 + "{}", "{}" + "**a" * 300],
    ids=["plain", "deep", "wide"],
)
def test_many_patterns_and_a_push_of_many_files_take_bounded_time(pattern: str) -> None:
    patterns = [pattern.replace("{}", str(number)) for number in range(200)]
    files = [f"lib/{number % 977}/{'a' * 40}/{number}.py" for number in range(100_000)]
    begun = time.process_time()
    file_rule(files, included=patterns, ignored=patterns)
    assert time.process_time() - begun < 10
