"""The real API says what the fake of the unit tests says: the same errors, the same forms."""

from __future__ import annotations

import uuid

import pytest

from buildrunner.errors import KubernetesError
from buildrunner.kubernetes.api import KubernetesApi
from buildrunner.kubernetes.manifest import LABELS, job_name
from buildrunner.kubernetes.reasons import build_jobs
from tests.kubernetes.conftest import image
from tests.unit.kubernetes.test_api import manifest


@pytest.fixture
def api(kubeconfig):
    opened = KubernetesApi({"KUBECONFIG": kubeconfig})
    yield opened
    opened.close()


def job(cluster, build_id, **settings):
    """A Job whose Pod no node takes."""
    nowhere = {"node_selector": {"tests": "nowhere"}, "namespace": cluster.namespace}
    return manifest(build_id, **{**nowhere, **settings})


def test_a_job_is_created_once_found_and_deleted(api, cluster):
    build_id = str(uuid.uuid4())
    for _ in range(2):
        api.create_job(job(cluster, build_id))

    def unschedulable():
        pods = api.pods(cluster.namespace, LABELS)
        (found,) = build_jobs(
            api.jobs(cluster.namespace, LABELS), pods, api.warnings(cluster.namespace)
        )
        assert (found.build_id, found.ended_at) == (build_id, None)
        return "its Pod can't be scheduled" in found.reason

    cluster.until(unschedulable, "the scheduler's reason", 30)
    for _ in range(2):
        api.delete_job(cluster.namespace, job_name(build_id))
    assert build_jobs(api.jobs(cluster.namespace, LABELS), [], []) == []


def test_an_image_that_is_not_there_is_the_reason(api, cluster):
    build_id = str(uuid.uuid4())
    wrong = {"node_selector": {}, "engine_image": image("no-such-engine"), "cpu": "100m"}
    api.create_job(job(cluster, build_id, memory="64Mi", **wrong))

    def said():
        found = build_jobs(
            api.jobs(cluster.namespace, LABELS),
            api.pods(cluster.namespace, LABELS),
            api.warnings(cluster.namespace),
        )
        return "the engine in its Pod does not start" in found[0].reason

    cluster.until(said, "the reason of the kubelet", 60)
    api.delete_job(cluster.namespace, job_name(build_id))


def test_refusals_have_their_reasons(api, cluster):
    with pytest.raises(KubernetesError) as caught:
        api.create_job(job(cluster, str(uuid.uuid4()), namespace="no-such-namespace"))
    assert caught.value.reason == "NoNamespace"
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none"},
            "spec": {"hard": {"count/jobs.batch": "0"}},
        }
    )

    def refused():
        try:
            api.create_job(job(cluster, str(uuid.uuid4())))
        except KubernetesError as error:
            return error.reason == "Quota"
        return False

    cluster.until(refused, "the quota counts", 30)
    cluster.kubectl("delete", "resourcequota", "none")


def test_the_keys_of_service_accounts_are_read(api):
    issuer, keys = api.account_keys()
    assert issuer.startswith("https://")
    assert all(key["kid"] for key in keys["keys"])
