"""Builds of a pool: a Pod for each, which the server makes."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import threading

import httpx
import pytest

from buildrunner.kubernetes.manifest import ENGINE, LABEL_BUILD, LABEL_POOL, TOKEN_FOLDER, WORKER
from tests.kubernetes.conftest import (
    forwarded,
    image,
    install,
    on_node,
    pod_images,
    pool_values,
    token,
    values,
    volume_class,
)
from tests.kubernetes.test_workers import ended, found, submitted

UNPRIVILEGED = ("user-namespace", "capabilities")  # tests may run where nobody may more
FIVE_MB = bytes(range(256)) * 20_000
LINES = 2000
SPEAKS = f"for i in $(seq 0 {LINES - 1}); do echo line $i; [ $((i % 20)) -gt 0 ] || sleep 0.2; done"


@pytest.fixture(scope="module")
def installed(cluster, mirror):
    """A server with two pools. No node has the engine of the pool `broken`."""
    with volume_class(cluster) as volume:
        install(cluster, values(volume))
        pool = pool_values(cluster, mirror)
        pools = {
            "linux": pool,
            "broken": {**pool, "engine_image": image("no-such-engine")},
            **{name: {**pool, "isolation": name} for name in UNPRIVILEGED},
            "wide": {**pool, "max_builds": 8, "cpu": "2"},
        }
        bearer = token(cluster)
        install(cluster, values(volume, pools=pools, workers=pod_images()))
        yield bearer


def client(url, installed):
    authorization = {"Authorization": f"Bearer {installed}"}
    return httpx.Client(base_url=url, headers=authorization, timeout=60)


@pytest.fixture
def server(cluster, installed):
    """A client of the server's API."""
    with forwarded(cluster) as url, client(url, installed) as http:
        yield http


def of_pool(*steps, pool="linux", **options):
    chosen = {"pool": {"name": f"projects/shop/locations/global/workerPools/{pool}"}}
    return {"steps": list(steps), "options": {**chosen, **options}}


def pods(cluster, build_id="", pool="linux"):
    """The Pods of a build, else of a pool."""
    chosen = f"{LABEL_BUILD}={build_id}" if build_id else f"{LABEL_POOL}={pool}"
    return cluster.find("pods", "--selector", chosen)["items"]


def pod_of(cluster, build_id):
    """The name of a build's Pod."""

    def names():
        return [pod["metadata"]["name"] for pod in pods(cluster, build_id)]

    (name,) = cluster.until(names, "a Pod", 30)
    return name


def phases(cluster, build_id):
    return [pod["status"]["phase"] for pod in pods(cluster, build_id)]


def works(cluster, server, build_id):
    """Wait until the first step of a build runs."""
    cluster.until(
        lambda: found(server, build_id)["steps"][0].get("status") == "WORKING",
        "the step runs",
        120,
    )


def running(cluster, server, script="exec sleep 300"):
    """A build whose step runs, and the name of its Pod."""
    build_id = submitted(server, of_pool({"name": "busybox", "script": script}))
    works(cluster, server, build_id)
    return build_id, pod_of(cluster, build_id)


def lines(log):
    return [line for line in log.splitlines() if line.startswith("line ")]


def waits_for(cluster, server, build_id, reason):
    """Wait until the server gives a reason for which a build waits."""
    path = f"/buildrunner/v1/projects/shop/builds/{build_id}/waiting"
    cluster.until(lambda: reason in server.get(path).text, f"the reason: {reason}", 60)


def kill(cluster, pod, container, words):
    """Kill the processes of a container whose command line has some words.

    The shell that does so is killed as well if the container ends by that.
    """
    script = f"""\
for each in /proc/[0-9]*; do
  if tr '\\0' ' ' < $each/cmdline | grep -q '{words}'; then kill -9 "${{each#/proc/}}"; fi
done"""
    cluster.kubectl("exec", pod, "-c", container, "--", "sh", "-c", script, check=False)


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
    build_id = submitted(server, of_pool(*steps))
    build, log = ended(cluster, server, build_id)
    assert build["status"] == "SUCCESS", log
    for said in ("Step #0: kept", "on the network", "Step #1: made by a step"):
        assert said in log
    cluster.until(lambda: phases(cluster, build_id) == ["Succeeded"], "the Pod ended by itself", 30)


def test_a5_a_cancelled_build_leaves_no_running_pod(cluster, server):
    build_id, _ = running(cluster, server)
    server.post(f"/v1/projects/shop/builds/{build_id}:cancel")
    build, _ = ended(cluster, server, build_id, 20)
    assert build["status"] == "CANCELLED"
    cluster.until(lambda: "Running" not in phases(cluster, build_id), "no Pod runs", 30)


