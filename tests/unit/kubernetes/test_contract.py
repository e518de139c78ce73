"""The fake cluster of the tests says what a real one says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.fake_cluster import FakeCluster
from tests.kubernetes_contract import KubernetesContract


class FakePlace:
    """See `kubernetes_contract.Place`."""

    namespace = "ci"

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def add(self, kind: str, manifest: dict[str, Any]) -> None:
        self._cluster.add(kind, self.namespace, manifest)

    def allow_no_jobs(self) -> None:
        self._cluster.quota = 0

    def until(self, true: Callable[[], object], what: str) -> Any:
        wait_until(true)


@pytest.fixture
def place(cluster: FakeCluster) -> FakePlace:
    cluster.keys = [{"kid": "1"}]
    return FakePlace(cluster)


@pytest.mark.usefixtures("place")
class TestTheFakeApi(KubernetesContract):
    """See `KubernetesContract`."""
