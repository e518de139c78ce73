"""The chart on a cluster: installed, ready, upgraded, and gone without a trace."""

from __future__ import annotations

import json

import httpx

from tests.kubernetes.conftest import forwarded, install, token, values


def test_a_server_is_installed_upgraded_and_removed_without_a_trace(cluster, volume):
    install(cluster, values(volume))
    bearer = {"Authorization": f"Bearer {token(cluster)}"}
    with forwarded(cluster) as url, httpx.Client(base_url=url, headers=bearer) as http:
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "problems": []})
        steps = {"steps": [{"name": "busybox"}]}
        made = http.post("/v1/projects/shop/builds", json=steps).json()
        build = made["metadata"]["build"]["id"]

    install(cluster, values(volume, settings='[project]\nid = "shop"\n'))
    with forwarded(cluster) as url, httpx.Client(base_url=url, headers=bearer) as http:
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


def test_the_server_is_no_root_and_has_no_token_of_the_cluster(cluster, volume):
    install(cluster, values(volume))
    found = cluster.kubectl(
        *("exec", "ci-buildrunner-0", "--", "sh", "-c"),
        "id -u; ls /var/run/secrets/kubernetes.io 2>&1 | grep -c 'No such file'; "
        "touch /opt/file 2>&1 | grep -c 'Read-only file system'",
    )
    assert found.split() == ["1000", "1", "1"]
