"""Spare Pods of a pool, and the time until the first step of a build begins."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from statistics import median

import pytest

from tests.kubernetes.conftest import (
    bare_pod_s,
    install,
    pod_images,
    pool_values,
    ready_spare,
    token,
    values,
    volume_class,
)
from tests.kubernetes.test_pools import of_pool, pods, server  # noqa: F401  (a fixture)
from tests.kubernetes.test_workers import ended, submitted

# On a busy machine a build gets a Pod of its own before the spare one has answered.
pytestmark = pytest.mark.alone

TIMES = 3


@pytest.fixture(scope="module")
def installed(cluster, mirror):
    """A server with a pool that has a spare Pod, and one that has none."""
    with volume_class(cluster) as volume:
        install(cluster, values(volume))
        pool = pool_values(cluster, mirror)
        bearer = token(cluster)
        pools = {"linux": pool, "fast": {**pool, "spare": 1}}
        install(cluster, values(volume, pools=pools, workers=pod_images()))
        yield bearer


def first_step_s(cluster, server, pool):  # noqa: F811
    """Run a build; return the seconds from its request until its first step began."""
    requested = datetime.now(UTC)
    build_id = submitted(server, of_pool({"name": "busybox", "args": ["true"]}, pool=pool))
    build, log = ended(cluster, server, build_id, 120)
    assert build["status"] == "SUCCESS", log
    begun = datetime.fromisoformat(build["steps"][0]["timing"]["startTime"])
    return (begun - requested).total_seconds()


def test_a_build_runs_in_a_spare_pod_that_ends_with_it_and_is_replaced(cluster, server):  # noqa: F811
    before = ready_spare(cluster, "fast")["metadata"]
    build_id = submitted(server, of_pool({"name": "busybox", "args": ["true"]}, pool="fast"))
    build, log = ended(cluster, server, build_id, 60)
    assert build["status"] == "SUCCESS", log
    assert not pods(cluster, build_id)
    after = ready_spare(cluster, "fast")["metadata"]
    assert after["uid"] != before["uid"]

    def phase():
        return cluster.find("pod", before["name"])["status"]["phase"]

    cluster.until(lambda: phase() == "Succeeded", "the Pod of the build has ended", 30)


def test_a9_a_build_whose_spare_pod_is_deleted_ends_with_the_reason(cluster, server):  # noqa: F811
    pod = ready_spare(cluster, "fast")["metadata"]["name"]
    step = {"name": "busybox", "script": "exec sleep 300"}
    build_id = submitted(server, of_pool(step, pool="fast"))
    path = f"/v1/projects/shop/builds/{build_id}"
    cluster.until(
        lambda: server.get(path).json()["steps"][0].get("status") == "WORKING", "the step", 60
    )
    cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
    build, _ = ended(cluster, server, build_id, 90)
    assert build["status"] == "INTERNAL_ERROR"
    assert "its Pod was deleted" in build["statusDetail"]


@pytest.mark.alone
@pytest.mark.usefixtures("own_cluster")
def test_a19_a_spare_pod_begins_a_build_sooner_than_a_new_one(cluster, server, capsys):  # noqa: F811
    """The figures are those of the machine: the bars of A19 need one that does nothing else."""
    bare, cold, fast = [], [], []
    for _ in range(TIMES):
        bare.append(bare_pod_s(cluster))
        cold.append(first_step_s(cluster, server, "linux"))
        ready_spare(cluster, "fast")
        fast.append(first_step_s(cluster, server, "fast"))
    seconds = {
        name: [round(one, 2) for one in found]
        for name, found in (("bare Pod", bare), ("new Pod", cold), ("spare Pod", fast))
    }
    with capsys.disabled():
        print(f"\nseconds until the first step begins: {json.dumps(seconds)}")
    assert median(fast) < median(cold) / 1.5, seconds
