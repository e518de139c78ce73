"""What every store must do about deployments, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from buildrunner.engine.deployments import Deployment
from buildrunner.errors import LeaseLost, NotFound, PageTokenError
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import Lease, NewBuild
from buildrunner.store.model.deployments import RecordedDeployment, recorded
from buildrunner.store.sql.store import ServerStore, open_store
from tests.fixtures_postgres import PostgresServer, running_postgres

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
WEB, API = "run://p/r/web", "run://p/r/api"
ONE, TWO, THREE = (f"app@sha256:{digit * 64}" for digit in "123")


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


def claimed(store: ServerStore, build_id: str, *, project: str = "p", **more: Any) -> Lease:
    document = {
        "id": build_id,
        "projectId": project,
        "status": "QUEUED",
        "createTime": encode_instant(NOW),
    }
    expires = NOW + timedelta(hours=1)
    store.builds.create(NewBuild(document=document, request={}, expires_at=expires, **more))
    found = store.queue.claim("w", now=NOW, lease_s=60, limit=100)
    assert found is not None
    return found[1]


def deployed(
    build_id: str, target: str, *images: str, at: float, project: str = "p", **more: Any
) -> RecordedDeployment:
    return recorded(
        Deployment(target=target, images=images, reported=True, **more),
        project_id=project,
        build_id=build_id,
        step=2,
        step_id="deploy",
        time=NOW + timedelta(seconds=at),
    )


def test_a_deployment_is_read_again_whole(store: ServerStore) -> None:
    made = deployed("b1", WEB, ONE, at=1, version="web-00001", url="https://web.example.com")
    store.queue.record_deployments(claimed(store, "b1"), [made])
    assert store.deployments.get("p", made.id) == made
    assert store.deployments.of_build("b1") == [made]
    assert store.deployments.page("p").deployments == (made,)


def test_a_deployment_knows_the_one_before_of_its_target_and_project(store: ServerStore) -> None:
    first = deployed("b1", WEB, ONE, at=1, version="1")
    store.queue.record_deployments(claimed(store, "b1"), [first, deployed("b1", API, TWO, at=1)])
    lease = claimed(store, "b2")
    store.queue.record_deployments(lease, [deployed("b2", WEB, TWO, at=2)])
    other = deployed("b3", WEB, THREE, at=3, project="q")
    store.queue.record_deployments(claimed(store, "b3", project="q"), [other])
    (second,) = store.deployments.of_build("b2")
    assert second.previous_images == (ONE,)
    assert second.previous_version == "1"
    assert second.previous_id == first.id
    assert store.deployments.of_build("b3") == [other]


def test_what_the_image_saw_there_before_wins_over_the_record(store: ServerStore) -> None:
    store.queue.record_deployments(claimed(store, "b1"), [deployed("b1", WEB, ONE, at=1)])
    seen = deployed("b2", WEB, TWO, at=2, previous_images=(THREE,))
    store.queue.record_deployments(claimed(store, "b2"), [seen])
    (second,) = store.deployments.of_build("b2")
    assert second.previous_images == (THREE,)


def test_recording_again_changes_nothing(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    for at in (1, 2):
        store.queue.record_deployments(lease, [deployed("b1", WEB, ONE, at=at)])
    assert store.deployments.of_build("b1") == [deployed("b1", WEB, ONE, at=1)]


def test_only_the_holder_of_the_lease_records_and_only_for_its_build(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    claimed(store, "b2", project="q")
    with pytest.raises(LeaseLost):
        store.queue.record_deployments(Lease("b1", lease.fence - 1), [])
    forged = deployed("b2", WEB, ONE, at=1, project="q")
    store.queue.record_deployments(lease, [forged])
    assert store.deployments.page("q").deployments == ()
    assert store.deployments.of_build("b2") == []
    (made,) = store.deployments.of_build("b1")
    assert made.project_id == "p"


def test_builds_of_strangers_code_deploy_nothing_that_counts(store: ServerStore) -> None:
    lease = claimed(store, "b1", untrusted=True)
    store.queue.record_deployments(lease, [deployed("b1", WEB, ONE, at=1)])
    assert store.deployments.page("p").deployments == ()


def test_a_deployment_of_another_project_is_not_found(store: ServerStore) -> None:
    made = deployed("b1", WEB, ONE, at=1)
    store.queue.record_deployments(claimed(store, "b1"), [made])
    with pytest.raises(NotFound, match=f"there is no deployment {made.id} here"):
        store.deployments.get("q", made.id)
    with pytest.raises(NotFound):
        store.deployments.get("p", "none")


def test_lists_are_newest_first_by_page_by_target_and_the_latest_of_each(
    store: ServerStore,
) -> None:
    made = []
    for number, target in enumerate((WEB, API, WEB, API, WEB)):
        one = deployed(f"b{number}", target, at=number)
        store.queue.record_deployments(claimed(store, f"b{number}"), [one])
        made.append(one.id)
    newest = made[::-1]

    def listed(**wanted: Any) -> list[str]:
        return [one.id for one in store.deployments.page("p", **wanted).deployments]

    assert listed() == newest
    assert listed(target=WEB) == newest[::2]
    assert listed(target="run://none") == []
    assert listed(latest=True) == newest[:2]
    assert listed(latest=True, target=API) == newest[1:2]
    seen: list[str] = []
    token = ""
    for _ in range(3):
        page = store.deployments.page("p", page_size=2, page_token=token)
        seen += [one.id for one in page.deployments]
        token = page.next_page_token
    assert seen == newest
    assert token == ""
    token = store.deployments.page("p", page_size=2).next_page_token
    with pytest.raises(PageTokenError):
        store.deployments.page("p", target=WEB, page_token=token)


def test_deployments_go_with_their_build(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    store.queue.record_deployments(lease, [deployed("b1", WEB, ONE, at=1)])
    document = {**store.builds.find("b1").document, "status": "SUCCESS"}
    store.queue.record(lease, document)
    store.retention.delete("p", "b1", now=NOW)
    assert store.deployments.page("p").deployments == ()