def test_a7_a_build_whose_worker_was_killed_goes_on_and_its_log_is_complete(cluster, server):
    build_id, pod = running(cluster, server, SPEAKS)
    kill(cluster, pod, WORKER, "[b]uildrunner execute")
    build, log = ended(cluster, server, build_id)
    assert build["status"] == "SUCCESS", log
    assert lines(log) == [f"line {number}" for number in range(LINES)]


def test_a8_a_build_whose_engine_was_killed_says_so(cluster, server):
    build_id, pod = running(cluster, server)
    kill(cluster, pod, ENGINE, "[d]ockerd")
    build, log = ended(cluster, server, build_id, 60)
    assert build["status"] == "INTERNAL_ERROR", log
    assert "container engine" in build["statusDetail"]


def test_a9_a_build_whose_pod_was_deleted_says_so(cluster, server):
    build_id, pod = running(cluster, server)
    cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
    build, _ = ended(cluster, server, build_id, 60)
    assert build["status"] == "INTERNAL_ERROR"
    assert "its Pod was deleted" in build["statusDetail"]


def test_a9_a_build_whose_pod_was_deleted_before_a_step_began_runs_in_another(cluster, server):
    build_id = submitted(server, of_pool({"name": "busybox", "args": ["true"]}))
    pod = pod_of(cluster, build_id)
    cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
    build, log = ended(cluster, server, build_id, 180)
    assert build["status"] == "SUCCESS", log
    assert pod_of(cluster, build_id) != pod


def test_a11_a_build_whose_pod_was_evicted_says_so(cluster, server):
    build_id, pod = running(cluster, server)
    metadata = {"name": pod, "namespace": cluster.namespace}
    soon = {"gracePeriodSeconds": 5}
    policy = {"apiVersion": "policy/v1", "kind": "Eviction"}
    eviction = {**policy, "metadata": metadata, "deleteOptions": soon}
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    build, _ = ended(cluster, server, build_id, 90)
    assert build["status"] == "INTERNAL_ERROR"
    assert "its Pod was evicted, as when a node is drained" in build["statusDetail"]


def test_a12_a_step_that_runs_out_of_memory_has_failed_and_the_engine_lives(cluster, server):
    steps = [
        {"name": "busybox", "args": ["tail", "/dev/zero"], "allowFailure": True},
        {"name": "busybox", "args": ["echo", "next"]},
    ]
    build, log = ended(cluster, server, submitted(server, of_pool(*steps)))
    assert (build["status"], build["steps"][0]["status"]) == ("SUCCESS", "FAILURE"), log
    assert build["steps"][0]["exitCode"] == 137


def test_a13_an_image_of_a_step_that_is_not_there_fails_the_build(cluster, server):
    build_id = submitted(server, of_pool({"name": "tests/no-such-image"}))
    build, log = ended(cluster, server, build_id)
    assert build["status"] == "FAILURE", log
    assert "no-such-image" in build["statusDetail"]


def test_a13_an_engine_whose_image_is_not_there_is_why_a_build_waits(cluster, server):
    build_id = submitted(server, of_pool({"name": "busybox"}, pool="broken"))
    waits_for(cluster, server, build_id, "no-such-engine")
    server.post(f"/v1/projects/shop/builds/{build_id}:cancel")
    cluster.until(lambda: not pods(cluster, build_id), "no Pod is left", 60)


def test_a14_a_full_quota_is_why_a_build_waits_and_then_it_runs(cluster, server):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    cluster.apply(quota)
    cluster.until(
        lambda: cluster.find("resourcequota", "none").get("status"), "the quota counts", 30
    )
    build_id = submitted(server, of_pool({"name": "busybox", "args": ["true"]}))
    waits_for(cluster, server, build_id, "quota")
    cluster.kubectl("delete", "resourcequota", "none")
    build, log = ended(cluster, server, build_id)
    assert build["status"] == "SUCCESS", log


