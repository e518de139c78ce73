"""Neither a stranger's pull request nor an old push ends the builds that it must not end."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner.plan.build_plan import new_build_id
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.model.deliveries import WAITING
from tests.api_server import WORKER, api_server, now
from tests.security.test_trigger_filters import Asked
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


@pytest.mark.parametrize("policy", ["cancel_queued", "cancel_all"])
def test_a_push_that_is_handled_late_cancels_no_build_of_a_later_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Issue: a push that was tried again was built last, and cancelled the build of a newer one."""
    with api_server(tmp_path) as server:
        server.hook("github", "s3cret", owners=["acme"])
        asked = Asked(server, monkeypatch, slow=30.0)
        asked.make("evil", "slow")
        asked.handler.handle(asked.push())  # it has a large debt now
        asked.make("good", "deploy")
        trigger_id = server.store.triggers.get("evil", "slow")["id"]
        concurrency = {"concurrency": {"policy": policy}}
        server.store.triggers.set_settings("evil", trigger_id, concurrency)
        first, outcomes = asked.push(), []
        outcomes.append(asked.handler.handle(first))
        assert "retry" in outcomes[0]
        asked.time += 600.0
        asked.handler.handle(asked.push())
        newest, oldest = server.store.builds.page("evil").builds
        assert (newest.status, oldest.status) == ("QUEUED", "CANCELLED")
        if policy == "cancel_all":
            claimed = server.store.queue.claim(WORKER, now=now(), lease_s=600, limit=10)
            assert claimed is not None
        asked.handler.handle(replace(first, status=WAITING, outcome=outcomes[0]))
        late = next(iter(server.store.builds.page("evil").builds))
        assert late.id not in (newest.id, oldest.id)
        for build_id in (newest.id, late.id):
            found = server.store.builds.find(build_id)
            assert found.status in ("QUEUED", "WORKING")
            assert not found.cancel_requested
        asked.time += 600.0
        asked.handler.handle(asked.push())  # a later push cancels both
        ended = [server.store.builds.find(build_id) for build_id in (newest.id, late.id)]
        assert all(one.status == "CANCELLED" or one.cancel_requested for one in ended)
