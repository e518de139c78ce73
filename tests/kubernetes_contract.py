"""The contract of the API of Kubernetes: kept by a real cluster, and by `fake_cluster`.

A module of tests makes a class of `KubernetesContract`, and the fixtures `api` and `place`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from buildrunner.errors import KubernetesError
from buildrunner.kubernetes.api import KubernetesApi
from buildrunner.kubernetes.manifest import LABEL_BUILD, LABEL_POOL, LABELS, job_name
from buildrunner.kubernetes.reasons import build_jobs, live_pods
from tests.unit.kubernetes.test_api import manifest

NOWHERE = {"tests": "nowhere"}


class Place(Protocol):
    """A namespace of a cluster.

    Attributes:
        namespace: its name.
    """

    namespace: str

    def add(self, kind: str, manifest: dict[str, Any]) -> None:
        """Create an object, of the kinds that the contract names."""
        ...

    def allow_no_jobs(self) -> None:
        """Give the namespace a quota of no Jobs."""
        ...

    def until(self, true: Callable[[], object], what: str) -> Any:
        """Wait until a condition is true, and return its value."""
        ...


class KubernetesContract:
    """A Job in it has a Pod that no node takes."""

    def job(self, place: Place, build_id: str, **settings: Any) -> dict[str, Any]:
        return dict(
            manifest(
                build_id, **{"node_selector": NOWHERE, "namespace": place.namespace, **settings}
            )
        )

    def test_a_job_is_created_once_found_and_deleted(
        self, api: KubernetesApi, place: Place
    ) -> None:
        build_id = str(uuid.uuid4())
        wanted = self.job(place, build_id)
        for _ in range(2):
            api.create_job(wanted)
        (job,) = api.jobs(place.namespace, LABELS)
        place.until(lambda: api.pods(place.namespace, LABELS), "its Pod")
        (pod,) = api.pods(place.namespace, LABELS)
        for found in (job, pod):
            labels = found["metadata"]["labels"]
            assert (labels[LABEL_BUILD], labels[LABEL_POOL]) == (build_id, "arm")
        assert job["metadata"]["name"] == job_name(build_id)
        assert job["spec"]["backoffLimit"] == 0
        assert pod["spec"]["nodeSelector"] == NOWHERE
        (read,) = build_jobs([job], [pod], [])
        assert (read.build_id, read.ended_at, read.disrupted) == (build_id, None, False)
        assert live_pods([pod]) == {build_id: "arm"}
        assert api.jobs(place.namespace, {**LABELS, LABEL_POOL: "other"}) == []
        for _ in range(2):
            api.delete_job(place.namespace, job_name(build_id))
        assert build_jobs(api.jobs(place.namespace, LABELS), [], []) == []
        place.until(lambda: not api.pods(place.namespace, LABELS), "the end of its Pod")

    def test_a_namespace_that_does_not_exist_is_named(
        self, api: KubernetesApi, place: Place
    ) -> None:
        with pytest.raises(KubernetesError, match="no namespace no-such-namespace") as caught:
            api.create_job(self.job(place, str(uuid.uuid4()), namespace="no-such-namespace"))
        assert caught.value.reason == "NoNamespace"

    def test_of_the_events_only_warnings_are_listed(self, api: KubernetesApi, place: Place) -> None:
        about = {"kind": "Pod", "namespace": place.namespace, "name": "p"}
        words = {"Warning": f"w{uuid.uuid4()}", "Normal": f"n{uuid.uuid4()}"}
        for kind, message in words.items():
            metadata = {"name": f"e{uuid.uuid4()}", "namespace": place.namespace}
            event = {"metadata": metadata, "involvedObject": about, "type": kind}
            place.add("events", {**event, "reason": "Tests", "message": message})
        said = [one["message"] for one in api.warnings(place.namespace)]
        assert words["Warning"] in said
        assert words["Normal"] not in said

    def test_a_role_owns_jobs(self, api: KubernetesApi, place: Place) -> None:
        metadata = {"name": "pools", "namespace": place.namespace}
        place.add("roles", {"metadata": metadata, "rules": []})
        owner = api.owner(place.namespace, "pools")
        build_id = str(uuid.uuid4())
        api.create_job(
            {**self.job(place, build_id), "metadata": self._owned(place, build_id, owner)}
        )
        (job,) = api.jobs(place.namespace, {LABEL_BUILD: build_id})
        (shown,) = job["metadata"]["ownerReferences"]
        assert owner.items() <= shown.items()
        api.delete_job(place.namespace, job_name(build_id))
        with pytest.raises(KubernetesError) as caught:
            api.owner(place.namespace, "no-such-role")
        assert caught.value.reason == "NotFound"

    def _owned(self, place: Place, build_id: str, owner: dict[str, str]) -> dict[str, Any]:
        metadata: dict[str, Any] = self.job(place, build_id)["metadata"]
        return {**metadata, "ownerReferences": [owner]}

    def test_a_quota_that_is_used_up_is_the_reason(self, api: KubernetesApi, place: Place) -> None:
        place.allow_no_jobs()

        def refused() -> bool:
            try:
                api.create_job(self.job(place, str(uuid.uuid4())))
            except KubernetesError as error:
                return error.reason == "Quota" and "count/jobs" in str(error)
            return False

        place.until(refused, "the quota counts")

    def test_the_keys_of_service_accounts_come_with_their_issuer(self, api: KubernetesApi) -> None:
        issuer, keys = api.account_keys()
        assert issuer.startswith("https://")
        assert keys["keys"]
        assert all(key["kid"] for key in keys["keys"])
