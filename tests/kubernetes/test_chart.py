"""The chart on a cluster: installed, ready, upgraded, and gone without a trace."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.kubernetes.conftest import (
    forwarded,
    install,
    pod_images,
    pool_values,
    token,
    values,
)
from tests.kubernetes.test_pools import client, of_pool, works
from tests.kubernetes.test_workers import ended, submitted

SLEEPS = {"name": "busybox", "args": ["sleep", "300"]}


def test_a_server_is_installed_upgraded_and_removed_without_a_trace(cluster, volume):
    install(cluster, values(volume))
    bearer = {"Authorization": f"Bearer {token(cluster)}"}
    with forwarded(cluster) as url, httpx.Client(base_url=url, headers=bearer, timeout=60) as http:
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "problems": []})
        steps = {"steps": [{"name": "busybox"}]}
        made = http.post("/v1/projects/shop/builds", json=steps).json()
        build = made["metadata"]["build"]["id"]

    install(cluster, values(volume, settings='[project]\nid = "shop"\n'))
    with forwarded(cluster) as url, httpx.Client(base_url=url, headers=bearer, timeout=60) as http:
        # The new Pod has the old database, and the new settings.
        assert http.get(f"/v1/projects/shop/builds/{build}").json()["status"] == "QUEUED"

    cluster.run("helm", "uninstall", "ci", "--wait", "--timeout=60s")

    def left():
        kinds = "all,configmaps,secrets,serviceaccounts,pvc,ingresses,networkpolicies"
        found = json.loads(cluster.kubectl("get", kinds, "-o", "json"))["items"]
        return [
            f"{one['kind']} {one['metadata']['name']}"
            for one in found
            if "buildrunner" in one["metadata"]["name"]
        ]

    cluster.until(lambda: not left(), "uninstalled")


def objects(cluster):
    """The names of all objects of the namespace, and of the cluster, but for events."""
    found = set()
    for namespaced in ("true", "false"):
        requested = ("--verbs=list,get", f"--namespaced={namespaced}", "-o", "name")
        kinds = cluster.kubectl("api-resources", *requested).split()
        chosen = sorted(kind for kind in kinds if kind.partition(".")[0] != "events")
        found |= set(cluster.kubectl("get", ",".join(chosen), "-o", "name").split())
    return found


@pytest.mark.alone  # other tests make objects of the cluster
def test_a20_an_uninstalled_chart_leaves_nothing_not_even_a_running_build(cluster, volume, mirror):
    before = objects(cluster)
    install(cluster, values(volume))
    bearer = token(cluster)
    pools = {"linux": pool_values(cluster, mirror)}
    install(cluster, values(volume, pools=pools, workers=pod_images()))
    with forwarded(cluster) as url, client(url, bearer) as http:
        ids = [submitted(http, of_pool(step)) for step in ({"name": "busybox"}, SLEEPS)]
        assert ended(cluster, http, ids[0])[0]["status"] == "SUCCESS"
        works(cluster, http, ids[1])
    assert len(cluster.find("jobs")["items"]) == len(ids)

    cluster.run("helm", "uninstall", "ci", "--wait", "--timeout=60s")
    cluster.until(lambda: objects(cluster) <= before, "nothing is left", 90)


def test_the_server_is_no_root_and_has_no_token_of_the_cluster(cluster, volume):
    install(cluster, values(volume))
    found = cluster.kubectl(
        *("exec", "ci-buildrunner-0", "--", "sh", "-c"),
        "id -u; ls /var/run/secrets/kubernetes.io 2>&1 | grep -c 'No such file'; "
        "touch /opt/file 2>&1 | grep -c 'Read-only file system'",
    )
    assert found.split() == ["1000", "1", "1"]
