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
from buildrunner.store.model.builds import ClaimScope, Lease, NewBuild
from buildrunner.store.model.outbox import NewMessage
from buildrunner.store.records import FROM_BUILD
from buildrunner.store.sql.store import ServerStore, open_store
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
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerStore]:
    address = f"sqlite:///{tmp_path}/server.db"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgres").make_database()
    opened = open_store(address)
    yield opened
    opened.close()


def ended(
    store: ServerStore,
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
    store.builds.create(NewBuild(document=document, request={}, expires_at=NOW))


def ongoing(
    store: ServerStore, build_id: str, age: float = 10 * DAY, status: str = "QUEUED", **labels: str
) -> None:
    document = {
        "id": build_id,
        "projectId": "p",
        "status": status,
        "createTime": encode_instant(ago(age)),
    }
    new = NewBuild(document=document, request={}, expires_at=ago(-DAY), labels=labels)
    store.builds.create(new)


def kept(store: ServerStore, project: str = "p") -> set[str]:
    return {build.id for build in store.builds.page(project, page_size=1000).builds}


def sweep(store: ServerStore, rule: str, *, limit: int = 100, project: str = "p") -> int:
    return store.retention.delete_old(project, parse_keep_rule(rule), now=NOW, limit=limit)


def test_builds_beyond_an_age_are_deleted(store: ServerStore) -> None:
    ended(store, "old", 31 * DAY)
    ended(store, "young", 29 * DAY)
    ended(store, "other", 31 * DAY, project="q")
    assert sweep(store, "30d") == 1
    assert kept(store) == {"young"}
    assert kept(store, "q") == {"other"}
    assert sweep(store, "30d") == 0


def test_builds_beyond_a_number_are_deleted(store: ServerStore) -> None:
    for number in range(6):
        ended(store, f"b{number}", (number + 2) * HOUR)
    ongoing(store, "waits")
    assert sweep(store, "2") == 4
    assert kept(store) == {"b0", "b1", "waits"}


def test_either_limit_counts_and_without_one_all_are_kept(store: ServerStore) -> None:
    for number in range(6):
        ended(store, f"b{number}", (number + 1) * DAY)
    assert sweep(store, "all") == 0
    assert sweep(store, "36h,4") == 5
    assert kept(store) == {"b0"}


def test_several_of_the_same_moment_are_told_apart_by_their_ids(store: ServerStore) -> None:
    for name in "abcd":
        ended(store, name, 2 * HOUR)
    assert sweep(store, "2") == 2
    assert kept(store) == {"a", "b"}  # the order of lists


def test_the_oldest_go_first_a_batch_at_a_time(store: ServerStore) -> None:
    for number in range(5):
        ended(store, f"b{number}", (number + 40) * DAY)
    assert sweep(store, "30d", limit=2) == 2
    assert kept(store) == {"b0", "b1", "b2"}
    assert [sweep(store, "30d", limit=2) for _ in range(3)] == [2, 1, 0]


def test_what_has_not_ended_is_never_deleted(store: ServerStore) -> None:
    ongoing(store, "running")
    assert store.queue.claim("w", now=NOW, lease_s=60, limit=9) is not None
    ongoing(store, "waits")
    ongoing(store, "pending", status="PENDING")
    assert sweep(store, "0h,0") == 0
    for build_id in ("running", "waits", "pending"):
        with pytest.raises(Conflict, match="has not ended"):
            store.retention.delete("p", build_id, now=NOW)
    assert kept(store) == {"running", "waits", "pending"}


def test_what_ended_a_moment_ago_is_kept_for_its_viewers(store: ServerStore) -> None:
    ended(store, "just", 59 * 60)
    ended(store, "then", 61 * 60)
    assert sweep(store, "0") == 1
    assert kept(store) == {"just"}


def test_the_last_success_of_each_trigger_is_kept(store: ServerStore) -> None:
    for trigger in ("t1", "t2"):
        store.triggers.create("p", "global", {"id": trigger, "name": trigger})
    store.triggers.create("q", "global", {"id": "t1", "name": "t1"})
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


def test_a_build_whose_workspace_is_still_needed_is_kept(store: ServerStore) -> None:
    ended(store, "red", 40 * DAY, "FAILURE")
    ongoing(store, "again", **{FROM_BUILD: "red"})
    assert sweep(store, "0") == 0
    with pytest.raises(Conflict, match="resumes build red"):
        store.retention.delete("p", "red", now=NOW)
    store.builds.request_cancel("p", "again", now=NOW)
    assert sweep(store, "0") == 1


def test_all_of_a_build_goes_with_it_but_messages_that_wait(store: ServerStore) -> None:
    ongoing(store, "b1")
    claimed = store.queue.claim("w", now=NOW, lease_s=60, limit=9)
    assert claimed is not None
    build, lease = claimed
    store.queue.record_plan(lease, b"{}")
    store.queue.record(Lease("b1", lease.fence), {**build.document, "status": "SUCCESS"})
    for key in ("sent", "waits"):
        new = NewMessage(
            key=key, lane=key, kind="http", project_id="p", build_id="b1", target="t", message={}
        )
        message = store.outbox.put(new, now=NOW)
        if key == "sent":
            (taken,) = store.outbox.claim(now=NOW, lease_s=60, limit=1)
            assert taken.id == message.id
            store.outbox.delivered(taken, now=NOW)
    store.retention.delete("p", "b1", now=NOW)
    with pytest.raises(NotFound):
        store.builds.find("b1")
    with pytest.raises(NotFound):
        store.builds.plan("b1")
    assert not store.builds.page("p", filter='tags="t"').builds
    assert [message.key for message in store.outbox.page(project_id="p")] == ["waits"]


def test_a_build_is_deleted_in_its_project_only(store: ServerStore) -> None:
    ended(store, "b1", DAY)
    for project, build_id in (("q", "b1"), ("p", "b2")):
        with pytest.raises(NotFound):
            store.retention.delete(project, build_id, now=NOW)
    store.retention.delete("p", "b1", now=NOW)
    with pytest.raises(NotFound):
        store.retention.delete("p", "b1", now=NOW)


def test_servers_learn_which_builds_were_deleted(store: ServerStore) -> None:
    for number in range(3):
        ended(store, f"b{number}", 40 * DAY)
    store.retention.delete("p", "b0", now=ago(50))
    assert sweep(store, "30d") == 2
    assert set(store.retention.deleted_since(ago(100))) == {"b0", "b1", "b2"}
    assert set(store.retention.deleted_since(ago(49))) == {"b1", "b2"}
    assert store.retention.forget(before=ago(49)) == 1
    assert set(store.retention.deleted_since(ago(100))) == {"b1", "b2"}


def test_the_claim_of_a_spare_job_outlives_its_build_for_a_while(store: ServerStore) -> None:
    """The token of its Pod is valid for an hour after the build."""
    ongoing(store, "b1")
    ongoing(store, "b2")
    scope = ClaimScope(spare="job")
    found = store.queue.claim("w", now=ago(DAY), lease_s=9, limit=9, scope=scope)
    assert found is not None
    store.queue.record(found[1], {**found[0].document, "status": "SUCCESS"})
    store.retention.delete("p", found[0].id, now=ago(DAY))
    assert store.queue.claim("w", now=NOW, lease_s=9, limit=9, scope=scope) is None
    assert store.queue.spare_claim("job") == found[0].id
    store.retention.forget(before=ago(0))
    assert store.queue.spare_claim("job") == ""


def test_the_projects_that_have_builds_are_listed(store: ServerStore) -> None:
    assert store.retention.projects() == []
    for project in ("q", "p", "q", "r-1"):
        ended(store, f"b{len(kept(store, project))}-{project}", DAY, project=project)
    assert store.retention.projects() == ["p", "q", "r-1"]


def test_rules_are_read_as_they_are_written() -> None:
    assert parse_keep_rule("90d") == KeepRule(max_age=timedelta(days=90))
    assert parse_keep_rule("12h,5") == KeepRule(max_age=timedelta(hours=12), max_count=5)
    assert parse_keep_rule("5,2w") == KeepRule(max_age=timedelta(weeks=2), max_count=5)
