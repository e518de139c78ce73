"""Builds of a pool: a Pod for each, which the server makes."""

from __future__ import annotations

import httpx
import pytest

from tests.kubernetes.conftest import forwarded, image, install, token, values
from tests.kubernetes.test_workers import ended, found, submitted

POOL = {"pool": {"name": "projects/shop/locations/global/workerPools/linux"}}


@pytest.fixture
def server(cluster, volume, mirror):
    """A client of the API of a server with a pool."""
    install(cluster, values(volume))
    address = cluster.find("service", "ci-buildrunner")["spec"]["clusterIP"]
    pool = {
        "server": f"http://{address}",  # clusters that tests make may have no DNS
        "mirror": mirror,
        "cpu": "1",
        "cpu_request_percent": 10,
        "memory": "768Mi",
        "max_builds": 2,
    }
    images = {
        name: dict(zip(("repository", "tag"), image(program).rsplit(":", 1), strict=True))
        for name, program in (("image", "worker"), ("engine", "engine"))
    }
    bearer = {"Authorization": f"Bearer {token(cluster)}"}
    install(cluster, values(volume, pools={"linux": pool}, workers=images))
    with forwarded(cluster) as url, httpx.Client(base_url=url, headers=bearer) as http:
        yield http


def of_pool(*steps, **fields):
    return {"steps": list(steps), "options": POOL, **fields}


def pods(cluster):
    chosen = "app.kubernetes.io/name=buildrunner-build"
    return cluster.find("pods", "--selector", chosen)["items"]


def running(cluster, server):
    """A build whose step runs, and the name of its Pod."""
    build_id = submitted(server, of_pool({"name": "busybox", "args": ["sleep", "300"]}))

    def begun():
        (step,) = found(server, build_id)["steps"]
        return step.get("status") == "WORKING"

    cluster.until(begun, "the step runs", 120)
    (pod,) = pods(cluster)
    return build_id, pod["metadata"]["name"]


def test_a1_a3_a_build_runs_in_a_pod_of_its_own_as_on_cloud_build(cluster, server):
    script = """\
#!/bin/sh
set -eu
echo kept > file
docker run --rm -v /workspace:/workspace busybox cat /workspace/file
printf 'FROM busybox\\nCMD ["echo", "made by a step"]\\n' > Dockerfile
docker build -q -t made .
docker run --rm --network cloudbuild busybox echo on the network
"""
    steps = [{"name": "tests/docker", "script": script}, {"name": "made"}]
    build, log = ended(cluster, server, submitted(server, of_pool(*steps)))
    assert build["status"] == "SUCCESS", log
    for said in ("Step #0: kept", "on the network", "Step #1: made by a step"):
        assert said in log

    def completed():
        (pod,) = pods(cluster)
        return pod["status"]["phase"] == "Succeeded"

    cluster.until(completed, "the Pod ended by itself", 30)


def test_a5_a_cancelled_build_leaves_no_running_pod(cluster, server):
    build_id, _ = running(cluster, server)
    server.post(f"/v1/projects/shop/builds/{build_id}:cancel")
    build, _ = ended(cluster, server, build_id, 20)
    assert build["status"] == "CANCELLED"
    cluster.until(
        lambda: all(pod["status"]["phase"] != "Running" for pod in pods(cluster)), "no Pod runs", 30
    )


def test_a9_a_build_whose_pod_was_deleted_says_so(cluster, server):
    build_id, pod = running(cluster, server)
    cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
    build, _ = ended(cluster, server, build_id, 60)
    assert build["status"] == "INTERNAL_ERROR"
    assert "its Pod was deleted" in build["statusDetail"]


def test_a18_a_pool_has_no_more_pods_than_it_may(cluster, server):
    ids = [submitted(server, of_pool({"name": "busybox", "args": ["true"]})) for _ in range(4)]
    seen = 0

    def over():
        nonlocal seen
        alive = [one for one in pods(cluster) if one["status"]["phase"] in ("Pending", "Running")]
        seen = max(seen, len(alive))
        return all(found(server, one)["status"] == "SUCCESS" for one in ids)

    cluster.until(over, "all builds have succeeded", 240)
    assert 0 < seen <= 2


def test_a_pod_that_fits_nowhere_is_why_its_build_waits(cluster, server):
    options = {**POOL, "machineType": "E2_HIGHCPU_32"}
    body = {"steps": [{"name": "busybox"}], "options": options}
    build_id = submitted(server, body)
    path = f"/buildrunner/v1/projects/shop/builds/{build_id}/waiting"

    def why():
        answer = server.get(path)
        return "can't be scheduled" in answer.text

    cluster.until(why, "the scheduler's reason", 30)
