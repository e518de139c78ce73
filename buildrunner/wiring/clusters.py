"""The cluster on which the pools of a server are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildrunner.kubernetes.api import KubernetesApi
    from buildrunner.kubernetes.pod_tokens import PodTokens
    from buildrunner.settings import Settings
    from buildrunner.store.sql.store import ServerStore


def kubernetes_api() -> KubernetesApi:
    """The API of the cluster that the environment names. Opens no connection yet.

    Raises:
        KubernetesError: nothing names a cluster, or packages are missing.
    """
    from buildrunner.kubernetes.api import KubernetesApi

    return KubernetesApi()


def pod_tokens(api: KubernetesApi, settings: Settings, store: ServerStore) -> PodTokens:
    """Return what verifies the tokens of the Pods of the server's builds."""
    from buildrunner.errors import NotFound
    from buildrunner.kubernetes.pod_tokens import PodTokens

    def pool_of(build_id: str) -> str:
        try:
            return store.builds.find(build_id).pool
        except NotFound:
            return ""

    return PodTokens(api.account_keys, settings.pools, pool_of)
