"""What every store must do about deployments, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from buildrunner.engine.deployments import Deployment
from buildrunner.errors import InvalidRecord, LeaseLost, NotFound, PageTokenError
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import Lease, NewBuild
from buildrunner.store.model.deployments import DeploymentPage, RecordedDeployment, recorded
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
    assert store.deployments.of_build("b1").deployments == (made,)
    assert store.deployments.page("p").deployments == (made,)


def test_a_deployment_knows_the_one_before_of_its_target_and_project(store: ServerStore) -> None:
    first = deployed("b1", WEB, ONE, at=1, version="1")
    store.queue.record_deployments(claimed(store, "b1"), [first, deployed("b1", API, TWO, at=1)])
    lease = claimed(store, "b2")
    store.queue.record_deployments(lease, [deployed("b2", WEB, TWO, at=2)])
    other = deployed("b3", WEB, THREE, at=3, project="q")
    store.queue.record_deployments(claimed(store, "b3", project="q"), [other])
    (second,) = store.deployments.of_build("b2").deployments
    assert second.previous_images == (ONE,)
    assert second.previous_version == "1"
    assert second.previous_id == first.id
    assert store.deployments.of_build("b3").deployments == (other,)


def test_what_the_image_saw_there_before_wins_over_the_record(store: ServerStore) -> None:
    store.queue.record_deployments(claimed(store, "b1"), [deployed("b1", WEB, ONE, at=1)])
    seen = deployed("b2", WEB, TWO, at=2, previous_images=(THREE,))
    store.queue.record_deployments(claimed(store, "b2"), [seen])
    (second,) = store.deployments.of_build("b2").deployments
    assert second.previous_images == (THREE,)


def test_recording_again_changes_nothing(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    for at in (1, 2):
        store.queue.record_deployments(lease, [deployed("b1", WEB, ONE, at=at)])
    assert store.deployments.of_build("b1").deployments == (deployed("b1", WEB, ONE, at=1),)


def test_a_build_has_a_thousand_deployments_at_most(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    made = [deployed("b1", f"run://p/r/{number}", at=1) for number in range(1001)]
    with pytest.raises(InvalidRecord, match="a build has at most 1,000 deployments"):
        store.queue.record_deployments(lease, made)
    assert store.deployments.of_build("b1").deployments == ()
    for _ in range(2):  # again changes nothing
        store.queue.record_deployments(lease, made[:1000])
    with pytest.raises(InvalidRecord, match="a build has at most 1,000 deployments"):
        store.queue.record_deployments(lease, made[1000:])


def test_others_write_between_the_deployments_of_a_build(store: ServerStore) -> None:
    """Issue: one transaction for all kept every other writer waiting for minutes."""
    lease = claimed(store, "b1")
    made = [deployed("b1", f"run://p/r/{number}", at=1) for number in range(100)]
    written: list[int] = []
    write = store.queue._database.write

    @contextmanager
    def counted() -> Iterator[Any]:
        with write() as connection:
            before = connection.execute(text("SELECT count(*) FROM deployments")).scalar_one()
            yield connection
            after = connection.execute(text("SELECT count(*) FROM deployments")).scalar_one()
            written.append(after - before)

    store.queue._database.write = counted  # type: ignore[method-assign]
    store.queue.record_deployments(lease, made)
    assert sum(written) == 100
    assert max(written) <= 25


def test_only_the_holder_of_the_lease_records_and_only_for_its_build(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    claimed(store, "b2", project="q")
    with pytest.raises(LeaseLost):
        store.queue.record_deployments(Lease("b1", lease.fence - 1), [])
    forged = deployed("b2", WEB, ONE, at=1, project="q")
    store.queue.record_deployments(lease, [forged])
    assert store.deployments.page("q").deployments == ()
    assert store.deployments.of_build("b2").deployments == ()
    (made,) = store.deployments.of_build("b1").deployments
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


def test_a_page_of_large_deployments_ends_early_and_the_next_one_goes_on(
    store: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tuple(f"registry.example.com/{number}/{'a' * 480}" for number in range(50))
    large = {"previous_images": images, "url": f"https://{'u' * 2000}", "version": "v" * 256}
    lease = claimed(store, "b1")
    made = [deployed("b1", f"run://p/r/{n}", *images, at=n, **large) for n in range(5)]
    store.queue.record_deployments(lease, made)
    newest = [one.id for one in made[::-1]]
    monkeypatch.setattr("buildrunner.store.sql.rows.MOST_PAGE_BYTES", 120_000)
    assert pages(partial(store.deployments.page, "p", page_size=4)) == [
        newest[:2],
        newest[2:4],
        newest[4:],
    ]
    oldest = newest[::-1]
    assert pages(partial(store.deployments.of_build, "b1", page_size=4)) == [
        oldest[:2],
        oldest[2:4],
        oldest[4:],
    ]


def test_the_deployments_of_one_build_have_pages(store: ServerStore) -> None:
    made = [deployed("b1", f"run://p/r/{n}", at=n // 2) for n in range(5)]
    store.queue.record_deployments(claimed(store, "b1"), made)
    store.queue.record_deployments(claimed(store, "b2"), [deployed("b2", WEB, at=1)])
    found = pages(partial(store.deployments.of_build, "b1", page_size=2))
    assert [len(page) for page in found] == [2, 2, 1]
    assert [name for page in found for name in page] == [
        one.id for one in sorted(made, key=lambda one: (one.time, one.id))
    ]
    token = store.deployments.of_build("b1", page_size=2).next_page_token
    with pytest.raises(PageTokenError):
        store.deployments.of_build("b2", page_token=token)


def pages(listed: Callable[..., DeploymentPage]) -> list[list[str]]:
    """Return the ids on each page of a list."""
    found: list[list[str]] = []
    token = ""
    while token or not found:
        page = listed(page_token=token)
        found.append([one.id for one in page.deployments])
        token = page.next_page_token
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "javascript:alert(1)"},
        {"target": f"run://{'a' * 600}"},
        {"url": "javascript:alert(1)"},
        {"images": ("a b",)},
        {"images": ("a",) * 51},
        {"previous_images": ("a\n",)},
        {"version": "v" * 257},
    ],
)
def test_a_record_that_breaks_the_rules_of_deployments_is_refused(
    store: ServerStore, wrong: dict[str, Any]
) -> None:
    lease = claimed(store, "b1")
    forged = replace(deployed("b1", WEB, ONE, at=1), **wrong)
    with pytest.raises(InvalidRecord, match="a deployment of build b1 is not recorded: "):
        store.queue.record_deployments(lease, [deployed("b1", API, at=1), forged])
    assert store.deployments.of_build("b1").deployments == ()


def test_a_record_takes_the_id_of_no_other_build(store: ServerStore) -> None:
    other = deployed("b2", WEB, ONE, at=2)
    forged = replace(deployed("b1", WEB, TWO, at=1), id=other.id)
    store.queue.record_deployments(claimed(store, "b1"), [forged])
    store.queue.record_deployments(claimed(store, "b2"), [other])
    assert store.deployments.get("p", other.id).build_id == "b2"


def test_deployments_go_with_their_build(store: ServerStore) -> None:
    lease = claimed(store, "b1")
    store.queue.record_deployments(lease, [deployed("b1", WEB, ONE, at=1)])
    document = {**store.builds.find("b1").document, "status": "SUCCESS"}
    store.queue.record(lease, document)
    store.retention.delete("p", "b1", now=NOW)
    assert store.deployments.page("p").deployments == ()
