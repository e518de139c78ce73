"""Long values are refused where they enter, and a failure of one delivery delays no other."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.errors import InvalidRecord, StoreError, StoreUnavailable
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.server.http.errors import as_api_error
from buildrunner.server.services.queueing import TriggerQueue
from buildrunner.store.model.deliveries import HANDLED, RECEIVED, StoredDelivery
from buildrunner.store.model.outbox import BuildChange, NewMessage
from tests.api_server import ApiServer, api_server
from tests.http_receivers import receiver
from tests.server.test_outbox import Place
from tests.server.test_scheduler import Place as SchedulerPlace

SECRET = "It's a Secret to Everybody"
URL = "https://gitlab.example.com/acme/app.git"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.hook("gitlab", SECRET, host="gitlab.example.com", owners=["acme"])
        yield running


def push(server: ApiServer, ref: str = "refs/heads/main", name: str = "acme/app") -> int:
    body = {
        "object_kind": "push",
        "ref": ref,
        "before": "a" * 40,
        "after": "b" * 40,
        "project": {"path_with_namespace": name, "git_http_url": URL},
        "commits": [],
    }
    headers = {"X-Gitlab-Token": SECRET, "Idempotency-Key": str(uuid.uuid4())}
    answer = server.http.post("/hooks/gitlab", content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["delivery"])


class Handler(DeliveryHandler):
    """Handles deliveries, but for those that the database is said to refuse."""

    refused: dict[int, StoreError]

    def handle(self, delivery: StoredDelivery, *, may_ask: bool = True) -> dict[str, Any]:
        if delivery.number in self.refused:
            raise self.refused[delivery.number]
        return super().handle(delivery, may_ask=may_ask)


def turn(server: ApiServer, refused: dict[int, StoreError]) -> None:
    handler = Handler(server.context)
    handler.refused = refused
    DeliveryLoop(server.context, handler).turn()


def test_a_delivery_that_the_database_refuses_delays_no_other(server: ApiServer) -> None:
    first, bad, last = (push(server, name=f"acme/{n}") for n in range(3))
    turn(server, {bad: InvalidRecord("index row size 8096 exceeds")})
    found = [server.store.deliveries.get(number) for number in (first, bad, last)]
    assert [one.status for one in found] == [HANDLED, RECEIVED, HANDLED]
    assert [one.attempts for one in found] == [1, 1, 1]


def test_a_trigger_that_the_database_refuses_keeps_no_other_from_firing(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project in ("evil", "good"):
        trigger = {
            "name": "t",
            "build": {"steps": [{"name": "busybox"}]},
            "repositoryEventConfig": {"repository": "acme/app", "push": {"branch": "."}},
        }
        forge = {"forge": "gitlab", "forgeHost": "gitlab.example.com"}
        path = f"/v1/projects/{project}/triggers"
        answer = server.http.post(path, json=trigger, params=forge)
        assert answer.status_code == 200, answer.text
    queue = TriggerQueue.queue

    def refused(self: TriggerQueue, project: str, *rest: Any) -> Any:
        if project == "evil":
            raise InvalidRecord("index row size 8096 exceeds")
        return queue(self, project, *rest)

    monkeypatch.setattr(TriggerQueue, "queue", refused)
    number = push(server)
    turn(server, {})
    assert len(server.store.builds.page("good").builds) == 1
    (event,) = server.store.deliveries.get(number).outcome["events"]
    found = {one["project"]: one for one in event["verdicts"]}
    assert "build" in found["good"]
    assert "internal error" in str(found["evil"]["rules"])


def test_a_database_that_does_not_answer_costs_deliveries_no_attempt(server: ApiServer) -> None:
    first, second, last = (push(server, name=f"acme/{n}") for n in range(3))
    with pytest.raises(StoreUnavailable):
        turn(server, {second: StoreUnavailable("it is locked")})
    found = [server.store.deliveries.get(number) for number in (first, second, last)]
    assert [one.status for one in found] == [HANDLED, RECEIVED, RECEIVED]
    assert [one.attempts for one in found] == [1, 0, 0]
    turn(server, {})  # at once: no claim is left
    assert server.store.deliveries.get(last).status == HANDLED


@pytest.mark.parametrize(
    "event",
    [
        {"ref": f"refs/heads/{'a' * 1000}"},
        {"ref": f"refs/heads/{'é' * 500}"},
        {"name": f"acme/{'a' * 1000}"},
    ],
)
def test_an_event_with_a_long_name_is_refused(server: ApiServer, event: dict[str, str]) -> None:
    number = push(server, **event)
    turn(server, {})
    outcome = server.store.deliveries.get(number).outcome
    assert "is not the" in str(outcome.get("error", outcome)), outcome


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/projects/p/builds?requestId=" + "a" * 501, {"steps": [{"name": "busybox"}]}, 400),
        (
            "/v1/projects/p/builds",
            {"steps": [{"name": "busybox"}], "queueTtl": "315576000000s"},
            200,
        ),
        (
            "/v1/projects/p/triggers",
            {
                "name": "t",
                "build": {"steps": [{"name": "busybox"}]},
                "github": {"owner": "a" * 1000, "name": "b", "push": {"branch": "."}},
            },
            400,
        ),
    ],
)
def test_a_request_with_a_long_value_is_answered(
    server: ApiServer, path: str, body: dict[str, Any], code: int
) -> None:
    answer = server.http.post(path, json=body)
    assert answer.status_code == code, answer.text


def test_an_offset_beyond_all_files_is_refused(server: ApiServer) -> None:
    token = server.token("w", "worker", pool="default")
    for offset, code in ((1 << 60, 409), (1 << 63, 400), (10**30, 400)):
        answer = server.http.get(
            "/worker/v1/builds/b/events",
            params={"fence": 1, "offset": offset},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == code, answer.text


def test_a_message_that_can_not_be_stored_holds_up_no_other(tmp_path: Path) -> None:
    with receiver() as listener:
        place = Place(str(tmp_path), listener)
        try:
            real = place.report

            def report(change: BuildChange) -> list[NewMessage]:
                found = real(change)
                bad = change.build_id == "told-0"
                return [replace(one, target="a\0@b.c") if bad else one for one in found]

            place.report = report  # type: ignore[method-assign]
            place.sender = place.another()
            place.build()
            place.build()
            place.turn()
            (came,) = place.listener.received
            assert place.store.outbox.changes(limit=9) == []
            assert came.headers["idempotency-key"] == "n/2"
        finally:
            place.close()


def test_a_fire_that_the_database_refuses_holds_up_no_other(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SchedulerPlace(server)
    cron = {"cron": {"schedule": "0 * * * *"}, "build": {"steps": [{"name": "busybox"}]}}
    bad = clock.trigger({**cron, "name": "a"})
    good = clock.trigger({**cron, "name": "b"})
    queue = TriggerQueue.queue

    def refused(self: TriggerQueue, project: str, document: Any, *rest: Any) -> Any:
        if document["name"] == "a":
            raise InvalidRecord("index row size 8096 exceeds")
        return queue(self, project, document, *rest)

    monkeypatch.setattr(TriggerQueue, "queue", refused)
    clock.at("2026-03-01T01:00")
    assert [one[1] for one in clock.fires(bad)] == ["failed"]
    assert [one[1] for one in clock.fires(good)] == ["fired"]


def test_a_notifier_with_a_nul_is_refused(server: ApiServer) -> None:
    notifier = {
        "apiVersion": "cloud-build-notifiers/v1",
        "kind": "SMTPNotifier",
        "metadata": {"name": "mail"},
        "spec": {
            "notification": {
                "filter": "build.status == Build.Status.SUCCESS",
                "delivery": {
                    "server": "mail.example.com",
                    "port": 587,
                    "sender": "ci@example.com",
                    "from": "ci@example.com",
                    "recipients": ["a\0@b.c"],
                },
            }
        },
    }
    path = "/buildrunner/v1/projects/p/notifiers/mail"
    answer = server.http.put(path, json=notifier)
    assert answer.status_code == 400, answer.text
    assert "NUL" in answer.text


@pytest.mark.parametrize("kind", [StoreError, StoreUnavailable])
def test_no_answer_tells_where_the_database_is(
    kind: type[StoreError], caplog: pytest.LogCaptureFixture
) -> None:
    error = as_api_error(kind("the database postgresql://admin@db.internal/x failed"))
    assert "db.internal" not in str(error)
    assert "db.internal" in caplog.text