def test_a15_a_server_that_is_killed_loses_no_line_of_a_running_build(cluster, server, installed):
    build_id, _ = running(cluster, server, SPEAKS)
    before = cluster.find("pod", "ci-buildrunner-0")["metadata"]["uid"]
    cluster.kubectl("delete", "pod", "ci-buildrunner-0", "--force", "--grace-period=0")

    def again():
        pods = cluster.find("pods", "--selector=app.kubernetes.io/name=buildrunner")["items"]
        conditions = [  # for a moment there is no Pod
            {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
            for pod in pods
            if pod["metadata"]["uid"] != before
        ]
        return any(one.get("Ready") == "True" for one in conditions)

    cluster.until(again, "another server is ready", 90)
    with forwarded(cluster) as url, client(url, installed) as http:
        build, log = ended(cluster, http, build_id)
    assert build["status"] == "SUCCESS", log
    assert lines(log) == [f"line {number}" for number in range(LINES)]


@pytest.mark.alone
@pytest.mark.usefixtures("own_cluster")
def test_a15_builds_run_on_while_the_api_of_the_cluster_is_away(cluster, server, installed):
    build_id, _ = running(cluster, server, SPEAKS)
    program = "kubernetes kube-apiserver"
    on_node("pkill", "-STOP", "-f", program)
    try:
        with pytest.raises(subprocess.TimeoutExpired):  # longer than the leases of builds
            subprocess.run(["tail", "-f", "/dev/null"], timeout=45, check=False)
    finally:
        on_node("pkill", "-CONT", "-f", program)
    with forwarded(cluster) as url, client(url, installed) as http:
        build, log = ended(cluster, http, build_id)
        assert build["status"] == "SUCCESS", log
        assert lines(log) == [f"line {number}" for number in range(LINES)]
        after = submitted(http, of_pool({"name": "busybox", "args": ["true"]}))
        assert ended(cluster, http, after)[0]["status"] == "SUCCESS"


def test_a17_the_token_of_a_pod_opens_its_own_build_and_nothing_else(cluster, server):
    build_id, pod = running(cluster, server)
    script = f"cat {TOKEN_FOLDER}/token"
    bearer = cluster.kubectl("exec", pod, "-c", WORKER, "--", "sh", "-c", script).strip()
    other = submitted(server, of_pool({"name": "busybox", "args": ["true"]}, pool="broken"))
    own = {"headers": {"Authorization": f"Bearer {bearer}"}}
    assert server.get("/v1/projects/shop/builds", **own).status_code in (401, 403)
    wanted = {"worker": "thief/1", "buildId": other}
    assert server.post("/worker/v1/builds:claim", json=wanted, **own).status_code == 403
    assert server.get(f"/worker/v1/builds/{other}", **own).status_code in (403, 404)
    assert server.get(f"/worker/v1/builds/{build_id}", **own).status_code == 200
    objects = cluster.kubectl("get", "all,secrets,configmaps,events", "-o", "yaml")
    assert bearer not in objects
    for one in (build_id, other):
        server.post(f"/v1/projects/shop/builds/{one}:cancel")
        ended(cluster, server, one, 30)


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


@pytest.fixture
def narrow(here):
    """The URL of 5 MB, behind a network that drops large packets and does not say so."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(FIVE_MB)))
            self.end_headers()
            self.wfile.write(FIVE_MB)

    listener = http.server.ThreadingHTTPServer((here, 0), Answer)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    rule = ("-p", "icmp", "--icmp-type", "fragmentation-needed", "-j", "DROP")
    for chain in ("OUTPUT", "FORWARD"):
        on_node("iptables", "-w", "-I", chain, *rule)
    yield f"http://{here}:{listener.server_port}/file"
    for chain in ("OUTPUT", "FORWARD"):
        on_node("iptables", "-w", "-D", chain, *rule)
    listener.shutdown()
    listener.server_close()


@pytest.mark.usefixtures("own_cluster")
@pytest.mark.parametrize("isolation", UNPRIVILEGED)
def test_a21_steps_fetch_through_a_network_whose_packets_are_smaller(
    cluster, server, narrow, isolation
):
    script = f"""\
#!/bin/sh
set -eu
fetch="timeout 60 wget -q -O - {narrow}"
printf 'FROM busybox\\nRUN timeout 60 wget -q -O /file {narrow}\\n' > Dockerfile
docker build -t made .
docker run --rm made sha256sum /file
docker network create other
for network in bridge cloudbuild other; do
  docker run --rm --network $network busybox $fetch | sha256sum
done
"""
    build_id = submitted(
        server, of_pool({"name": "tests/docker", "script": script}, pool=isolation)
    )
    build, log = ended(cluster, server, build_id, 240)
    assert build["status"] == "SUCCESS", log
    assert log.count(hashlib.sha256(FIVE_MB).hexdigest()) == 4


def test_a_pod_that_fits_nowhere_is_why_its_build_waits(cluster, server):
    steps = {"name": "busybox"}
    build_id = submitted(server, of_pool(steps, machineType="E2_HIGHCPU_32"))
    waits_for(cluster, server, build_id, "can't be scheduled")
    server.post(f"/v1/projects/shop/builds/{build_id}:cancel")
