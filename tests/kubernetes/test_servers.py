"""Several servers on one PostgreSQL are one service, whichever of them is asked or lost."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import NamedTuple

import pytest

from tests.fixtures_postgres import running_postgres
from tests.kubernetes.conftest import (
    forwarded,
    install,
    on_node,
    pod_images,
    pool_values,
    relay,
    token,
    values,
    volume_class,
)
from tests.kubernetes.test_pools import LINES, SPEAKS, client, lines, of_pool, pods, works
from tests.kubernetes.test_workers import ended, found, submitted

SERVERS = ("ci-buildrunner-0", "ci-buildrunner-1")
QUICK = {"name": "busybox", "args": ["true"]}

pytestmark = pytest.mark.usefixtures("own_cluster")


@pytest.fixture(scope="module")
def database(own_cluster, here):
    """The URL of a database on this machine, as Pods reach it."""
    server = running_postgres()
    name = server.name(server.make_database())
    led = relay(here, f"{server.folder}/.s.PGSQL.5432")
    yield f"postgresql://tests@{here}:{led.server_address[1]}/{name}"
    led.shutdown()
    led.server_close()
    server.remove()


class Installed(NamedTuple):
    """Two servers with a pool.

    Attributes:
        settings: the values of the chart.
        bearer: the administrator's token.
    """

    settings: dict
    bearer: str


@pytest.fixture(scope="module")
def installed(cluster, mirror, database):
    """See `Installed`."""
    with volume_class(cluster, len(SERVERS)) as volume:
        servers = {"replicas": len(SERVERS), "database": {"url": database}}
        install(cluster, values(volume, **servers))
        pools = {"linux": pool_values(cluster, mirror, max_builds=5)}
        settings = values(volume, **servers, pools=pools, workers=pod_images())
        bearer = token(cluster)
        install(cluster, settings)
        yield Installed(settings, bearer)


@contextmanager
def clients(cluster, installed):
    """A client of each server's API."""
    with ExitStack() as opened:
        urls = [opened.enter_context(forwarded(cluster, f"pod/{name}", 8080)) for name in SERVERS]
        yield [opened.enter_context(client(url, installed.bearer)) for url in urls]


@pytest.fixture
def servers(cluster, installed):
    """See `clients`."""
    with clients(cluster, installed) as opened:
        yield opened


def log_path(build_id):
    return f"/buildrunner/v1/projects/shop/builds/{build_id}/log"


def test_a16_either_server_answers_the_log_of_a_build_that_runs(cluster, servers):
    build_id = submitted(servers[0], of_pool({"name": "busybox", "script": SPEAKS}))

    def live(server):
        return "line 100\n" in server.get(log_path(build_id)).text

    for server in servers:
        cluster.until(partial(live, server), "the log so far", 120)
        assert found(server, build_id)["status"] == "WORKING"

    def streamed(server):
        with server.stream("GET", f"{log_path(build_id)}/stream?offset=0", timeout=90) as answer:
            return [line for line in answer.iter_lines() if line == "event: end"]

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(streamed, servers)) == [["event: end"]] * len(servers)
    logs = {ended(cluster, server, build_id)[1] for server in servers}
    assert len(logs) == 1
    assert lines(logs.pop()) == [f"line {number}" for number in range(LINES)]


def test_a22_builds_run_on_while_the_chart_is_upgraded(cluster, servers, installed):
    build = of_pool({"name": "busybox", "script": SPEAKS.replace("sleep 0.2", "sleep 1")})
    ids = [submitted(servers[0], build) for _ in range(5)]
    for one in ids:
        works(cluster, servers[0], one)
    before = {pod["metadata"]["uid"] for pod in server_pods(cluster)}
    install(cluster, {**installed.settings, "podAnnotations": {"tests": "another"}})
    assert not before & {pod["metadata"]["uid"] for pod in server_pods(cluster)}
    with clients(cluster, installed) as opened:
        assert {found(opened[0], one)["status"] for one in ids} == {"WORKING"}
        for server, one in zip(cycle(opened), ids, strict=False):
            ended_build, log = ended(cluster, server, one, 240)
            assert ended_build["status"] == "SUCCESS", log
            assert lines(log) == [f"line {number}" for number in range(LINES)]


def server_pods(cluster):
    return cluster.find("pods", "--selector=app.kubernetes.io/name=buildrunner")["items"]


def test_a23_another_server_makes_the_jobs_within_5_seconds(cluster, installed):
    for name, other in (SERVERS, reversed(SERVERS)):
        before = restarts(cluster, name)
        with (
            forwarded(cluster, f"pod/{other}", 8080) as url,
            client(url, installed.bearer) as requested,
        ):
            kill(cluster, name)
            killed_at = time.monotonic()
            build_id = submitted(requested, of_pool(QUICK))
            cluster.until(partial(pods, cluster, build_id), "a Pod of the build", 5)
            assert time.monotonic() - killed_at <= 5
            assert ended(cluster, requested, build_id)[0]["status"] == "SUCCESS"
        # The first one is back and waits. So the second one makes the Jobs when it is killed.
        cluster.until(lambda: restarts(cluster, name) > before, "another start")  # noqa: B023
        cluster.until(partial(all_ready, cluster), "both servers are ready", 90)


def kill(cluster, name):
    (container,) = cluster.find("pod", name)["status"]["containerStatuses"]
    _, _, process = container["containerID"].partition("//")
    on_node("ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", process)


def restarts(cluster, name):
    (container,) = cluster.find("pod", name)["status"]["containerStatuses"]
    return container["restartCount"]


def all_ready(cluster):
    states = [
        one["status"]
        for pod in server_pods(cluster)
        for one in pod["status"].get("conditions", ())
        if one["type"] == "Ready"
    ]
    return states == ["True"] * len(SERVERS)
