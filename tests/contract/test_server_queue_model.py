"""The queue against a model of it: whatever happens in whatever order, the rules hold.

No build is claimed twice without the first holder being shut out, no limit is passed, no final
status is left, nobody waits while he could run.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from buildrunner.errors import Conflict, LeaseLost
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import Lease, NewBuild, StoredBuild
from buildrunner.store.sql.store import ServerStore, open_store
from tests.fixtures_postgres import running_postgres

EPOCH = datetime(2026, 5, 1, tzinfo=UTC)
PROJECTS = ("p", "q")
WORKERS = ("w1", "w2")
SERVER_LIMIT = 2
GROUP_LIMITS = {"": 0, "one": 1, "two": 2}


class Modelled:
    """What a build should be."""

    def __init__(
        self, number: int, project: str, priority: int, group: str, expires_at: datetime
    ) -> None:
        self.id = f"b{number:03}"
        self.project = project
        self.created = number
        self.priority = priority
        self.group = group
        self.expires_at = expires_at
        self.status = "QUEUED"
        self.worker = ""
        self.fence = 0
        self.cancel_requested = False

    @property
    def waits(self) -> bool:
        return self.status == "QUEUED" and not self.worker

    @property
    def ended(self) -> bool:
        return self.status in FINAL_STATUSES


class QueueMachine(RuleBasedStateMachine):
    """Two servers on one database, and everything that people do to builds."""

    leases = Bundle("leases")
    store: ServerStore

    def __init__(self) -> None:
        super().__init__()
        self.now = EPOCH
        self.builds: dict[str, Modelled] = {}
        self.ordered: list[tuple[str, str, int]] = []
        self.highest_fence = 0
        self.last_claims = dict.fromkeys(PROJECTS, 0)
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    @initialize(groups=st.lists(st.sampled_from(list(GROUP_LIMITS)), min_size=4, max_size=8))
    def begin(self, groups: list[str]) -> None:
        for group in groups:
            self.create("p", priority=0, group=group, ttl=1000, pending=False, supersede="")

    @rule(
        project=st.sampled_from(PROJECTS),
        priority=st.integers(-1, 1),
        group=st.sampled_from(list(GROUP_LIMITS)),
        ttl=st.sampled_from([5, 1000]),
        pending=st.booleans(),
        supersede=st.sampled_from(["", "", "cancel_queued", "cancel_all"]),
    )
    def create(
        self, project: str, priority: int, group: str, ttl: int, pending: bool, supersede: str
    ) -> None:
        expires_at = self.now + timedelta(seconds=ttl)
        made = Modelled(len(self.builds), project, priority, group, expires_at)
        made.status = "PENDING" if pending else "QUEUED"
        self.store.builds.create(
            NewBuild(
                document={
                    "id": made.id,
                    "projectId": project,
                    "status": made.status,
                    "createTime": encode_instant(EPOCH + timedelta(seconds=made.created)),
                },
                request={},
                expires_at=made.expires_at,
                priority=priority,
                group=group,
                group_limit=GROUP_LIMITS[group],
                supersede=supersede,
            )
        )
        for other in self.builds.values():
            if supersede and group and (other.project, other.group) == (project, group):
                if other.waits:
                    other.status, other.cancel_requested = "CANCELLED", True
                elif other.worker and supersede == "cancel_all":
                    other.cancel_requested = True
        self.builds[made.id] = made

    @rule(target=leases, worker=st.sampled_from(WORKERS))
    def claim_too(self, worker: str) -> Any:
        return self.claim(worker)

    @rule(target=leases, worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> Any:
        expected = self.next_for(worker)
        claimed = self.store.queue.claim(worker, now=self.now, lease_s=9, limit=SERVER_LIMIT)
        if claimed is None:
            assert expected is None
            return multiple()
        assert expected is not None
        assert claimed[0].id == expected.id
        self.last_claims[expected.project] = claimed[1].fence
        return self.given(expected, worker, claimed)

    @rule(target=leases, lease=leases, worker=st.sampled_from(WORKERS), careful=st.booleans())
    def claim_again(self, lease: Lease, worker: str, careful: bool) -> Any:
        model = self.builds[lease.build_id]
        try:
            claimed = self.store.queue.claim_again(
                lease.build_id,
                worker,
                now=self.now,
                lease_s=9,
                instead_of=lease.fence if careful else 0,
            )
        except Conflict:
            assert model.ended or (careful and model.fence != lease.fence)
            return multiple()
        assert not model.ended
        assert not careful or model.fence == lease.fence
        return self.given(model, worker, claimed)

    @rule(lease=leases, status=st.sampled_from(["QUEUED", "WORKING"]))
    def record(self, lease: Lease, status: str) -> None:
        self.write(lease, status)

    @rule(lease=consumes(leases), status=st.sampled_from(sorted(FINAL_STATUSES)))
    def finish(self, lease: Lease, status: str) -> None:
        self.write(lease, status)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        model = self.builds[lease.build_id]
        try:
            requested = self.store.queue.renew(lease, now=self.now, lease_s=9)
        except LeaseLost:
            assert not self.holds(lease)
        else:
            assert self.holds(lease)
            assert bool(requested) is model.cancel_requested

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        model = self.any_build(number)
        if model is None:
            return
        try:
            self.store.builds.request_cancel(model.project, model.id, now=self.now)
        except Conflict:
            assert model.ended
            return
        assert not model.ended
        model.cancel_requested = True
        if not model.worker:
            model.status = "CANCELLED"

    @rule(number=st.integers(0, 20), approved=st.booleans())
    def decide(self, number: int, approved: bool) -> None:
        model = self.any_build(number)
        if model is None:
            return
        status = "QUEUED" if approved else "CANCELLED"
        document = {**self.store.builds.find(model.id).document, "status": status}
        expires_at = self.now + timedelta(seconds=5)
        try:
            self.store.builds.decide_approval(
                model.project, model.id, document, approved=approved, expires_at=expires_at
            )
        except Conflict:
            assert model.status != "PENDING"
        else:
            assert model.status == "PENDING"
            model.status, model.expires_at = status, expires_at

    @rule(seconds=st.integers(1, 10))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        over = [one for one in self.builds.values() if one.waits and one.expires_at <= self.now]
        assert set(self.store.queue.expire(now=self.now)) == {one.id for one in over}
        for one in over:
            one.status = "EXPIRED"

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        found = [one for name in PROJECTS for one in self.store.builds.page(name).builds]
        kept = {stored.id: stored for stored in found}
        assert kept.keys() == self.builds.keys()
        for model in self.builds.values():
            stored = kept[model.id]
            assert stored.status == model.status
            assert stored.worker == model.worker
            assert stored.fence == model.fence
            assert stored.cancel_requested is model.cancel_requested
        waiting = [one for one in self.builds.values() if one.waits]
        assert self.store.queue.length() == len(waiting)
        claimed = {build.id for build in self.store.queue.claimed()}
        assert claimed == {one.id for one in self.builds.values() if one.worker}

    @invariant()
    def places_in_the_queue_are_those_of_the_order(self) -> None:
        """The order in which the builds would be claimed if no limit held them up."""
        builds = [(one.status, one.worker, one.fence) for one in self.builds.values()]
        if builds == self.ordered:
            return  # the last rule was refused or changed no build, as the other invariant saw
        self.ordered = builds
        waiting = sorted((one for one in self.builds.values() if one.waits), key=_turn)
        loads = {project: self.running_in(project) for project in PROJECTS}
        claims = dict(self.last_claims)
        for place in range(1, len(waiting) + 1):
            project = self.turns(waiting, loads, claims)[0]
            model = next(one for one in waiting if one.project == project)
            reason = self.store.queue.why_waiting(model.id, now=self.now, limit=SERVER_LIMIT)
            assert reason is not None
            assert reason.position == place
            waiting.remove(model)
            loads[project] += 1
            claims[project] = self.highest_fence + place

    @invariant()
    def no_group_runs_more_than_it_may(self) -> None:
        for group, limit in GROUP_LIMITS.items():
            for project in PROJECTS:
                assert not limit or self.running_in(project, group) <= limit

    def teardown(self) -> None:
        self.store.close()

    def write(self, lease: Lease, status: str) -> None:
        model = self.builds[lease.build_id]
        document = {**self.store.builds.find(model.id).document, "status": status}
        try:
            self.store.queue.record(lease, document)
        except LeaseLost:
            assert model.fence != lease.fence
        except Conflict:
            assert model.ended
            assert model.fence == lease.fence
        else:
            assert self.holds(lease)
            model.status = status
            if model.ended:
                model.worker = ""

    def given(self, model: Modelled, worker: str, claimed: tuple[StoredBuild, Lease]) -> Lease:
        build, lease = claimed
        assert lease.fence > self.highest_fence
        assert build.worker == worker
        self.highest_fence = model.fence = lease.fence
        model.worker = worker
        return lease

    def holds(self, lease: Lease) -> bool:
        model = self.builds[lease.build_id]
        return model.fence == lease.fence and bool(model.worker)

    def running_in(self, project: str, group: str | None = None) -> int:
        return sum(
            bool(one.worker) and one.project == project and group in (None, one.group)
            for one in self.builds.values()
        )

    def turns(
        self, waiting: list[Modelled], loads: dict[str, int], claims: dict[str, int]
    ) -> list[str]:
        """The projects with waiting builds: first the one that may start its next build."""

        def turn(project: str) -> tuple[int, int, int]:
            since = min(one.created for one in waiting if one.project == project)
            return loads[project], claims[project], since

        return sorted({one.project for one in waiting}, key=turn)

    def next_for(self, worker: str) -> Modelled | None:
        if sum(one.worker == worker for one in self.builds.values()) >= SERVER_LIMIT:
            return None
        waiting = sorted((one for one in self.builds.values() if one.waits), key=_turn)
        loads = {project: self.running_in(project) for project in PROJECTS}
        for project in self.turns(waiting, loads, self.last_claims):
            for one in waiting:
                limit = GROUP_LIMITS[one.group]
                free = not limit or self.running_in(project, one.group) < limit
                if one.project == project and free:
                    return one
        return None

    def any_build(self, number: int) -> Modelled | None:
        names = sorted(self.builds)
        return self.builds[names[number % len(names)]] if names else None


def _turn(model: Modelled) -> tuple[int, int, str]:
    return (-model.priority, model.created, model.id)


def _settings(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=slow,
        phases=[phase for phase in Phase if phase is not Phase.shrink],  # that takes minutes
    )


def test_the_queue_on_sqlite_keeps_the_rules(tmp_path: Path) -> None:
    template = tmp_path / "template.db"
    open_store(f"sqlite:///{template}").close()

    class Machine(QueueMachine):
        def open(self) -> None:
            self.folder = Path(tempfile.mkdtemp(dir=tmp_path))
            shutil.copy(template, self.folder / "server.db")
            self.store = open_store(f"sqlite:///{self.folder}/server.db")

        def teardown(self) -> None:
            super().teardown()
            shutil.rmtree(self.folder)

    run_state_machine_as_test(Machine, settings=_settings(60))


def test_the_queue_on_postgresql_keeps_the_rules() -> None:
    server = running_postgres()
    try:
        address = server.make_database()
        open_store(address).close()
        database = server.name(address)

        class Machine(QueueMachine):
            def open(self) -> None:
                server.sql(database, "TRUNCATE builds, project_turns CASCADE")
                self.store = open_store(address)

        run_state_machine_as_test(Machine, settings=_settings(15))
    finally:
        server.remove()
