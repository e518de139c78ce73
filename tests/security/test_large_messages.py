"""Messages of large builds, and of many notifiers, are small, and projects take turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner.server.notifications.dispatch import NotificationService
from buildrunner.server.outbox.sender import OutboxSender, receiver_of
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.store.model.outbox import BuildChange, Message, NewMessage
from buildrunner.store.sql import deliveries as sql_deliveries
from buildrunner.store.sql import outbox as sql_outbox
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, lane_of
from tests.api_server import ApiServer, api_server, now
from tests.security.test_large_builds import LARGE, create, peak_bytes

NOTIFIERS = 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        yield running


def notifier(server: ApiServer, name: str, project: str = "p") -> int:
    document = {
        "apiVersion": "buildrunner/v1",
        "kind": "HTTPNotifier",
        "metadata": {"name": name},
        "spec": {"notification": {"delivery": {"url": "https://example.com/"}}},
    }
    path = f"/buildrunner/v1/projects/{project}/notifiers/{name}"
    return server.http.put(path, json=document).status_code


def announce(server: ApiServer) -> list[Message]:
    """Make the messages of all changes, as the outbox does."""
    service, outbox = NotificationService(server.context), server.store.outbox
    changes = outbox.changes(limit=100)
    messages = [(change.id, message) for change in changes for message in service(change)]
    outbox.announce(changes, messages, now=now())
    return [outbox.get(one.id) for one in outbox.page()]


def test_a_large_build_is_stored_once_for_all_notifiers_and_read_when_it_is_sent(
    server: ApiServer,
) -> None:
    for number in range(NOTIFIERS):
        assert notifier(server, f"n{number}") == 200
    create(server, "b")
    found: list[Message] = []
    assert peak_bytes(lambda: found.extend(announce(server))) < LARGE
    assert len(found) == NOTIFIERS
    assert sum(len(msgspec.json.encode(one.message)) for one in found) < NOTIFIERS * 200
    requested = NotificationService(server.context).argument_of(found[0])
    assert requested is not None
    assert requested["facts"]["build"]["id"] == "b"


def test_the_build_of_messages_goes_when_they_have_arrived(server: ApiServer) -> None:
    for name in ("one", "two"):
        notifier(server, name)
    create(server, "b")
    announce(server)
    outbox = server.store.outbox
    first, second = outbox.claim(now=now(), lease_s=60, limit=9)
    outbox.delivered(first, now=now())
    assert outbox.changed_build(first.change_id) is not None
    outbox.give_up(second, error="gone", now=now())
    assert outbox.changed_build(first.change_id) is not None  # it may be sent again
    outbox.drop(second.id)
    assert outbox.changed_build(first.change_id) is None


def test_a_change_that_nobody_tells_of_leaves_nothing(server: ApiServer) -> None:
    create(server, "b")
    (change,) = server.store.outbox.changes(limit=9)
    assert announce(server) == []
    assert server.store.outbox.changed_build(change.id) is None


def test_a_project_has_a_bounded_number_of_notifiers(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_outbox, "MOST_NOTIFIERS", 2)
    assert [notifier(server, name) for name in ("a", "b", "b", "c")] == [200, 200, 200, 429]
    assert notifier(server, "c", project="q") == 200
    assert list(server.store.notifiers.of_project("p")) == ["a", "b"]
    monkeypatch.setattr(sql_outbox, "MOST_NOTIFIER_BYTES", 10)
    assert notifier(server, "d", project="r") == 429


def test_projects_take_turns_when_changes_become_messages(server: ApiServer) -> None:
    for number in range(5):
        create(server, f"many{number}")
    other = {"id": "few", "projectId": "q", "steps": [{"name": "busybox"}]}
    server.http.post("/v1/projects/q/builds", json={"steps": other["steps"]})
    changes = server.store.outbox.changes(limit=3)
    assert [one.project_id for one in changes] == ["p", "q", "p"]
    assert [one.build_id for one in changes if one.project_id == "p"] == ["many0", "many1"]


def test_a_turn_of_the_outbox_ends_though_changes_come_faster_than_it_handles_them(
    server: ApiServer,
) -> None:
    seen: list[BuildChange] = []

    def flooding(change: BuildChange) -> tuple[NewMessage, ...]:
        seen.append(change)
        create(server, f"more{len(seen)}")
        return ()

    create(server, "first")
    sender = OutboxSender(server.store, Never(), [flooding], now=now, random=lambda: 0.5)
    sender.announce()
    assert [one.build_id for one in seen] == ["first"]


class Never:
    """Delivers nothing."""

    def deliver(self, message: Message) -> None:
        raise AssertionError(message)

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    "other",
    [
        {"project_id": "q"},
        {"message": {"url": "http://hook.example:443/x"}},
        {"message": {"url_secret": "hook.example"}},
        {"message": {"server": "hook.example", "port": 443}},
    ],
)
def test_a_receiver_that_does_not_answer_one_project_delays_no_other(other: dict[str, Any]) -> None:
    message = Message(
        id=1,
        key="k",
        lane="l",
        kind="http",
        project_id="p",
        build_id="b",
        target="t",
        message={"url": "https://hook.example/y"},
        created_at=now(),
        next_try=now(),
    )
    same = msgspec.structs.replace(message, message={"url": "https://hook.example/z"})
    assert receiver_of(same) == receiver_of(message)
    assert receiver_of(msgspec.structs.replace(message, **other)) != receiver_of(message)


def test_large_deliveries_are_read_a_few_at_a_time(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_deliveries, "MOST_CLAIMED_BYTES", 2 * LARGE)
    large = [
        NewDelivery(hook="h", delivery_id=str(number), headers={}, body=b"x" * LARGE)
        for number in range(5)
    ]
    server.store.deliveries.add(large, now=now())
    huge = NewDelivery(hook="h", delivery_id="huge", headers={}, body=b"x" * 3 * LARGE)
    server.store.deliveries.add([huge], now=now())
    sizes = []
    while claimed := server.store.deliveries.claim(now=now(), lease_s=600, limit=20):
        sizes.append(len(claimed))
    assert sizes == [2, 2, 1, 1]


def test_a_delivery_of_many_fields_and_refs_takes_little_memory() -> None:
    """Issue: each ref of a bare repository's push had a copy of all fields of the delivery."""
    fields = {f"k{number}": 0 for number in range(2000)}
    refs = [{"ref": "refs/heads/a"}] * 2000
    body = json.dumps({**fields, "repository": {"name": "r"}, "refs": refs}).encode()
    request = WebhookRequest({}, body)

    def lane() -> None:
        assert lane_of("git/r", FORGES["git"], request) == ""

    assert peak_bytes(lane) < 8 << 20
    with pytest.raises(BadDelivery, match="2002 fields, and 20 are the most"):
        FORGES["git"].parse(request)
