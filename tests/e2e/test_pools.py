"""A server with a pool on Kubernetes: Jobs for its builds, tokens of their Pods, lost Pods."""

from __future__ import annotations

import time

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.conftest import wait_until
from tests.e2e.test_serve import serve  # noqa: F401  (a fixture)
from tests.fake_cluster import fake_cluster
from tests.unit.kubernetes.test_pod_tokens import Signer

BUILDS = "/v1/projects/local-project/builds"
CONFIG = """
[pools.linux]
server = "http://ci"
worker_image = "w"
engine_image = "e"
namespace = "ci"
"""


@pytest.fixture
def cluster():
    with fake_cluster() as running:
        yield running


@pytest.fixture
def signer(cluster):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    found = Signer("1", key, "RS256")
    cluster.keys = [found.public()]
    return found


@pytest.fixture
def url(serve, cluster, tmp_path):  # noqa: F811  (the fixture)
    (tmp_path / "buildrunner").mkdir()
    (tmp_path / "buildrunner" / "config.toml").write_text(CONFIG)
    variables = {"XDG_CONFIG_HOME": str(tmp_path), "KUBECONFIG": cluster.kubeconfig(tmp_path)}
    serving = serve("--sandbox", "none", "--auth", "none", data=tmp_path / "data", env=variables)
    assert serving.url, serving.stop()
    return serving.url


def submit(url):
    pool = {"name": "projects/p/locations/global/workerPools/linux"}
    body = {"steps": [{"name": "busybox"}], "options": {"pool": pool}}
    answer = httpx.post(f"{url}{BUILDS}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["metadata"]["build"]["id"]


def worker(url, cluster, signer, build):
    """The worker in the Pod of a build, as far as it claims builds."""
    (pod,) = (
        one["metadata"]
        for one in cluster.of("pods")
        if one["metadata"]["labels"]["buildrunner.dev/build"] == build
    )
    facts = {
        "namespace": "ci",
        "pod": {"name": pod["name"], "uid": pod["uid"]},
        "serviceaccount": {"name": "default"},
    }
    issued = {"iss": "https://kubernetes.default.svc", "aud": ["buildrunner"]}
    claims = {**issued, "exp": time.time() + 600, "kubernetes.io": facts}
    headers = {"Authorization": f"Bearer {signer.sign(claims)}"}
    return httpx.Client(base_url=f"{url}/worker/v1", headers=headers, timeout=30)


def claim(client, **request):
    return client.post("/builds:claim", json={"worker": "pod/1", **request})


def test_a_build_has_a_job_whose_worker_claims_this_build_and_no_other(url, cluster, signer):
    builds = [submit(url), submit(url)]
    wait_until(lambda: len(cluster.of("pods")) == 2)
    with worker(url, cluster, signer, builds[0]) as first:
        assert claim(first, buildId=builds[1]).status_code == 403
        claimed = claim(first, pool="linux", buildId=builds[0])
        assert claimed.status_code == 200, claimed.text
        assert claimed.json()["document"]["id"] == builds[0]
        assert claim(first).status_code == 409


def test_a_build_whose_pod_is_gone_gets_another_one(url, cluster, signer):
    build = submit(url)
    wait_until(lambda: bool(cluster.of("pods")))
    with worker(url, cluster, signer, build) as first:
        claimed = claim(first).json()
        lease = {"fence": claimed["fence"]}
        begun = first.post(f"/builds/{build}:begin", params={**lease, "incarnation": "1:1"})
        assert begun.status_code == 200, begun.text
        (before,) = cluster.of("pods")
        cluster.remove_job("ci", f"build-{build}")
        wait_until(lambda: bool(cluster.of("pods")))
        (after,) = cluster.of("pods")
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert first.post(f"/builds/{build}:renew", params=lease).status_code == 409
    with worker(url, cluster, signer, build) as second:
        assert claim(second).json()["labels"]["lost_worker"] == "its Job was deleted"
