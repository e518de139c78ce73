"""A stranger who opens a pull request ends no build of those who may push."""

from __future__ import annotations

from pathlib import Path

from buildrunner.plan.build_plan import new_build_id
from buildrunner.store.model.builds import NewBuild
from tests.api_server import WORKER, now
from tests.server_databases import new_store


def test_the_build_of_a_fork_cancels_builds_of_forks_only(tmp_path: Path) -> None:
    store = new_store(str(tmp_path))

    def create(*, untrusted: bool, pending: bool = False) -> str:
        build = {
            "id": new_build_id(),
            "projectId": "p",
            "status": "PENDING" if pending else "QUEUED",
            "createTime": "2026-01-01T00:00:00Z",
        }
        new = NewBuild(
            document=build,
            request={},
            expires_at=now(),
            group="deploy",
            supersede="cancel_all",
            untrusted=untrusted,
        )
        return store.builds.create(new).id

    try:
        running = create(untrusted=False)
        assert store.queue.claim(WORKER, now=now(), lease_s=600, limit=10) is not None
        of_a_fork = create(untrusted=True)
        create(untrusted=True, pending=True)
        assert not store.builds.find(running).cancel_requested
        assert store.builds.find(of_a_fork).status == "CANCELLED"
        create(untrusted=False)
        assert store.builds.find(running).cancel_requested
    finally:
        store.close()
