"""What every store of a server must do, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from buildrunner.errors import (
    Conflict,
    FilterError,
    LeaseLost,
    NotFound,
    PageTokenError,
    QuotaExceeded,
    StoreError,
)
from buildrunner.identity.keys import IdentityKeys
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.access import AccessToken, AuditEntry, IdentityKey, Session
from buildrunner.store.model.builds import (
    LOST_WORKER,
    WITHOUT_POOL,
    BuildPage,
    ClaimScope,
    Lease,
    NewBuild,
    StoredBuild,
    WaitingBuild,
    WaitReason,
)
from buildrunner.store.sql.access import MOST_SESSIONS
from buildrunner.store.sql.filter import bounded
from buildrunner.store.sql.store import ServerStore, open_store
from tests.fixtures_postgres import PostgresServer, running_postgres

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
LEASE_S = 30.0


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def new_build(
    build_id: str = "",
    *,
    project: str = "p",
    status: str = "QUEUED",
    created: float = 0,
    ttl: float = 3600,
    document: dict[str, Any] | None = None,
    **more: Any,
) -> NewBuild:
    return NewBuild(
        document={
            "id": build_id or str(uuid.uuid4()),
            "projectId": project,
            "status": status,
            "createTime": encode_instant(at(created)),
            **(document or {}),
        },
        request={"steps": [{"name": "busybox"}]},
        expires_at=at(created + ttl),
        **more,
    )


def with_status(build: StoredBuild, status: str, **more: Any) -> dict[str, Any]:
    return {**build.document, "status": status, **more}


def claim(
    store: ServerStore,
    worker: str = "w",
    *,
    limit: int = 100,
    now: datetime = NOW,
    scope: ClaimScope = WITHOUT_POOL,
) -> tuple[StoredBuild, Lease]:
    claimed = store.queue.claim(worker, now=now, lease_s=LEASE_S, limit=limit, scope=scope)
    assert claimed is not None
    return claimed


def end(store: ServerStore, claimed: tuple[StoredBuild, Lease], status: str = "SUCCESS") -> None:
    build, lease = claimed
    store.queue.record(lease, with_status(build, status, finishTime=encode_instant(at(10))))


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of these tests' own."""
    server = running_postgres()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def postgres_template(postgres: PostgresServer) -> str:
    """The name of a database that has its tables: copying it is quicker than making them."""
    address = postgres.make_database()
    open_store(address).close()
    return postgres.name(address)


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has its tables."""
    path: Path = tmp_path_factory.mktemp("template") / "server.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with its tables, and nothing in them."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path)
        return f"sqlite:///{tmp_path}/server.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.make_database(like=request.getfixturevalue("postgres_template"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/server.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.make_database()


@pytest.fixture
def open_another(address: str) -> Iterator[Callable[[], ServerStore]]:
    opened: list[ServerStore] = []

    def another() -> ServerStore:
        store: ServerStore = open_store(address)
        opened.append(store)
        return store

    yield another
    for store in opened:
        store.close()


@pytest.fixture
def store(open_another: Callable[[], ServerStore]) -> ServerStore:
    return open_another()


class TestBuilds:
    def test_what_was_created_is_read_again_whole(self, store: ServerStore) -> None:
        new = new_build(
            "a1",
            document={"steps": [{"name": "ünï", "args": ["\x00", "✔"]}], "tags": ["x", "y", "x"]},
            location="europe-west1",
            priority=3,
            group="g",
            group_limit=2,
            push=False,
            untrusted=True,
            labels={"who": "me"},
        )
        made = store.builds.create(new)
        assert made == store.builds.get("p", "a1") == store.builds.find("a1")
        assert made == StoredBuild(
            document=new.document,
            request=new.request,
            location="europe-west1",
            priority=3,
            group="g",
            group_limit=2,
            push=False,
            untrusted=True,
            labels={"who": "me"},
        )

    def test_an_id_is_given_once_whatever_the_project(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        for project in ("p", "q"):
            with pytest.raises(Conflict, match="a1 exists already"):
                store.builds.create(new_build("a1", project=project))

    def test_half_a_character_is_refused(self, store: ServerStore) -> None:
        with pytest.raises(StoreError, match="half a character"):
            store.builds.create(new_build("a1", document={"tags": ["\ud800"]}))
        with pytest.raises(StoreError, match="half a character"):
            store.builds.create(new_build("a1", labels={"branch": "\ud800"}))

    def test_the_same_request_makes_one_build(self, store: ServerStore) -> None:
        first = store.builds.create(new_build("a1", request_id="r"))
        assert store.builds.create(new_build("a2", request_id="r")) == first
        assert store.builds.create(new_build("a3", project="q", request_id="r")).id == "a3"
        assert store.builds.create(new_build("a4")).id == "a4"
        with pytest.raises(NotFound):
            store.builds.find("a2")

    def test_the_same_request_at_the_same_time_makes_one_build(
        self, open_another: Callable[[], ServerStore]
    ) -> None:
        stores = [open_another() for _ in range(4)]
        made: list[str] = []
        ready = threading.Barrier(len(stores))

        def create(store: ServerStore) -> None:
            ready.wait()
            made.append(store.builds.create(new_build(request_id="r")).id)

        in_threads([partial(create, store) for store in stores])
        assert len(made) == 4
        assert len(set(made)) == 1

    @pytest.mark.parametrize("build_id", ["a", "a1x", "%", "", "a1\0", "'; DROP TABLE builds; --"])
    def test_a_build_that_is_not_there_is_not_found(
        self, store: ServerStore, build_id: str
    ) -> None:
        store.builds.create(new_build("a1"))
        acts: list[Callable[[], object]] = [
            lambda: store.builds.get("p", build_id),
            lambda: store.builds.find(build_id),
            lambda: store.builds.request_cancel("p", build_id, now=NOW),
            lambda: store.builds.plan(build_id),
            lambda: store.queue.why_waiting(build_id, now=NOW, limit=1),
            lambda: store.queue.claim_again(build_id, "w", now=NOW, lease_s=1),
            lambda: store.builds.decide_approval(
                "p", build_id, new_build(build_id).document, approved=True
            ),
        ]
        for act in acts:
            with pytest.raises(NotFound):
                act()

    def test_another_projects_build_is_not_found(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        acts: list[Callable[[], object]] = [
            lambda: store.builds.get("q", "a1"),
            lambda: store.builds.request_cancel("q", "a1", now=NOW),
            lambda: store.builds.decide_approval(
                "q", "a1", new_build("a1").document, approved=True
            ),
        ]
        for act in acts:
            with pytest.raises(NotFound):
                act()
        assert store.builds.get("p", "a1").status == "QUEUED"

    def test_a_build_that_waits_is_cancelled_at_once(self, store: ServerStore) -> None:
        for build_id, status in (("a1", "QUEUED"), ("a2", "PENDING")):
            store.builds.create(new_build(build_id, status=status))
            cancelled = store.builds.request_cancel("p", build_id, now=at(5))
            assert cancelled.status == "CANCELLED"
            assert cancelled.document["finishTime"] == encode_instant(at(5))
            assert store.builds.find(build_id) == cancelled
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None

    def test_a_build_that_runs_is_told_to_cancel_itself(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        build, lease = claim(store)
        store.queue.record(lease, with_status(build, "WORKING"))
        assert store.queue.renew(lease, now=at(1), lease_s=LEASE_S) == ""
        for who in ("ann", "bob"):
            requested = store.builds.request_cancel(
                "p", "a1", now=at(2), reason=f"cancelled by {who}"
            )
            assert (requested.status, requested.cancel_reason) == ("WORKING", "cancelled by ann")
        assert store.queue.renew(lease, now=at(3), lease_s=LEASE_S) == "cancelled by ann"

    def test_a_build_that_ended_can_not_be_cancelled(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        end(store, claim(store))
        with pytest.raises(Conflict, match="ended already, with status SUCCESS"):
            store.builds.request_cancel("p", "a1", now=NOW)

    def test_a_plan_is_kept_and_replaced(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        assert store.builds.plan("a1") is None
        _, lease = claim(store)
        for plan in (b'{"steps": []}', b"{}"):
            store.queue.record_plan(lease, plan)
            assert store.builds.plan("a1") == plan

    def test_ended_builds_come_oldest_first(self, store: ServerStore) -> None:
        for number in (2, 0, 1):
            done = {"finishTime": encode_instant(at(number))}
            store.builds.create(new_build(f"a{number}", status="SUCCESS", document=done))
        assert store.builds.ended_before(at(100)) == ["a0", "a1", "a2"]
        assert store.builds.ended_before(at(100), limit=2) == ["a0", "a1"]


class TestApproval:
    def test_an_approved_build_is_queued(self, store: ServerStore) -> None:
        made = store.builds.create(new_build("a1", status="PENDING", ttl=10))
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None
        assert store.queue.expire(now=at(1000)) == []
        queued = store.builds.decide_approval(
            "p", "a1", with_status(made, "QUEUED"), approved=True, expires_at=at(1010)
        )
        assert queued.status == "QUEUED"
        assert store.queue.expire(now=at(1000)) == []
        assert claim(store)[0].id == "a1"

    def test_a_rejected_build_has_ended(self, store: ServerStore) -> None:
        made = store.builds.create(new_build("a1", status="PENDING"))
        rejected = with_status(made, "CANCELLED", statusDetail="no")
        assert (
            store.builds.decide_approval("p", "a1", rejected, approved=False).status == "CANCELLED"
        )
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None
        with pytest.raises(Conflict, match="waits for no approval: it is CANCELLED"):
            store.builds.decide_approval("p", "a1", with_status(made, "QUEUED"), approved=True)

    def test_an_approval_has_one_of_two_outcomes(self, store: ServerStore) -> None:
        made = store.builds.create(new_build("a1", status="PENDING"))
        for approved, status in ((True, "CANCELLED"), (False, "QUEUED"), (True, "WORKING")):
            with pytest.raises(StoreError):
                store.builds.decide_approval(
                    "p", "a1", with_status(made, status), approved=approved
                )


class TestRefused:
    def test_a_build_that_can_not_run_has_ended_as_it_comes(self, store: ServerStore) -> None:
        why = {"statusDetail": "no", "finishTime": encode_instant(NOW)}
        store.builds.create(new_build("a1", status="FAILURE", document=why, request_id="r"))
        assert store.builds.create(new_build("a2", request_id="r")).id == "a1"
        assert store.queue.length() == 0
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None
        assert store.queue.expire(now=at(10_000)) == []
        assert store.builds.ended_before(at(1)) == ["a1"]
        with pytest.raises(Conflict, match="has ended already, with status FAILURE"):
            store.builds.request_cancel("p", "a1", now=NOW)


class TestQueue:
    def test_builds_of_forks_take_no_room_of_the_projects_own_and_have_a_limit_too(
        self, store: ServerStore
    ) -> None:
        for number in range(2):
            store.builds.create(new_build(f"f{number}", untrusted=True), most_waiting=2)
        with pytest.raises(QuotaExceeded, match="2 builds of forks of project p wait in the queue"):
            store.builds.create(new_build("f2", untrusted=True), most_waiting=2)
        for number in range(2):
            store.builds.create(new_build(f"o{number}"), most_waiting=2)
        store.builds.create(new_build("pending", status="PENDING"), most_waiting=2)
        with pytest.raises(QuotaExceeded, match="2 builds of project p wait in the queue"):
            store.builds.create(new_build("o2"), most_waiting=2)
        assert store.builds.create(new_build("o2")).id == "o2"  # refused ones left nothing

    def test_untrusted_builds_wait_where_only_trusted_ones_may_run(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a1", untrusted=True))
        store.builds.create(new_build("a2", created=1))
        taken = store.queue.claim(
            "w", now=NOW, lease_s=1, limit=9, scope=ClaimScope(trusted_only=True)
        )
        assert taken is not None
        assert taken[0].id == "a2"
        assert (
            store.queue.claim("w", now=NOW, lease_s=1, limit=9, scope=ClaimScope(trusted_only=True))
            is None
        )
        assert claim(store)[0].id == "a1"

    def test_a_spare_job_claims_one_build_ever(self, store: ServerStore) -> None:
        def claimed(job: str, build_id: str) -> bool:
            scope = ClaimScope(build_id=build_id, spare=job)
            worker = f"worker:pod:{uuid.uuid4()}/host"
            return store.queue.claim(worker, now=NOW, lease_s=9, limit=9, scope=scope) is not None

        for build_id in ("a1", "a2", "a3"):
            store.builds.create(new_build(build_id))
        assert store.queue.spare_claim("one") == ""
        assert claimed("one", "a1")
        assert not claimed("one", "a2")
        assert not claimed("two", "a1")
        assert claimed("two", "a2")
        assert store.queue.spare_claim("one") == "a1"
        assert store.queue.spare_claims(["one", "two", "three"]) == {"one": "a1", "two": "a2"}

    def test_the_oldest_of_the_highest_priority_comes_first(self, store: ServerStore) -> None:
        for build_id, created, priority in (
            ("low", 0, -1),
            ("late", 2, 0),
            ("early", 1, 0),
            ("urgent", 3, 5),
            ("also-early", 1, 0),
        ):
            store.builds.create(new_build(build_id, created=created, priority=priority))
        order = [claim(store)[0].id for _ in range(5)]
        assert order == ["urgent", "also-early", "early", "late", "low"]
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None

    def test_projects_take_turns_whatever_the_priority_and_number_of_their_builds(
        self, store: ServerStore
    ) -> None:
        for number in range(5):
            store.builds.create(new_build(f"many{number}", created=number, priority=1000))
        store.builds.create(new_build("few0", project="q", created=8, priority=-1000))
        store.builds.create(new_build("few1", project="q", created=9))
        store.builds.create(new_build("one", project="r", created=9))
        waiting = ["many0", "few1", "one", "many1", "few0", "many2", "many3", "many4"]
        for place, build_id in enumerate(waiting, start=1):
            reason = store.queue.why_waiting(build_id, now=NOW, limit=9)
            assert reason is not None
            assert reason.position == place
        # One place: whoever was claimed last comes last, though nothing else runs.
        order = []
        for _ in range(5):
            claimed = claim(store)
            order.append(claimed[0].id)
            end(store, claimed)
        assert order == ["many0", "few1", "one", "many1", "few0"]
        # Several places: whoever has the fewest comes first.
        first = claim(store)
        store.builds.create(new_build("few2", project="q", created=10))
        store.builds.create(new_build("few3", project="q", created=11))
        assert [first[0].id, *(claim(store)[0].id for _ in range(4))] == [
            "many2", "few2", "many3", "few3", "many4"
        ]  # fmt: skip

    def test_a_build_is_kept_for_the_worker_that_has_its_source(self, store: ServerStore) -> None:
        store.builds.create(new_build("here", only_worker="w1", created=0))
        store.builds.create(new_build("anywhere", created=1))
        claimed = store.queue.claim("w2", now=at(10), lease_s=60, limit=9)
        assert claimed is not None
        assert claimed[0].id == "anywhere"
        assert store.queue.claim("w2", now=at(10), lease_s=60, limit=9) is None
        claimed = store.queue.claim("w1", now=at(10), lease_s=60, limit=9)
        assert claimed is not None
        assert (claimed[0].id, claimed[0].only_worker) == ("here", "w1")

    def test_a_worker_of_a_pool_claims_the_builds_of_its_pool_alone(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a1", pool="arm"))
        store.builds.create(new_build("a2", created=1))

        def claimed(**scope: Any) -> str:
            found = store.queue.claim("w", now=NOW, lease_s=1, limit=9, scope=ClaimScope(**scope))
            return found[0].id if found else ""

        assert claimed(pool="x86") == ""
        assert store.queue.why_waiting("a1", now=NOW, limit=1) == WaitReason(
            kind="pool", text="It waits for a worker of the pool arm.", position=1
        )
        assert claimed(pool="arm") == "a1"
        assert claimed(pool="arm") == ""
        assert claimed() == "a2"

    def test_a_claim_is_for_the_projects_and_the_build_that_it_names(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a1"))
        store.builds.create(new_build("a2", created=1))
        store.builds.create(new_build("b1", project="q", created=2, only_worker="server"))

        def claimed(**scope: Any) -> str:
            found = store.queue.claim("w", now=NOW, lease_s=1, limit=9, scope=ClaimScope(**scope))
            return found[0].id if found else ""

        assert claimed(build_id="a2", projects=("q",)) == ""
        assert claimed(build_id="a2", projects=("p",)) == "a2"
        assert claimed(build_id="a2") == ""
        assert claimed(projects=("q",)) == ""
        assert claimed(projects=("q",), servers=("server",)) == "b1"

    def test_a_claim_is_written_down(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        build, lease = claim(store, "w1", now=at(1))
        assert (build.status, build.worker, build.process) == ("QUEUED", "w1", "")
        assert (build.lease_until, build.attempts) == (at(1 + LEASE_S), 1)
        assert lease == Lease("a1", build.fence)
        store.queue.set_process(lease, "12:34")
        assert store.builds.find("a1").process == "12:34"
        store.queue.renew(lease, now=at(9), lease_s=LEASE_S)
        assert store.builds.find("a1").lease_until == at(9 + LEASE_S)

    def test_the_server_runs_no_more_than_its_limit(self, store: ServerStore) -> None:
        for _ in range(4):
            store.builds.create(new_build())
        first = claim(store, "w1", limit=2)
        claim(store, "w1", limit=2)
        assert store.queue.claim("w1", now=NOW, lease_s=1, limit=2) is None
        claim(store, "w2", limit=2)  # another server has a limit of its own
        end(store, first)
        claim(store, "w1", limit=2)

    def test_a_full_group_lets_others_pass(self, store: ServerStore) -> None:
        for number in range(3):
            more: dict[str, Any] = {"group": "g", "group_limit": 1}
            store.builds.create(new_build(f"g{number}", created=number, **more))
        store.builds.create(
            new_build("other-project", project="q", created=8, group="g", group_limit=1)
        )
        store.builds.create(new_build("free", created=9))
        first = claim(store)
        assert [first[0].id, claim(store)[0].id, claim(store)[0].id] == [
            "g0",
            "other-project",
            "free",
        ]
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None
        end(store, first, "FAILURE")
        assert claim(store)[0].id == "g1"
        assert store.queue.claim("w", now=NOW, lease_s=1, limit=9) is None

    def test_the_newest_build_supersedes_those_that_wait(self, store: ServerStore) -> None:
        group: dict[str, Any] = {"group": "g", "supersede": "cancel_queued"}
        store.builds.create(new_build("running", **group))
        running = claim(store)
        store.builds.create(new_build("waiting", **group))
        store.builds.create(new_build("elsewhere", project="q", group="g"))
        store.builds.create(new_build("newest", created=5, **group))
        waiting = store.builds.find("waiting")
        assert waiting.status == "CANCELLED"
        assert waiting.document["statusDetail"] == "superseded by build newest"
        assert waiting.document["finishTime"] == encode_instant(at(5))
        assert store.builds.find("elsewhere").status == "QUEUED"
        assert store.queue.renew(running[1], now=NOW, lease_s=LEASE_S) == ""

    def test_the_newest_build_supersedes_those_that_run_too(self, store: ServerStore) -> None:
        group: dict[str, Any] = {"group": "g", "supersede": "cancel_all"}
        store.builds.create(new_build("running", **group))
        running = claim(store)
        store.builds.create(new_build("newest", **group))
        wanted = store.queue.renew(running[1], now=NOW, lease_s=LEASE_S)
        assert wanted == "superseded by build newest"

    def test_builds_that_waited_too_long_expire(self, store: ServerStore) -> None:
        store.builds.create(new_build("short", ttl=10))
        store.builds.create(new_build("long", ttl=100))
        store.builds.create(new_build("claimed", created=-1, ttl=2))
        claim(store)
        assert store.queue.expire(now=at(9)) == []
        assert store.queue.expire(now=at(10)) == ["short"]
        assert store.queue.expire(now=at(10)) == []
        expired = store.builds.find("short")
        assert expired.status == "EXPIRED"
        assert expired.document["finishTime"] == encode_instant(at(10))
        assert store.builds.find("claimed").status == "QUEUED"
        assert claim(store)[0].id == "long"

    def test_the_queue_is_as_long_as_what_waits_in_it(self, store: ServerStore) -> None:
        for status in ("QUEUED", "QUEUED", "PENDING", "QUEUED"):
            store.builds.create(new_build(status=status))
        claim(store)
        assert store.queue.length() == 2

    def test_claimed_builds_are_those_that_somebody_runs(self, store: ServerStore) -> None:
        for number in range(4):
            store.builds.create(new_build(f"a{number}", created=number))
        end(store, claim(store, "w1"))
        claim(store, "w1")
        claim(store, "w2")
        assert [build.id for build in store.queue.claimed("w1")] == ["a1"]
        assert {build.id for build in store.queue.claimed()} == {"a1", "a2"}
        assert store.queue.claimed("w3") == []


class TestLease:
    def test_a_new_holder_shuts_out_the_old_one(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        build, old = claim(store, "w1")
        again, lease = store.queue.claim_again("a1", "w2", now=at(5), lease_s=LEASE_S)
        assert lease.fence > old.fence
        assert (again.worker, again.process, again.attempts) == ("w2", "", 2)
        for act in (
            lambda: store.queue.renew(old, now=at(6), lease_s=LEASE_S),
            lambda: store.queue.record(old, with_status(build, "SUCCESS")),
            lambda: store.queue.record_plan(old, b"{}"),
            lambda: store.queue.set_process(old, "1:2"),
        ):
            with pytest.raises(LeaseLost):
                act()
        store.queue.record(lease, with_status(build, "WORKING"))
        assert store.builds.plan("a1") is None

    def test_one_process_begins_a_build_under_a_lease(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        _, lease = claim(store)
        store.queue.set_process(lease, "12:34")
        store.queue.set_process(lease, "12:34")
        with pytest.raises(LeaseLost, match="another process runs build a1"):
            store.queue.set_process(lease, "56:78")
        _, later = store.queue.claim_again("a1", "w", now=NOW, lease_s=LEASE_S)
        store.queue.set_process(later, "56:78")

    def test_a_build_of_a_lost_worker_waits_again_as_long_as_at_first(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a1", ttl=60))
        build, lease = claim(store)
        pulling = {"name": "busybox", "status": "WORKING"}
        times = {"timing": {"startTime": encode_instant(at(1))}}
        times |= {"pullTiming": times["timing"]}
        working = with_status(build, "WORKING", startTime=encode_instant(at(1)))
        store.queue.record(lease, {**working, "steps": [{**pulling, **times}]})
        with pytest.raises(Conflict, match="another worker has it"):
            store.queue.run_again("a1", instead_of=lease.fence + 1, now=at(100), reason="gone")
        again = store.queue.run_again("a1", instead_of=lease.fence, now=at(100), reason="gone")
        assert again.status == "QUEUED"
        assert "startTime" not in again.document
        assert again.document["steps"] == [{**pulling, "status": "QUEUED"}]
        assert again.labels[LOST_WORKER] == "gone"
        with pytest.raises(LeaseLost):
            store.queue.record(lease, with_status(build, "SUCCESS"))
        assert store.queue.expire(now=at(159)) == []
        later, second = claim(store)
        assert (later.id, later.attempts) == ("a1", 1)
        assert second.fence > lease.fence

    def test_the_server_that_claims_a_build_again_has_its_log(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        remote = "worker:w1/host"
        _, lease = claim(store, remote, scope=ClaimScope(servers=("first",)))
        assert store.servers.log_home("a1") == "first"
        store.queue.run_again("a1", instead_of=lease.fence, now=at(1), reason="gone")
        assert store.servers.log_home("a1") == ""
        _, lease = claim(store, remote, scope=ClaimScope(servers=("second",)))
        assert store.servers.log_home("a1") == "second"
        store.builds.request_cancel("p", "a1", now=NOW, reason="cancelled by ann")
        store.queue.run_again("a1", instead_of=lease.fence, now=at(2), reason="gone")
        assert store.servers.log_home("a1") == "second"  # nobody claims it any more

    def test_the_log_of_a_build_is_where_its_files_are(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1", only_worker="second"))
        claim(store, "worker:w1/host", scope=ClaimScope(servers=("first", "second")))
        assert store.servers.log_home("a1") == "second"

    def test_claims_that_nobody_began_are_counted(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        for attempt in (1, 2, 3):
            build, lease = claim(store)
            assert build.attempts == attempt
            store.queue.run_again("a1", instead_of=lease.fence, now=at(1), reason="")

    def test_a_build_that_goes_on_with_a_kept_workspace_is_for_its_server_and_the_workers_of_it(
        self, store: ServerStore
    ) -> None:
        store.builds.create(
            new_build("a1", only_worker="server", labels={"from_build": "a0", "from_step": "1"})
        )
        for name, of in (("w1", "w1"), ("worker:w1/host", "another"), ("worker:w1/server", "")):
            found = store.queue.claim(
                name, now=NOW, lease_s=LEASE_S, limit=9, scope=ClaimScope(servers=(of,))
            )
            assert found is None
        scope = ClaimScope(servers=("server",))
        found = store.queue.claim("worker:w1/host", now=NOW, lease_s=LEASE_S, limit=9, scope=scope)
        assert found is not None
        assert found[0].id == "a1"

    def test_a_build_of_a_lost_worker_that_somebody_cancelled_is_cancelled(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a1"))
        _, lease = claim(store)
        store.builds.request_cancel("p", "a1", now=NOW, reason="cancelled by ann")
        again = store.queue.run_again("a1", instead_of=lease.fence, now=at(1), reason="gone")
        assert again.status == "CANCELLED"
        assert again.document["statusDetail"] == "cancelled by ann before it began"
        assert store.queue.length() == store.queue.running() == 0

    def test_fences_rise_over_all_builds(self, store: ServerStore) -> None:
        for _ in range(3):
            store.builds.create(new_build())
        fences = [claim(store)[1].fence for _ in range(3)]
        assert fences == sorted(set(fences))
        assert fences[0] > 0

    def test_of_two_who_saw_it_dead_one_takes_it_over(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        _, dead = claim(store, "w1")
        again: dict[str, Any] = {"now": NOW, "lease_s": LEASE_S, "instead_of": dead.fence}
        store.queue.claim_again("a1", "w2", **again)
        with pytest.raises(Conflict, match="taken over"):
            store.queue.claim_again("a1", "w3", **again)

    def test_only_a_claimed_build_is_claimed_again(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        with pytest.raises(Conflict, match="never claimed"):
            store.queue.claim_again("a1", "w", now=NOW, lease_s=1)
        end(store, claim(store))
        with pytest.raises(Conflict, match="ended already, with status SUCCESS"):
            store.queue.claim_again("a1", "w", now=NOW, lease_s=1)

    def test_a_final_status_ends_the_lease(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        build, lease = claim(store)
        store.queue.set_process(lease, "12:34")
        end(store, (build, lease))
        ended = store.builds.find("a1")
        assert (ended.worker, ended.process, ended.lease_until) == ("", "", None)
        with pytest.raises(Conflict, match="ended already, with status SUCCESS"):
            store.queue.record(lease, with_status(build, "FAILURE"))
        for act in (
            lambda: store.queue.renew(lease, now=NOW, lease_s=1),
            lambda: store.queue.record_plan(lease, b"{}"),
            lambda: store.queue.set_process(lease, "1:2"),
        ):
            with pytest.raises(LeaseLost):
                act()
        assert store.builds.find("a1") == ended

    def test_a_lease_writes_its_own_build_only(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        other = store.builds.create(new_build("a2", created=1))
        _, lease = claim(store)
        with pytest.raises(StoreError):
            store.queue.record(lease, with_status(other, "SUCCESS"))
        with pytest.raises(LeaseLost):
            store.queue.record(Lease("nothing", lease.fence), {**other.document, "id": "nothing"})
        assert store.builds.find("a2") == other

    @pytest.mark.parametrize("field", ["projectId", "buildTriggerId"])
    def test_a_lease_changes_neither_project_nor_trigger(
        self, store: ServerStore, field: str
    ) -> None:
        store.builds.create(new_build("a1"))
        build, lease = claim(store)
        with pytest.raises(StoreError, match="of another project or trigger than this document"):
            store.queue.record(lease, with_status(build, "WORKING", **{field: "another"}))
        assert store.builds.find("a1").document == build.document

    def test_a_document_that_is_none_is_refused(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        build, lease = claim(store)
        for broken in ({"id": "a1"}, with_status(build, "WORKING", createTime="yesterday")):
            with pytest.raises(StoreError, match="not the document of a build"):
                store.queue.record(lease, broken)
        assert store.builds.find("a1").document == build.document


class TestWaiting:
    def test_an_approval_is_waited_for(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1", status="PENDING"))
        reason = store.queue.why_waiting("a1", now=NOW, limit=1)
        assert reason is not None
        assert (reason.kind, reason.position, reason.ahead) == ("approval", 0, ())

    def test_a_build_that_has_begun_waits_for_nothing(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        claimed = claim(store)
        assert store.queue.why_waiting("a1", now=NOW, limit=1) is None
        end(store, claimed)
        assert store.queue.why_waiting("a1", now=NOW, limit=1) is None

    def test_the_server_is_full(self, store: ServerStore) -> None:
        for number in range(14):
            store.builds.create(new_build(f"a{number:02}", created=number))
        for _ in range(2):
            claim(store)
        reason = store.queue.why_waiting("a13", now=NOW, limit=2)
        assert reason is not None
        assert (reason.kind, reason.position) == ("server_limit", 12)
        assert reason.ahead == tuple(f"a{number:02}" for number in range(10))
        assert "2 builds run" in reason.text

    def test_the_group_is_full(self, store: ServerStore) -> None:
        for number in range(3):
            more: dict[str, Any] = {"group": "g", "group_limit": 1}
            store.builds.create(new_build(f"a{number}", created=number, **more))
        store.builds.create(new_build("b", created=-1))
        store.builds.create(new_build("c", created=1.5, priority=1))
        assert claim(store)[0].id == "c"
        assert claim(store)[0].id == "b"
        claim(store)
        reason = store.queue.why_waiting("a2", now=NOW, limit=9)
        assert reason is not None
        assert (reason.kind, reason.ahead, reason.position) == ("group_limit", ("a0", "a1"), 2)
        assert reason.text.startswith('1 build of group "g" runs, and no more than 1 may')

    def test_the_group_of_a_trigger_needs_no_name(self, store: ServerStore) -> None:
        for number in range(2):
            more: dict[str, Any] = {"group": "trigger:0d4b78c2", "group_limit": 1}
            store.builds.create(new_build(f"a{number}", created=number, **more))
        claim(store)
        reason = store.queue.why_waiting("a1", now=NOW, limit=9)
        assert reason is not None
        assert reason.text.startswith("1 build of this trigger runs, and no more than 1 may")

    def test_it_is_simply_next(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        store.builds.create(new_build("a2", created=1))
        first, second = (store.queue.why_waiting(one, now=NOW, limit=2) for one in ("a1", "a2"))
        assert first is not None
        assert second is not None
        assert (first.kind, first.position, first.ahead) == ("turn", 1, ())
        assert (second.kind, second.position, second.ahead) == ("turn", 2, ("a1",))

    def test_nobody_takes_builds(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1"))
        reason = store.queue.why_waiting("a1", now=NOW, limit=0)
        assert reason is not None
        assert (reason.kind, reason.position) == ("no_worker", 1)
        assert "waits for a worker on another machine" in reason.text

    def test_builds_of_other_workers_do_not_fill_the_server(self, store: ServerStore) -> None:
        for build_id in ("a1", "a2", "a3"):
            store.builds.create(new_build(build_id))
        store.queue.claim("worker:w1/host", now=NOW, lease_s=30, limit=1)
        why = partial(store.queue.why_waiting, "a3", now=NOW, limit=1, worker="server")
        assert why().kind == "turn"
        store.queue.claim("server", now=NOW, lease_s=30, limit=1)
        assert (why().kind, why().ahead) == ("server_limit", ("a2",))

    def test_builds_of_other_projects_are_counted_and_not_named(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1", project="secret"))
        claim(store)
        store.builds.create(new_build("a2"))
        reason = store.queue.why_waiting("a2", now=NOW, limit=1)
        assert reason is not None
        assert (reason.kind, reason.ahead) == ("server_limit", ())
        assert reason.text.startswith("1 build runs")

    def test_the_builds_of_pools_wait_in_the_order_of_the_queue(self, store: ServerStore) -> None:
        for name, pool, facts in (
            ("a1", "arm", {"group": "g", "group_limit": 2}),
            ("a2", "arm", {"priority": 5}),
            ("a3", "x86", {}),
            ("a4", "", {}),
        ):
            store.builds.create(new_build(name, created=int(name[1]), pool=pool, **facts))
        assert store.queue.waiting_in(["arm"]) == [
            WaitingBuild(id="a2", project="p", pool="arm", create_time=at(2)),
            WaitingBuild(
                id="a1", project="p", pool="arm", group="g", group_limit=2, create_time=at(1)
            ),
        ]
        store.queue.claim("w", now=NOW, lease_s=9, limit=9, scope=ClaimScope(pool="arm"))
        assert [one.id for one in store.queue.waiting_in(["arm", "x86"])] == ["a1", "a3"]
        (claimed,) = store.queue.claimed()
        assert (claimed.pool, claimed.group) == ("arm", "")

    def test_many_builds_of_one_project_hide_no_other_from_the_pools(
        self, store: ServerStore
    ) -> None:
        """Issue: a thousand builds of one project were all that the provisioner saw."""
        for number in range(130):
            facts = {"priority": 9, "pool": "arm", "created": number}
            store.builds.create(new_build(f"a{number:03}", project="a", **facts))
        for name, pool in (("b1", "arm"), ("b2", "arm"), ("b3", "x86")):
            facts = {"pool": pool, "created": 200 + int(name[1])}
            store.builds.create(new_build(name, project="b", **facts))
        found = [one.id for one in store.queue.waiting_in(["arm", "x86"])]
        assert found[:6] == ["a000", "b1", "b3", "a001", "b2", "a002"]
        assert len(found) == 100 + 3
        store.queue.claim("w", now=NOW, lease_s=9, limit=9, scope=ClaimScope(pool="arm"))
        turns = [one.id for one in store.queue.waiting_in(["arm"])]
        assert turns[:3] == ["b1", "a001", "b2"]
        ids = {"a129", "b3", "a000"}
        assert [one.id for one in store.queue.waiting_in(["arm"], ids)] == ["a129"]

    def test_builds_that_can_not_start_hide_no_other_of_their_project(
        self, store: ServerStore
    ) -> None:
        facts: dict[str, Any]
        for number in range(120):
            facts = {"group": "g", "group_limit": 1} if number < 40 else {"untrusted": True}
            facts = {} if number >= 80 else facts
            store.builds.create(new_build(f"a{number:03}", pool="arm", created=number, **facts))
        store.builds.create(new_build("last", pool="arm", created=200))
        resting = [f"a{number:03}" for number in range(80, 120)]
        found = store.queue.waiting_in(["arm"], no_forks=["arm"], resting=resting)
        assert [one.id for one in found][:3] == ["a000", "last", "a001"]
        assert len(found) == 100

    def test_a_noted_reason_is_why_a_build_of_a_pool_waits(self, store: ServerStore) -> None:
        store.builds.create(new_build("a1", pool="arm", labels={"team": "a"}))
        store.queue.note_waits({"a1": "No node."})
        reason = store.queue.why_waiting("a1", now=NOW, limit=9)
        assert reason is not None
        assert (reason.kind, reason.text) == ("pool", "No node.")
        assert [one.waits_for for one in store.queue.waiting_in(["arm"])] == ["No node."]
        assert store.builds.find("a1").labels == {"team": "a", "waits_for": "No node."}
        store.queue.claim("w", now=NOW, lease_s=9, limit=9, scope=ClaimScope(pool="arm"))
        store.queue.note_waits({"a1": "Late.", "nobody": "Late."})
        store.queue.note_waits({})
        assert store.builds.find("a1").labels["waits_for"] == "No node."


def ids(page: BuildPage) -> list[str]:
    return [build.id for build in page.builds]


class TestLists:
    def test_the_newest_come_first_then_by_id(self, store: ServerStore) -> None:
        for build_id, created in (("b", 1), ("c", 2), ("a", 1), ("d", 0.000001)):
            store.builds.create(new_build(build_id, created=created))
        store.builds.create(new_build("x", project="q"))
        page = store.builds.page("p")
        assert ids(page) == ["c", "a", "b", "d"]
        assert page.next_page_token == ""
        assert ids(store.builds.page("nowhere")) == []

    def test_a_location_lists_its_own(self, store: ServerStore) -> None:
        store.builds.create(new_build("a"))
        store.builds.create(new_build("b", location="europe-west1"))
        assert ids(store.builds.page("p", location="global")) == ["a"]
        assert ids(store.builds.page("p", location="europe-west1")) == ["b"]
        assert ids(store.builds.page("p")) == ["a", "b"]

    @pytest.mark.parametrize("filter", ["", 'tags="t"', 'images="i" OR status="WORKING"'])
    @pytest.mark.parametrize("page_size", [1, 2, 3, 7, 100])
    def test_pages_hold_each_build_once(
        self, store: ServerStore, filter: str, page_size: int
    ) -> None:
        document = {"tags": ["t"], "images": ["h", "i"]}
        for number in range(7):
            store.builds.create(new_build(f"a{number}", created=number // 2, document=document))
        seen: list[str] = []
        token = ""
        while True:
            page = store.builds.page("p", filter=filter, page_size=page_size, page_token=token)
            assert len(page.builds) <= page_size
            seen += ids(page)
            token = page.next_page_token
            # A build that is made meanwhile belongs before the first page.
            store.builds.create(new_build(created=100, document=document))
            if not token:
                break
        assert seen == ["a6", "a4", "a5", "a2", "a3", "a0", "a1"]

    def test_no_page_holds_more_than_a_thousand(self, store: ServerStore) -> None:
        assert bounded(10**9) == 1000
        assert bounded(0) == bounded(-3) == 50
        for number in range(51):
            store.builds.create(new_build(f"a{number}"))
        assert len(store.builds.page("p", page_size=0).builds) == 50
        assert len(store.builds.page("p", page_size=10**9).builds) == 51

    def test_a_page_token_is_good_for_its_list_only(self, store: ServerStore) -> None:
        for number in range(3):
            store.builds.create(new_build(f"a{number}", location="here"))
        token = store.builds.page("p", page_size=1).next_page_token
        assert token
        assert len(store.builds.page("p", page_size=2, page_token=token).builds) == 2
        lists: list[dict[str, Any]] = [
            {"project_id": "q"},
            {"project_id": "p", "location": "here"},
            {"project_id": "p", "location": "-"},
            {"project_id": "p", "filter": 'status="QUEUED"'},
        ]
        for other in lists:
            with pytest.raises(PageTokenError, match="not one of this list"):
                store.builds.page(**other, page_token=token)
        with pytest.raises(PageTokenError):
            store.triggers.page("p", page_token=token)

    def test_a_page_token_survives_the_servers_restart(
        self, open_another: Callable[[], ServerStore]
    ) -> None:
        first = open_another()
        for number in range(2):
            first.builds.create(new_build(f"a{number}"))
        token = first.builds.page("p", page_size=1).next_page_token
        first.close()
        assert ids(open_another().builds.page("p", page_token=token)) == ["a1"]

    def test_made_up_page_tokens_are_refused(self, store: ServerStore) -> None:
        for number in range(2):
            store.builds.create(new_build(f"a{number}"))
        token = store.builds.page("p", page_size=1).next_page_token
        changed = [
            token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            for place in range(len(token))
        ]
        others = [token[:-1], token + "A", token + "!", token + "=", "x", "é", "1" * 9999]
        for forged in changed + others:
            with pytest.raises(PageTokenError):
                store.builds.page("p", page_token=forged)

    @pytest.mark.parametrize(
        ("filter", "position"),
        [("status=", 7), ('staus="SUCCESS"', 0), ('status="success"', 7), ("a\0b", 0)],
    )
    def test_a_wrong_filter_is_refused_with_its_place(
        self, store: ServerStore, filter: str, position: int
    ) -> None:
        with pytest.raises(FilterError) as refused:
            store.builds.page("p", filter=filter)
        assert refused.value.position == position

    def test_tags_are_found_as_they_are_now(self, store: ServerStore) -> None:
        store.builds.create(new_build("a", document={"tags": ["$_OLD", "both"]}))
        build, lease = claim(store)
        store.queue.record(lease, with_status(build, "WORKING", tags=["new", "both"]))
        found = {
            tag: ids(store.builds.page("p", filter=f'tags="{tag}"'))
            for tag in ("$_OLD", "both", "new")
        }
        assert found == {"$_OLD": [], "both": ["a"], "new": ["a"]}

    @pytest.mark.parametrize("filter", ["", "images=wanted"], ids=["all", "search"])
    def test_a_page_of_large_builds_ends_early_and_the_next_one_goes_on(
        self, store: ServerStore, monkeypatch: pytest.MonkeyPatch, filter: str
    ) -> None:
        monkeypatch.setattr("buildrunner.store.sql.builds._LONGEST_S", 60.0)  # sizes alone end it
        large = {"images": ["wanted"], "statusDetail": "x" * (7 << 20)}
        for number in range(5):
            store.builds.create(new_build(f"a{number}", created=number, document=large))
        pages: list[list[str]] = []
        token = ""
        while token or not pages:
            page = store.builds.page("p", filter=filter, page_size=4, page_token=token)
            pages.append(ids(page))
            token = page.next_page_token
        assert pages == [["a4", "a3"], ["a2", "a1"], ["a0"]]

    def test_a_search_without_an_index_reads_a_bounded_number(self, store: ServerStore) -> None:
        for number in range(20):
            image = "wanted" if number in (2, 19) else "other"
            store.builds.create(
                new_build(f"a{number}", created=number, document={"images": [image]})
            )
        pages: list[list[str]] = []
        token = ""
        while token or not pages:
            page = store.builds.page("p", filter="images=wanted", page_token=token, look_at=6)
            pages.append(ids(page))
            token = page.next_page_token
        assert pages == [["a19"], [], ["a2"], []]


class TestAttempts:
    def test_the_first_try_knows_all_later_ones(self, store: ServerStore) -> None:
        store.builds.create(new_build("a", labels={"submitter": "mona"}))
        store.builds.create(new_build("b", attempt_of="a"))
        store.builds.create(new_build("c", attempt_of="a"))
        labels = {"submitter": "mona", "attempts": "b c"}
        assert store.builds.get("p", "a").labels == labels
        assert store.builds.get("p", "b").labels == {}

    def test_a_first_try_that_is_gone_is_nobodys_trouble(self, store: ServerStore) -> None:
        assert store.builds.create(new_build("b", attempt_of="a")).id == "b"


class TestTriggers:
    def test_a_trigger_is_found_by_id_and_by_name(self, store: ServerStore) -> None:
        document = {"id": "t1", "name": "on-push", "createTime": "then", "tags": ["x"]}
        assert store.triggers.create("p", "global", document) == document
        assert store.triggers.get("p", "t1") == store.triggers.get("p", "on-push") == document
        for project, name in (("q", "t1"), ("p", "on"), ("p", "")):
            with pytest.raises(NotFound):
                store.triggers.get(project, name)

    def test_an_id_wins_over_a_name(self, store: ServerStore) -> None:
        store.triggers.create("p", "global", {"id": "t1", "name": "t2"})
        store.triggers.create("p", "global", {"id": "t2", "name": "other"})
        assert store.triggers.get("p", "t2")["name"] == "other"

    def test_a_name_is_given_once_a_project(self, store: ServerStore) -> None:
        store.triggers.create("p", "global", {"id": "t1", "name": "on-push"})
        store.triggers.create("q", "global", {"id": "t1", "name": "on-push"})
        store.triggers.create("p", "global", {"id": "t3", "name": "other"})
        with pytest.raises(Conflict, match='"on-push" exists already'):
            store.triggers.create("p", "europe-west1", {"id": "t2", "name": "on-push"})
        with pytest.raises(Conflict, match='"on-push" exists already'):
            store.triggers.replace("p", "t3", {"id": "t3", "name": "on-push"})
        assert store.triggers.get("p", "t3")["name"] == "other"

    def test_a_replacement_keeps_what_the_server_gave(self, store: ServerStore) -> None:
        store.triggers.create(
            "p", "global", {"id": "t1", "name": "a", "createTime": "then", "x": 1}
        )
        replaced = store.triggers.replace("p", "a", {"name": "b", "id": "t9"})
        assert replaced == {"name": "b", "id": "t1", "createTime": "then"}
        assert store.triggers.get("p", "b") == store.triggers.get("p", "t1") == replaced
        for name in ("a", "t9"):
            with pytest.raises(NotFound):
                store.triggers.replace("p", name, {})

    def test_a_replacement_of_what_somebody_changed_meanwhile_is_none(
        self, store: ServerStore
    ) -> None:
        first = store.triggers.create("p", "global", {"id": "t1", "name": "a"})
        second = store.triggers.replace("p", "t1", {"name": "a", "x": 1}, was=first)
        assert second == {"id": "t1", "name": "a", "x": 1}
        assert store.triggers.replace("p", "t1", {"name": "a", "y": 1}, was=first) is None
        assert store.triggers.get("p", "t1") == second

    def test_a_deleted_trigger_leaves_its_builds(self, store: ServerStore) -> None:
        store.triggers.create("p", "global", {"id": "t1", "name": "a"})
        store.builds.create(new_build("b1", document={"buildTriggerId": "t1"}))
        store.triggers.delete("p", "a")
        with pytest.raises(NotFound):
            store.triggers.delete("p", "t1")
        assert ids(store.builds.page("p", filter="trigger_id=t1")) == ["b1"]

    def test_the_newest_builds_of_each_trigger_come_at_once(self, store: ServerStore) -> None:
        for project, trigger in (("p", "t1"), ("p", "t2"), ("p", "none"), ("q", "t1")):
            store.triggers.create(project, "global", {"id": trigger})
        for number in range(5):
            made = {"document": {"buildTriggerId": "t1"}, "created": number}
            store.builds.create(new_build(f"a{number}", **made))
            store.builds.create(new_build(f"other{number}", project="q", **made))
        for number in range(4):  # of one moment
            store.builds.create(new_build(f"b{number}", document={"buildTriggerId": "t2"}))
        store.builds.create(new_build("by hand"))
        found = store.builds.recent("p", ["t1", "t2", "none", "gone"], count=3)
        assert {trigger: [build.id for build in of] for trigger, of in found.items()} == {
            "t1": ["a4", "a3", "a2"],
            "t2": ["b0", "b1", "b2"],
        }
        assert [one.id for one in store.builds.recent("p", ["t1"], count=9)["t1"]][-1] == "a0"
        assert store.builds.recent("p", [], count=3) == {}

    def test_what_waits_for_an_approval_is_listed_if_its_trigger_has_settings(
        self, store: ServerStore
    ) -> None:
        settings = {"approval": {"expires": "60s"}}
        for project in ("p", "q"):
            for trigger in ("t1", "plain"):
                store.triggers.create(project, "global", {"id": trigger})
        store.triggers.set_settings("p", "t1", settings)
        for build, trigger, more in (
            ("waits", "t1", {}),
            ("plain", "plain", {}),
            ("elsewhere", "t1", {"project": "q"}),
            ("queued", "t1", {"status": "QUEUED"}),
        ):
            made = {"status": "PENDING", "document": {"buildTriggerId": trigger}, **more}
            store.builds.create(new_build(build, **made))
        found = [(one.id, one.project, one.trigger_id) for one in store.builds.pending()]
        assert found == [("waits", "p", "t1")]

    def test_triggers_come_by_name_page_by_page(self, store: ServerStore) -> None:
        for number, name in enumerate(["b", "B", "", "a", "", "é"]):
            store.triggers.create("p", "global", {"id": f"t{number}", "name": name})
        store.triggers.create("q", "global", {"id": "t", "name": "a"})
        seen: list[str] = []
        token = ""
        while token or not seen:
            documents, token = store.triggers.page("p", page_size=2, page_token=token)
            seen += [document["name"] + document["id"] for document in documents]
        assert seen == ["t2", "t4", "Bt1", "at3", "bt0", "ét5"]
        with pytest.raises(PageTokenError):
            store.triggers.page("p", page_token="t2")


class TestAccess:
    token = AccessToken(
        name="ci", hash_hex="ab" * 32, scopes=("read", "submit"), projects=("p",), create_time=NOW
    )

    def test_a_token_is_found_by_its_hash(self, store: ServerStore) -> None:
        store.tokens.create(self.token)
        other = AccessToken(name="a", hash_hex="cd" * 32, scopes=("admin",), create_time=at(1))
        store.tokens.create(other)
        assert store.tokens.find("ab" * 32) == self.token
        assert store.tokens.find("AB" * 32) is None
        assert store.tokens.find("") is None
        assert store.tokens.all() == [other, self.token]

    def test_names_and_hashes_are_given_once(self, store: ServerStore) -> None:
        store.tokens.create(self.token)
        for changed in ({"hash_hex": "cd" * 32}, {"name": "other"}):
            with pytest.raises(Conflict):
                store.tokens.create(structs.replace(self.token, **changed))

    def test_pools_are_those_of_workers_tokens(self, store: ServerStore) -> None:
        for name, pool in (("ci", ""), ("w1", "arm"), ("w2", "arm")):
            store.tokens.create(
                AccessToken(
                    name=name, hash_hex=name, scopes=("worker",), pool=pool, create_time=NOW
                )
            )
        store.tokens.revoke("w1", now=NOW)
        store.tokens.create(
            AccessToken(
                name="w3",
                hash_hex="w3",
                scopes=("worker",),
                projects=("q",),
                pool="gpu",
                create_time=NOW,
            )
        )
        assert store.tokens.pools() == {"arm", "gpu"}
        assert [store.tokens.pools(project) for project in ("p", "q")] == [{"arm"}, {"arm", "gpu"}]
        found = store.tokens.find("w2")
        assert found is not None
        assert found.pool == "arm"

    def test_a_revoked_token_says_since_when(self, store: ServerStore) -> None:
        store.tokens.create(self.token)
        store.tokens.revoke("ci", now=at(5))
        store.tokens.revoke("ci", now=at(9))
        found = store.tokens.find("ab" * 32)
        assert found is not None
        assert found.revoke_time == at(5)
        with pytest.raises(NotFound):
            store.tokens.revoke("cd", now=NOW)

    def test_a_session_is_found_until_it_expires_or_is_deleted(self, store: ServerStore) -> None:
        store.tokens.create(self.token)
        session = Session(hash_hex="12" * 32, token_name="ci", expires_at=at(10), ends_at=at(100))
        store.sessions.create(session, now=NOW)
        assert store.sessions.find("12" * 32, now=at(9)) == (session, self.token)
        assert store.sessions.find("34" * 32, now=NOW) is None
        assert store.sessions.find("12" * 32, now=at(10)) is None
        store.sessions.extend("12" * 32, at(20))
        found = store.sessions.find("12" * 32, now=at(19))
        assert found is not None
        assert found[0].expires_at == at(20)
        for _ in range(2):
            store.sessions.delete("12" * 32)
        store.sessions.extend("12" * 32, at(20))
        assert store.sessions.find("12" * 32, now=NOW) is None

    def test_sessions_end_with_their_token(self, store: ServerStore) -> None:
        store.tokens.create(self.token)
        session = Session(hash_hex="12" * 32, token_name="ci", expires_at=at(10), ends_at=at(100))
        store.sessions.create(session, now=NOW)
        store.tokens.revoke("ci", now=NOW)
        assert store.sessions.find("12" * 32, now=NOW) is None
        store.sessions.create(session, now=NOW)  # signed in at the same moment
        assert store.sessions.find("12" * 32, now=NOW) is None

    def test_a_new_session_clears_away_those_that_are_over(self, store: ServerStore) -> None:
        store.tokens.create(self.token)
        old = Session(hash_hex="12" * 32, token_name="ci", expires_at=at(10), ends_at=at(100))
        store.sessions.create(old, now=NOW)
        store.sessions.create(structs.replace(old, hash_hex="34" * 32), now=at(10))
        store.sessions.extend("12" * 32, at(100))
        assert store.sessions.find("12" * 32, now=at(11)) is None

    def test_the_first_session_of_a_token_ends_when_it_begins_too_many(
        self, store: ServerStore
    ) -> None:
        other = structs.replace(self.token, name="other", hash_hex="cd" * 32)
        for token in (self.token, other):
            store.tokens.create(token)
        kept = Session(hash_hex="f" * 64, token_name="other", expires_at=at(1), ends_at=at(1))
        store.sessions.create(kept, now=NOW)
        made = [f"{number:064x}" for number in range(MOST_SESSIONS + 2)]
        for number, hash_hex in enumerate(made):
            ends = at(10 + number)
            session = Session(hash_hex=hash_hex, token_name="ci", expires_at=at(10), ends_at=ends)
            store.sessions.create(session, now=NOW)
        valid = [one for one in made if store.sessions.find(one, now=NOW) is not None]
        assert valid == made[2:]
        assert store.sessions.find(kept.hash_hex, now=NOW) is not None

    def test_servers_of_a_database_sign_forms_with_the_same_key(
        self, open_another: Callable[[], ServerStore]
    ) -> None:
        first, second = (open_another().form_key() for _ in range(2))
        assert first == second
        assert len(first) == 32

    def test_old_entries_of_the_audit_log_are_deleted_some_at_a_time(
        self, store: ServerStore
    ) -> None:
        for number in range(5):
            store.audit.add(
                AuditEntry(at=at(number), who="ci", action="x", target=f"p/{number}", outcome="ok")
            )
        assert store.audit.forget(before=at(3), limit=2) == 2
        assert store.audit.forget(before=at(3), limit=2) == 1
        assert store.audit.forget(before=at(3), limit=2) == 0
        assert [entry.target for entry in store.audit.page()] == ["p/4", "p/3"]

    def test_the_audit_log_is_read_backwards(self, store: ServerStore) -> None:
        for number in range(5):
            store.audit.add(
                AuditEntry(at=at(number), who="ci", action="x", target=f"p/{number}", outcome="ok")
            )
        newest = store.audit.page(limit=2)
        assert [entry.target for entry in newest] == ["p/4", "p/3"]
        assert newest[0].at == at(4)
        assert newest[0].id > newest[1].id > 0
        odd = AuditEntry(at=at(9), who="a\nb", action="x\0y", target="é", outcome="404")
        store.audit.add(odd)
        (entry,) = store.audit.page(limit=1)
        assert (entry.who, entry.action, entry.target) == ("a\\nb", "x\\x00y", "é")
        older = store.audit.page(before_id=newest[1].id)
        assert [entry.target for entry in older] == ["p/2", "p/1", "p/0"]


class TestOthers:
    """Several processes on one database."""

    def test_what_one_wrote_the_others_read(self, open_another: Callable[[], ServerStore]) -> None:
        first, second = open_another(), open_another()
        first.builds.create(new_build("a1"))
        build, lease = claim(second)
        second.queue.record(lease, with_status(build, "WORKING"))
        assert first.builds.find("a1").status == "WORKING"

    def test_many_servers_that_start_at_once_make_one_database(self, empty_address: str) -> None:
        code = (
            "import sys; from buildrunner.store.sql.store import open_store;"
            "store = open_store(sys.argv[1]); store.audit.page(); store.close()"
        )
        started = [
            subprocess.Popen([sys.executable, "-c", code, empty_address], stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        for process in started:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said.decode()

    def test_no_build_is_claimed_twice_and_no_limit_passed(
        self, open_another: Callable[[], ServerStore]
    ) -> None:
        stores = [open_another() for _ in range(4)]
        for number in range(24):
            more: dict[str, Any] = {}
            if number % 4:
                more = {"group": f"g{number % 3}", "group_limit": 2}
            stores[0].builds.create(new_build(f"a{number:02}", created=number, **more))
        fences: list[int] = []
        ended: list[str] = []
        running: Counter[str] = Counter()
        lock = threading.Lock()

        def work(store: ServerStore, worker: str) -> None:
            while store.queue.length():
                claimed = store.queue.claim(worker, now=NOW, lease_s=LEASE_S, limit=3)
                if claimed is None:
                    continue
                build, lease = claimed
                with lock:
                    fences.append(lease.fence)
                    running[build.group] += 1
                    assert not build.group or running[build.group] <= 2
                store.queue.record(lease, with_status(build, "WORKING"))
                with lock:
                    # Counted down before the store knows: what it lets through is never too much.
                    running[build.group] -= 1
                end(store, claimed)
                ended.append(build.id)

        in_threads([partial(work, store, f"w{n}") for n, store in enumerate(stores)])
        assert sorted(ended) == [f"a{number:02}" for number in range(24)]
        assert len(set(fences)) == 24
        assert stores[0].queue.claimed() == []

    def test_processes_share_the_queue(self, address: str, store: ServerStore) -> None:
        for number in range(30):
            store.builds.create(new_build(f"a{number:02}", created=number))
        started = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIM_ALL, address, f"w{n}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in range(3)
        ]
        claimed: list[str] = []
        for process in started:
            said, wrong = process.communicate(timeout=60)
            assert process.returncode == 0, wrong
            claimed += said.split()
        assert sorted(claimed) == [f"a{number:02}" for number in range(30)]

    def test_one_of_many_takes_a_dead_build_over(
        self, open_another: Callable[[], ServerStore]
    ) -> None:
        stores = [open_another() for _ in range(4)]
        stores[0].builds.create(new_build("a1"))
        _, dead = claim(stores[0])
        won: list[int] = []

        def take(store: ServerStore) -> None:
            with contextlib.suppress(Conflict):
                _, lease = store.queue.claim_again(
                    "a1", "w", now=NOW, lease_s=1, instead_of=dead.fence
                )
                won.append(lease.fence)

        in_threads([partial(take, store) for store in stores])
        assert len(won) == 1

    def test_the_encoding_of_a_database_does_not_matter(self, postgres: PostgresServer) -> None:
        options = "ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
        postgres.sql("postgres", f"CREATE DATABASE ascii {options}")
        store = open_store(postgres.address("ascii"))
        trigger = {"id": "t1", "name": "ünï"}
        store.triggers.create("p", "global", trigger)
        assert store.triggers.get("p", "ünï") == trigger
        made = store.builds.create(new_build("a1", document={"tags": ["é"]}))
        assert ids(store.builds.page("p", filter="tags=é")) == [made.id]
        store.close()

    def test_a_closed_store_says_so(self, store: ServerStore) -> None:
        store.ping()
        store.close()
        store.close()
        with pytest.raises(StoreError, match="was closed"):
            store.ping()


CLAIM_ALL = """
import sys
from datetime import UTC, datetime
from buildrunner.store.sql.store import open_store

