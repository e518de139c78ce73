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
SPARE = """
[pools.fast]
server = "http://ci"
worker_image = "w"
engine_image = "e"
namespace = "ci"
spare = 1
max_builds = 3
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
    (tmp_path / "buildrunner" / "config.toml").write_text(CONFIG + SPARE)
    variables = {"XDG_CONFIG_HOME": str(tmp_path), "KUBECONFIG": cluster.kubeconfig(tmp_path)}
    serving = serve("--sandbox", "none", "--auth", "none", data=tmp_path / "data", env=variables)
    assert serving.url, serving.stop()
    return serving.url


def submit(url, name="linux", **options):
    pool = {"name": f"projects/p/locations/global/workerPools/{name}"}
    body = {"steps": [{"name": "busybox"}], "options": {"pool": pool, **options}}
    answer = httpx.post(f"{url}{BUILDS}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["metadata"]["build"]["id"]


def pods(cluster, **labels):
    """The metadata of Pods with some labels."""
    wanted = {f"buildrunner.dev/{name}": value for name, value in labels.items()}.items()
    found = [one["metadata"] for one in cluster.of("pods")]
    return [one for one in found if wanted <= one["labels"].items()]


def worker(url, cluster, signer, build):
    """The worker in the Pod of a build, as far as it claims builds."""
    (pod,) = pods(cluster, build=build)
    return worker_in(pod, url, signer)


def token_of(pod, signer):
    """The token of a Pod's worker."""
    facts = {
        "namespace": "ci",
        "pod": {"name": pod["name"], "uid": pod["uid"]},
        "serviceaccount": {"name": "default"},
    }
    issued = {"iss": "https://kubernetes.default.svc", "aud": ["buildrunner"]}
    claims = {**issued, "exp": time.time() + 600, "kubernetes.io": facts}
    return signer.sign(claims)


def worker_in(pod, url, signer):
    """The worker in a Pod."""
    headers = {"Authorization": f"Bearer {token_of(pod, signer)}"}
    return httpx.Client(base_url=f"{url}/worker/v1", headers=headers, timeout=30)


def claim(client, **request):
    return client.post("/builds:claim", json={"worker": "pod/1", **request})


def test_a_build_has_a_job_whose_worker_claims_this_build_and_no_other(url, cluster, signer):
    builds = [submit(url), submit(url)]
    wait_until(lambda: len(pods(cluster, pool="linux")) == 2)
    with worker(url, cluster, signer, builds[0]) as first:
        assert claim(first, buildId=builds[1]).status_code == 403
        claimed = claim(first, pool="linux", buildId=builds[0])
        assert claimed.status_code == 200, claimed.text
        assert claimed.json()["document"]["id"] == builds[0]
        assert claim(first).status_code == 409


def test_a_build_whose_pod_is_gone_gets_another_one(url, cluster, signer):
    build = submit(url)
    wait_until(lambda: bool(pods(cluster, pool="linux")))
    with worker(url, cluster, signer, build) as first:
        claimed = claim(first).json()
        lease = {"fence": claimed["fence"]}
        begun = first.post(f"/builds/{build}:begin", params={**lease, "incarnation": "1:1"})
        assert begun.status_code == 200, begun.text
        (before,) = pods(cluster, pool="linux")
        cluster.remove_job("ci", f"build-{build}")
        wait_until(lambda: bool(pods(cluster, pool="linux")))
        (after,) = pods(cluster, pool="linux")
        assert after["uid"] != before["uid"]
        assert first.post(f"/builds/{build}:renew", params=lease).status_code == 409
    with worker(url, cluster, signer, build) as second:
        assert claim(second).json()["labels"]["lost_worker"] == "its Job was deleted"


def only_spare(cluster):
    """The metadata of the only spare Pod, which is ready from now on."""
    wait_until(lambda: bool(pods(cluster, pool="fast")))
    (pod,) = (
        one
        for one in cluster.of("pods")
        if one["metadata"]["labels"]["buildrunner.dev/pool"] == "fast"
    )
    conditions = [{"type": "Ready", "status": "True"}]
    pod["status"] = {"phase": "Running", "conditions": conditions}
    return pod["metadata"]


def test_a_spare_pod_runs_one_build_and_its_token_opens_nothing_before(url, cluster, signer):
    pod = only_spare(cluster)
    other = submit(url)
    wait_until(lambda: bool(pods(cluster, build=other)))
    with worker_in(pod, url, signer) as spare, worker(url, cluster, signer, other) as own:
        assert claim(spare).status_code == 204
        lease = {"fence": claim(own).json()["fence"], "incarnation": "1:1"}
        assert spare.get(f"/builds/{other}").status_code == 404
        assert spare.post(f"/builds/{other}:begin", params=lease).status_code == 409
        assert claim(spare, buildId=other).status_code == 409
        first = submit(url, "fast")
        claimed = claim(spare, waitS=10, limit=10)
        assert claimed.json()["document"]["id"] == first
        second = submit(url, "fast")
        assert claim(spare, limit=10).status_code == 409
        assert claim(spare, buildId=second, limit=10).status_code == 403
        lease = {"fence": claimed.json()["fence"]}
        begun = spare.post(f"/builds/{first}:begin", params={**lease, "incarnation": "1:1"})
        assert begun.status_code == 200, begun.text
        ended = {**claimed.json()["document"], "status": "SUCCESS"}
        answer = spare.put(f"/builds/{first}/document", params=lease, json=ended)
        assert answer.status_code == 204, answer.text
        assert claim(spare, limit=10).status_code == 409
        assert not pods(cluster, build=first)


def test_a_spare_pod_leaves_builds_that_need_another_pod(url, cluster, signer):
    with worker_in(only_spare(cluster), url, signer) as spare:
        large = submit(url, "fast", machineType="E2_HIGHCPU_8")
        wait_until(lambda: bool(pods(cluster, build=large)))
        assert claim(spare).status_code == 204
        small = submit(url, "fast")
        assert claim(spare).json()["document"]["id"] == small


def test_a_spare_pod_claims_no_second_build_once_its_first_one_is_deleted(url, cluster, signer):
    with worker_in(only_spare(cluster), url, signer) as spare:
        first = submit(url, "fast")
        claimed = claim(spare, waitS=10).json()
        lease = {"fence": claimed["fence"]}
        begun = spare.post(f"/builds/{first}:begin", params={**lease, "incarnation": "1:1"})
        assert begun.status_code == 200, begun.text
        ended = {**claimed["document"], "status": "SUCCESS"}
        answer = spare.put(f"/builds/{first}/document", params=lease, json=ended)
        assert answer.status_code == 204, answer.text
        deleted = httpx.delete(f"{url}/buildrunner{BUILDS}/{first}", timeout=30)
        assert deleted.status_code == 200, deleted.text
        second = submit(url, "fast")
        assert claim(spare).status_code != 200
        assert claim(spare, buildId=second).status_code != 200
