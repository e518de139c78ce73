"""A cluster for the tests of what talks to one."""

from __future__ import annotations

import pytest

from buildrunner.kubernetes.api import KubernetesApi
from tests.fake_cluster import fake_cluster


@pytest.fixture
def cluster():
    with fake_cluster() as running:
        yield running


@pytest.fixture
def api(cluster, tmp_path):
    opened = KubernetesApi({"KUBECONFIG": cluster.kubeconfig(tmp_path)})
    yield opened
    opened.close()
