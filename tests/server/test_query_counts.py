"""How often the database is asked: as often for many triggers, builds or refs as for few."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, event

from buildrunner.server.services.builds import ApprovalExpiry
from tests.api_server import ApiServer, api_server, now
from tests.server.test_reconcile import OLD, SECRET, URL, Git, built, handle, look, make_trigger

STEPS = {"steps": [{"name": "busybox"}]}


class Counts:
    """What was asked of the databases of this process, by statement, and how often one wrote."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    @property
    def requested(self) -> int:
        return len(self.statements)

    @property
    def transactions_that_write(self) -> int:
        return sum(one.startswith("BEGIN IMMEDIATE") for one in self.statements)


@contextmanager
def counted() -> Iterator[Counts]:
    counts = Counts()

    def note(*arguments: Any) -> None:
        counts.statements.append(arguments[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield counts
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.hook("gitlab", SECRET, host="gitlab.example.com", owners=["acme"])
        yield running


def triggers(server: ApiServer, count: int, **fields: Any) -> list[str]:
    return [
        server.store.triggers.create(
            "p",
            "global",
            {"id": f"t{number:03}", "name": f"n{number:03}", "build": STEPS, **fields},
        )["id"]
        for number in range(count)
    ]


def run(server: ApiServer, trigger: str) -> str:
    answer = server.http.post(f"/v1/projects/p/locations/global/triggers/{trigger}:run")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["metadata"]["build"]["id"])


def test_a_page_of_triggers_asks_as_often_for_many_as_for_few(server: ApiServer) -> None:
    few = triggers(server, 2)
    run(server, few[0])
    with counted() as of_few:
        assert server.http.get("/triggers?project=p").status_code == 200
    for number in range(2, 60):
        document = {"id": f"t{number:03}", "name": f"n{number:03}", "build": STEPS}
        server.store.triggers.create("p", "global", document)
    builds = [run(server, trigger) for trigger in ("t003", "t003", "t040")]
    with counted() as of_many:
        page = server.http.get("/triggers?project=p").text
    assert page.count("<tr data-item") == 60
    assert all(f"/builds/p/{build}" in page for build in builds)
    assert of_many.requested == of_few.requested < 10, of_many.statements


def test_what_waits_for_an_approval_is_looked_at_with_a_question_for_each_trigger(
    server: ApiServer,
) -> None:
    made = triggers(server, 2, approvalConfig={"approvalRequired": True})
    for trigger in made:
        server.store.triggers.set_settings("p", trigger, {"approval": {"expires": "3600s"}})
        for _ in range(8):
            run(server, trigger)
    expiry = ApprovalExpiry(server.context)
    with counted() as counts:
        assert expiry.turn() == 0
    assert [one.split()[0] for one in counts.statements] == ["BEGIN", "SELECT"] * (1 + len(made))
    later = replace(server.context, clock=lambda: now() + timedelta(hours=2))
    assert ApprovalExpiry(later).turn() == 16


def test_a_first_look_at_a_thousand_refs_is_one_durable_transaction(server: ApiServer) -> None:
    make_trigger(server)
    git = Git(**{f"b{number}": OLD for number in range(1000)})
    with counted() as counts:
        look(server, git)
    assert 1 <= counts.transactions_that_write <= 5, counts.statements
    assert built(server) == []
    handle(server)
    git.refs[URL]["refs/heads/b500"] = "d" * 40  # all were noted: only what is new is built
    look(server, git)
    assert built(server) == ["d" * 40]
