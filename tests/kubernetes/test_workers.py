"""Builds on the workers of the chart: what their steps do, and how they end."""

from __future__ import annotations

import base64

import httpx
import pytest

from tests.kubernetes.conftest import forwarded, image, install, token, values, volume_class

# A build finds nothing of the one before in its workspace.
NEXT = {"name": "busybox", "script": "ls -A /workspace; test ! -e /workspace/file"}


@pytest.fixture(scope="module")
def settings(cluster, mirror):
    """The values of a server with one worker, installed as the notes of the chart say it."""
    with volume_class(cluster) as volume:
        yield installed(cluster, volume, mirror)


def installed(cluster, volume, mirror):
    """Install the server, then its worker; return the values of the chart."""
    install(cluster, values(volume))
    made = cluster.kubectl(
        *("exec", "ci-buildrunner-0", "--", "buildrunner", "tokens", "create", "workers"),
        *("--worker", "--data=/var/lib/buildrunner/data"),
    )
    cluster.kubectl(
        *("create", "secret", "generic", "workers", "--from-file=token=/dev/stdin"), stdin=made
    )
    address = cluster.find("service", "ci-buildrunner")["spec"]["clusterIP"]
    workers = {
        "replicas": 1,
        "tokenSecret": "workers",
        "serverUrl": f"http://{address}",  # clusters that tests make may have no DNS
        "image": dict(zip(("repository", "tag"), image("worker").rsplit(":", 1), strict=True)),
        "engine": dict(zip(("repository", "tag"), image("engine").rsplit(":", 1), strict=True)),
        "mirror": mirror,
        "cpu": "1",
        "cpuRequest": "100m",
        "memory": "768Mi",
    }
    with_workers = values(volume, workers=workers)
    install(cluster, with_workers)
    return with_workers


@pytest.fixture
def server(cluster, settings):
    """A client of the server's API."""
    headers = {"Authorization": f"Bearer {token(cluster)}"}
    with forwarded(cluster) as url, httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        yield http


def submitted(server, build):
    made = server.post("/v1/projects/shop/builds", json=build).json()
    return made["metadata"]["build"]["id"]


def found(server, build_id):
    return server.get(f"/v1/projects/shop/builds/{build_id}").json()


def running(cluster, server, args):
    """A build whose step runs."""
    build_id = submitted(server, {"steps": [{"name": "busybox", "args": args}]})

    def begun():
        (step,) = found(server, build_id)["steps"]
        return step.get("status") == "WORKING"

    cluster.until(begun, "the step runs", 120)
    return build_id


def ended(cluster, server, build_id, seconds=120):
    """The build once it has ended, and its log."""

    def final():
        build = found(server, build_id)
        return build if build["status"] not in ("QUEUED", "WORKING") else None

    build = cluster.until(final, f"the build ended: {found(server, build_id)}", seconds)
    path = f"/buildrunner/v1/projects/shop/builds/{build_id}/log"
    return build, server.get(path).text


def test_a1_a_build_succeeds_and_its_log_is_complete(cluster, server):
    steps = [
        {"name": "busybox", "script": "seq 0 1999 | sed 's/^/line /'; echo kept > file"},
        {"name": "busybox", "args": ["cat", "/workspace/file"]},
    ]
    build, log = ended(cluster, server, submitted(server, {"steps": steps}))
    assert build["status"] == "SUCCESS", log
    said = [line.partition(": ")[2] for line in log.splitlines() if "Step #0: line" in line]
    assert said == [f"line {number}" for number in range(2000)]
    assert "Step #1: kept" in log


def test_a3_steps_use_the_engine_the_socket_and_the_network(cluster, server):
    script = """\
set -eu
printf 'FROM busybox\nCMD ["echo", "made by a step"]\n' > Dockerfile
docker build -q -t made .
docker run --rm --network cloudbuild busybox echo on the network
docker run --rm -v /var/run/docker.sock:/engine.sock busybox test -S /engine.sock
echo kept > file
docker run --rm -v /workspace:/workspace busybox cat /workspace/file
"""
    steps = [{"name": "tests/docker", "script": f"#!/bin/sh\n{script}"}, {"name": "made"}]
    build, log = ended(cluster, server, submitted(server, {"steps": steps}))
    assert build["status"] == "SUCCESS", log
    for said in ("on the network", "Step #0: kept", "Step #1: made by a step"):
        assert said in log
    build, log = ended(cluster, server, submitted(server, {"steps": [NEXT]}))
    assert build["status"] == "SUCCESS", log


def test_a5_a_cancelled_build_ends_at_once(cluster, server):
    build_id = running(cluster, server, ["sleep", "300"])
    server.post(f"/v1/projects/shop/builds/{build_id}:cancel")
    build, _ = ended(cluster, server, build_id, 20)
    assert build["status"] == "CANCELLED"


def test_a6_the_timeout_of_a_step_counts(cluster, server):
    step = {"name": "busybox", "args": ["sleep", "300"], "timeout": "2s"}
    build, _ = ended(cluster, server, submitted(server, {"steps": [step]}))
    assert (build["status"], build["steps"][0]["status"]) == ("FAILURE", "TIMEOUT")


def test_a17_the_token_of_the_workers_is_in_no_object_but_its_secret(cluster, server):
    secret = cluster.find("secret", "workers")["data"]["token"]
    bearer = base64.b64decode(secret).decode().strip()
    objects = cluster.kubectl("get", "all,configmaps,events", "-o", "yaml")
    assert bearer.startswith("brt_")
    assert bearer not in objects
    refused = server.get("/v1/projects/shop/builds", headers={"Authorization": f"Bearer {bearer}"})
    assert refused.status_code in (401, 403)


def test_a22_an_upgrade_lets_a_running_build_end(cluster, server, settings):
    build_id = running(cluster, server, ["sleep", "20"])
    settings["workers"]["cpuRequest"] = "150m"  # a new Pod takes the place of the old one
    install(cluster, settings)
    assert found(server, build_id)["status"] == "WORKING"
    build, log = ended(cluster, server, build_id)
    assert build["status"] == "SUCCESS", log
