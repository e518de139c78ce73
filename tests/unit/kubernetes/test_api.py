"""lightkube against a server that answers as Kubernetes does: what works, and what fails."""

from __future__ import annotations

from datetime import timedelta

import pytest

from buildrunner.errors import KubernetesError
from buildrunner.kubernetes.api import KubernetesApi
from buildrunner.kubernetes.manifest import LABELS, PodBuild, job_manifest
from buildrunner.kubernetes.pool import Pool

ID = "aef20688-6937-4742-bce1-5f0b81931d41"


def manifest(build_id=ID, **settings):
    usual = {"namespace": "ci", "worker_image": "worker", "engine_image": "engine"}
    pool = Pool(name="arm", server="http://buildrunner", **{**usual, **settings})
    return job_manifest(PodBuild(id=build_id, timeout=timedelta(minutes=10)), pool)


def test_a_job_arrives_with_every_field_of_its_manifest(api, cluster):
    wanted = manifest(node_selector={"disk": "fast"}, tolerations=("spot",), queue="team")
    api.create_job(wanted)
    (made,) = cluster.of("jobs")
    assert made["spec"] == wanted["spec"]
    assert made["metadata"]["labels"] == wanted["metadata"]["labels"]


def no_namespace(cluster):
    cluster.namespaces.clear()


def no_right(cluster):
    cluster.refused.add("create")


def no_quota(cluster):
    cluster.quota = 0


def no_kubernetes(cluster):
    cluster.broken = (200, "<html>a router</html>")


def overloaded(cluster):
    cluster.broken = (503, "<html>busy</html>")


def away(cluster):
    cluster.shutdown()
    cluster.server_close()


@pytest.mark.parametrize(
    ("broken", "reason", "message", "hint"),
    [
        (no_namespace, "NoNamespace", "the cluster has no namespace ci", "[pools.NAME]"),
        (no_right, "Forbidden", "does not allow the server to create a Job", "Role of the chart"),
        (no_quota, "Quota", "the quota of the namespace ci is used up: .*count/jobs", ""),
        (no_kubernetes, "", "does not answer as Kubernetes does", "KUBECONFIG"),
        (overloaded, "Unavailable", "can't create a Job .* now .HTTP 503", ""),
        (away, "Unavailable", "does not answer", ""),
    ],
)
def test_a_job_that_can_t_be_created_is_one_clear_error(
    api, cluster, broken, reason, message, hint
):
    broken(cluster)
    with pytest.raises(KubernetesError, match=message) as caught:
        api.create_job(manifest())
    assert caught.value.reason == reason
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_token_that_the_cluster_does_not_know_is_said(cluster, tmp_path):
    path = tmp_path / "kubeconfig"
    cluster.kubeconfig(tmp_path)
    path.write_text(path.read_text().replace("secret", "old"))
    api = KubernetesApi({"KUBECONFIG": str(path)})
    with pytest.raises(KubernetesError, match="does not allow the server to list Jobs") as caught:
        api.jobs("ci", LABELS)
    assert "KUBECONFIG" in caught.value.hint
    api.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found"),
        ("a: [", "can't be used"),
        ("just text", "can't be used"),
        ("clusters: []\ncontexts: []\n", "No current context"),
        ("clusters: []\ncontexts: []\ncurrent-context: x\n", "'x' not found"),
        (
            "clusters: [{name: c, cluster: {server: http://x}}]\n"
            "contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n",
            "names no user",
        ),
        (
            "clusters: [{name: c, cluster: {server: https://x, certificate-authority: /none}}]\n"
            "users: [{name: u, user: {token: t}}]\n"
            "contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n",
            "No such file",
        ),
    ],
)
def test_a_kubeconfig_that_can_t_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KubernetesError, match=message) as caught:
        KubernetesApi({"KUBECONFIG": str(path)})
    assert str(path) in str(caught.value)
    assert "KUBECONFIG" in caught.value.hint
