"""What every store must do about deleting builds, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from buildrunner.errors import Conflict, NotFound
from buildrunner.spec.writing import encode_instant
from buildrunner.store.keep_rule import KeepRule, parse_keep_rule
from buildrunner.store.protocols.outbox import NewMessage
from buildrunner.store.protocols.stored_build import Lease, NewBuild
from buildrunner.store.records import FROM_BUILD
from buildrunner.store.sql.store import SqlStore, open_store
from tests.fixtures_postgres import PostgresServer, running_postgres

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
HOUR = 3600.0
DAY = 24 * HOUR


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = running_postgres()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    address = f"sqlite:///{tmp_path}/server.db"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgres").make_database()
    opened = open_store(address)
    yield opened
    opened.close()


def ended(
    store: SqlStore,
    build_id: str,
    age: float,
    status: str = "SUCCESS",
    *,
    project: str = "p",
    trigger: str = "",
) -> None:
    """A build that was created and ended so long ago."""
    at = encode_instant(ago(age))
    document: dict[str, Any] = {
        "id": build_id,
        "projectId": project,
        "status": status,
        "createTime": at,
        "finishTime": at,
        "tags": ["t"],
    }
    if trigger:
        document["buildTriggerId"] = trigger
    store.create_build(NewBuild(document=document, request={}, expires_at=NOW))


def ongoing(
    store: SqlStore, build_id: str, age: float = 10 * DAY, status: str = "QUEUED", **labels: str
) -> None:
    document = {
        "id": build_id,
        "projectId": "p",
        "status": status,
        "createTime": encode_instant(ago(age)),
    }
    new = NewBuild(document=document, request={}, expires_at=ago(-DAY), labels=labels)
    store.create_build(new)


def kept(store: SqlStore, project: str = "p") -> set[str]:
    return {build.id for build in store.list_builds(project, page_size=1000).builds}


def sweep(store: SqlStore, rule: str, *, limit: int = 100, project: str = "p") -> int:
    return store.delete_old_builds(project, parse_keep_rule(rule), now=NOW, limit=limit)


def test_builds_beyond_an_age_are_deleted(store: SqlStore) -> None:
    ended(store, "old", 31 * DAY)
    ended(store, "young", 29 * DAY)
    ended(store, "other", 31 * DAY, project="q")
    assert sweep(store, "30d") == 1
    assert kept(store) == {"young"}
    assert kept(store, "q") == {"other"}
    assert sweep(store, "30d") == 0


def test_builds_beyond_a_number_are_deleted(store: SqlStore) -> None:
    for number in range(6):
        ended(store, f"b{number}", (number + 2) * HOUR)
    ongoing(store, "waits")
    assert sweep(store, "2") == 4
    assert kept(store) == {"b0", "b1", "waits"}


def test_either_limit_counts_and_without_one_all_are_kept(store: SqlStore) -> None:
    for number in range(6):
        ended(store, f"b{number}", (number + 1) * DAY)
    assert sweep(store, "all") == 0
    assert sweep(store, "36h,4") == 5
    assert kept(store) == {"b0"}


def test_several_of_the_same_moment_are_told_apart_by_their_ids(store: SqlStore) -> None:
    for name in "abcd":
        ended(store, name, 2 * HOUR)
    assert sweep(store, "2") == 2
    assert kept(store) == {"a", "b"}  # the order of lists


def test_the_oldest_go_first_a_batch_at_a_time(store: SqlStore) -> None:
    for number in range(5):
        ended(store, f"b{number}", (number + 40) * DAY)
    assert sweep(store, "30d", limit=2) == 2
    assert kept(store) == {"b0", "b1", "b2"}
    assert [sweep(store, "30d", limit=2) for _ in range(3)] == [2, 1, 0]


def test_what_has_not_ended_is_never_deleted(store: SqlStore) -> None:
    ongoing(store, "running")
    assert store.claim("w", now=NOW, lease_s=60, limit=9) is not None
    ongoing(store, "waits")
    ongoing(store, "pending", status="PENDING")
    assert sweep(store, "0h,0") == 0
    for build_id in ("running", "waits", "pending"):
        with pytest.raises(Conflict, match="has not ended"):
            store.delete_build("p", build_id, now=NOW)
    assert kept(store) == {"running", "waits", "pending"}


def test_what_ended_a_moment_ago_is_kept_for_its_viewers(store: SqlStore) -> None:
    ended(store, "just", 59 * 60)
    ended(store, "then", 61 * 60)
    assert sweep(store, "0") == 1
    assert kept(store) == {"just"}


def test_the_last_success_of_each_trigger_is_kept(store: SqlStore) -> None:
    for trigger in ("t1", "t2"):
        store.create_trigger("p", "global", {"id": trigger, "name": trigger})
    store.create_trigger("q", "global", {"id": "t1", "name": "t1"})
    ended(store, "t1-red", 40 * DAY, "FAILURE", trigger="t1")
    ended(store, "t1-last", 41 * DAY, trigger="t1")
    ended(store, "t1-before", 42 * DAY, trigger="t1")
    ended(store, "t2-last", 300 * DAY, trigger="t2")
    ended(store, "t2-same", 300 * DAY, trigger="t2")
    ended(store, "gone-last", 50 * DAY, trigger="deleted")
    ended(store, "none", 50 * DAY)
    ended(store, "q-last", 50 * DAY, project="q", trigger="t1")
    assert sweep(store, "30d") == 5
    assert kept(store) == {"t1-last", "t2-last"}
    assert sweep(store, "0") == 0
    assert sweep(store, "0", project="q") == 0


def test_a_build_whose_workspace_is_still_needed_is_kept(store: SqlStore) -> None:
    ended(store, "red", 40 * DAY, "FAILURE")
    ongoing(store, "again", **{FROM_BUILD: "red"})
    assert sweep(store, "0") == 0
    with pytest.raises(Conflict, match="resumes build red"):
        store.delete_build("p", "red", now=NOW)
    store.request_cancel("p", "again", now=NOW)
    assert sweep(store, "0") == 1


def test_all_of_a_build_goes_with_it_but_messages_that_wait(store: SqlStore) -> None:
    ongoing(store, "b1")
    claimed = store.claim("w", now=NOW, lease_s=60, limit=9)
    assert claimed is not None
    build, lease = claimed
    store.record_plan(lease, b"{}")
    store.record(Lease("b1", lease.fence), {**build.document, "status": "SUCCESS"})
    for key in ("sent", "waits"):
        new = NewMessage(
            key=key, lane=key, kind="http", project_id="p", build_id="b1", target="t", message={}
        )
        message = store.put_message(new, now=NOW)
        if key == "sent":
            (taken,) = store.claim_messages(now=NOW, lease_s=60, limit=1)
            assert taken.id == message.id
            store.delivered(taken, now=NOW)
    store.delete_build("p", "b1", now=NOW)
    with pytest.raises(NotFound):
        store.find_build("b1")
    with pytest.raises(NotFound):
        store.plan("b1")
    assert not store.list_builds("p", filter='tags="t"').builds
    assert [message.key for message in store.list_messages(project_id="p")] == ["waits"]


def test_a_build_is_deleted_in_its_project_only(store: SqlStore) -> None:
    ended(store, "b1", DAY)
    for project, build_id in (("q", "b1"), ("p", "b2")):
        with pytest.raises(NotFound):
            store.delete_build(project, build_id, now=NOW)
    store.delete_build("p", "b1", now=NOW)
    with pytest.raises(NotFound):
        store.delete_build("p", "b1", now=NOW)


def test_servers_learn_which_builds_were_deleted(store: SqlStore) -> None:
    for number in range(3):
        ended(store, f"b{number}", 40 * DAY)
    store.delete_build("p", "b0", now=ago(50))
    assert sweep(store, "30d") == 2
    assert set(store.builds_deleted_since(ago(100))) == {"b0", "b1", "b2"}
    assert set(store.builds_deleted_since(ago(49))) == {"b1", "b2"}
    assert store.forget_deleted_builds(before=ago(49)) == 1
    assert set(store.builds_deleted_since(ago(100))) == {"b1", "b2"}


def test_the_projects_that_have_builds_are_listed(store: SqlStore) -> None:
    assert store.build_projects() == []
    for project in ("q", "p", "q", "r-1"):
        ended(store, f"b{len(kept(store, project))}-{project}", DAY, project=project)
    assert store.build_projects() == ["p", "q", "r-1"]


def test_rules_are_read_as_they_are_written() -> None:
    assert parse_keep_rule("90d") == KeepRule(max_age=timedelta(days=90))
    assert parse_keep_rule("12h,5") == KeepRule(max_age=timedelta(hours=12), max_count=5)
    assert parse_keep_rule("5,2w") == KeepRule(max_age=timedelta(weeks=2), max_count=5)
