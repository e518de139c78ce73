"""One of several servers of a database does a task, until its connection ends."""
# ruff: noqa: F811  (fixtures are imported, and named again by the tests that use them)

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from buildrunner.errors import StoreError
from buildrunner.kubernetes.api import KubernetesApi
from buildrunner.kubernetes.pool import Pool
from buildrunner.server.context import utc_now
from buildrunner.server.services.provisioner import Provisioner
from buildrunner.store.sql.servers import Leadership
from buildrunner.store.sql.store import ServerStore
from tests.contract.test_server_store import (  # noqa: F401  (fixtures)
    open_another,
    postgres,
    postgres_template,
)
from tests.fake_cluster import fake_cluster
from tests.fixtures_postgres import PostgresServer


@pytest.fixture
def address(postgres: PostgresServer, postgres_template: str) -> str:
    return postgres.make_database(like=postgres_template)


def test_another_server_leads_once_the_first_one_has_left(
    open_another: Callable[[], ServerStore],
) -> None:
    first, second = (open_another().leadership("task") for _ in range(2))
    assert first.leads()
    assert first.leads()
    assert not second.leads()
    first.close()
    first.close()
    assert second.leads()
    assert not first.leads()
    second.close()
    first.close()


def test_tasks_are_led_apart(open_another: Callable[[], ServerStore]) -> None:
    store = open_another()
    one, other = store.leadership("one"), store.leadership("other")
    assert one.leads()
    assert other.leads()
    one.close()
    other.close()


def test_a_server_whose_connection_broke_leads_no_more_until_it_is_asked_again(
    open_another: Callable[[], ServerStore],
) -> None:
    first, second = open_another().leadership("task"), open_another().leadership("task")
    assert first.leads()
    break_connection(first)
    assert second.leads()
    with pytest.raises(StoreError):
        first.leads()
    assert not first.leads()
    second.close()
    assert first.leads()
    first.close()


def test_one_of_two_servers_makes_jobs(
    open_another: Callable[[], ServerStore], tmp_path: Path
) -> None:
    pool = Pool(name="arm", server="http://ci", worker_image="w", engine_image="e")
    with (
        fake_cluster() as cluster,
        closing(KubernetesApi({"KUBECONFIG": cluster.kubeconfig(tmp_path)})) as api,
    ):
        first, second = (
            Provisioner(open_another(), api, {"arm": pool}, lambda *_: None, utc_now)
            for _ in range(2)
        )
        first.turn()
        requested = len(cluster.requests)
        assert requested
        second.turn()
        assert len(cluster.requests) == requested
        first.stop()
        second.turn()
        assert len(cluster.requests) > requested
        second.stop()


def break_connection(leadership: Leadership) -> None:
    process = leadership._connection.info.backend_pid
    with leadership._database.apart() as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", (process,))