store = open_store(sys.argv[1])
now = datetime(2026, 5, 1, tzinfo=UTC)
while (claimed := store.queue.claim(sys.argv[2], now=now, lease_s=9, limit=99)) is not None:
    build, lease = claimed
    store.queue.record(lease, {**build.document, "status": "WORKING"})
    print(build.id)
store.close()
"""


def in_threads(acts: list[Callable[[], object]]) -> None:
    """Run all at the same time; the first failure is the test's."""
    failures: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class TestIdentityKeys:
    def test_the_keys_of_all_servers_are_kept_oldest_first(self, store: ServerStore) -> None:
        jwk = {"kty": "RSA", "n": "x", "e": "AQAB"}
        first, second, third = (
            IdentityKey(
                id=name,
                owner=f"server-{name}",
                jwk={**jwk, "kid": name},
                created_at=at(created),
                published_until=at(created + 100),
            )
            for name, created in (("b", 0), ("a", 10), ("c", 20))
        )
        for key in (third, first, second):
            store.identity_keys.put(key)
        assert store.identity_keys.all() == [first, second, third]
        later = structs.replace(first, published_until=at(500))
        store.identity_keys.put(later)
        store.identity_keys.delete("a")
        store.identity_keys.delete("a")
        assert store.identity_keys.all() == [later, third]

    def test_two_servers_of_a_database_verify_each_others_tokens(
        self, store: ServerStore, tmp_path: Path
    ) -> None:
        one, two = (
            IdentityKeys(str(tmp_path / name), name, store.identity_keys, clock=lambda: NOW)
            for name in ("one", "two")
        )
        signed = {keys.signing().jwk["kid"] for keys in (one, two)}
        assert len(signed) == 2
        for keys in (one, two):
            assert {jwk["kid"] for jwk in keys.published()} == signed
