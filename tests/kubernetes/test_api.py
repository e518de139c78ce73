"""The real API says what the fake of the unit tests says: the same errors, the same forms."""

from __future__ import annotations

import uuid

import pytest

from buildrunner.kubernetes.api import KubernetesApi
from buildrunner.kubernetes.manifest import LABELS, job_name
from buildrunner.kubernetes.reasons import build_jobs
from tests.kubernetes.conftest import image, namespace
from tests.kubernetes_contract import KubernetesContract
from tests.unit.kubernetes.test_api import manifest

KINDS = {"events": ("v1", "Event"), "roles": ("rbac.authorization.k8s.io/v1", "Role")}


@pytest.fixture
def api(kubeconfig):
    opened = KubernetesApi({"KUBECONFIG": kubeconfig})
    yield opened
    opened.close()


class RealPlace:
    """A namespace of the cluster. See `kubernetes_contract.Place`."""

    def __init__(self, cluster):
        self.namespace = cluster.namespace
        self.until = cluster.until
        self._cluster = cluster

    def add(self, kind, manifest):
        version, name = KINDS[kind]
        self._cluster.apply({"apiVersion": version, "kind": name, **manifest})

    def allow_no_jobs(self):
        metadata = {"name": "none", "namespace": self.namespace}
        spec = {"hard": {"count/jobs.batch": "0"}}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": spec}
        self._cluster.apply(quota)


@pytest.fixture
def place(kubeconfig, tools):
    with namespace(kubeconfig, tools) as found:
        yield RealPlace(found)


class TestTheRealApi(KubernetesContract):
    """See `KubernetesContract`."""


def job(cluster, build_id, **settings):
    """A Job whose Pod no node takes."""
    nowhere = {"node_selector": {"tests": "nowhere"}, "namespace": cluster.namespace}
    return manifest(build_id, **{**nowhere, **settings})


def test_a_pod_that_no_node_takes_has_the_scheduler_s_reason(api, cluster):
    build_id = str(uuid.uuid4())
    api.create_job(job(cluster, build_id))

    def unschedulable():
        pods = api.pods(cluster.namespace, LABELS)
        (found,) = build_jobs(
            api.jobs(cluster.namespace, LABELS), pods, api.warnings(cluster.namespace)
        )
        assert (found.build_id, found.ended_at) == (build_id, None)
        return "its Pod can't be scheduled" in found.reason

    cluster.until(unschedulable, "the scheduler's reason", 30)
    api.delete_job(cluster.namespace, job_name(build_id))


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
