"""The reasons that Kubernetes gives for a Pod, in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from buildrunner.kubernetes.manifest import LABEL_BUILD, LABEL_POOL, LABELS
from buildrunner.kubernetes.reasons import build_jobs, disruptions, live_pods
from tests.unit.kubernetes.test_api import ID, manifest

NAME = f"build-{ID}"


def the_job(*conditions, **spec):
    made = manifest()
    metadata = {**made["metadata"], "namespace": "ci"}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": list(conditions)}}


def the_pod(**status):
    spec = manifest()["spec"]["template"]["spec"]
    labels = {"batch.kubernetes.io/job-name": NAME}
    metadata = {
        "name": f"{NAME}-abcde",
        "labels": labels,
        "creationTimestamp": "2026-12-01T12:00:00Z",
    }
    return {"metadata": metadata, "spec": {**spec, "nodeName": "n1"}, "status": status}


def condition(kind, reason="", message="", status="True"):
    at = "2026-12-01T12:00:00Z"
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": at,
    }


def container(name, kind, **facts):
    return {"name": name, "state": {kind: facts}}


FAILED = condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
UNSCHEDULABLE = condition(
    "PodScheduled", "Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.", "False"
)
WARNING = {
    "involvedObject": {"name": f"{NAME}-abcde"},
    "message": 'MountVolume.SetUp failed for volume "token"',
    "lastTimestamp": "2026-12-01T12:00:00Z",
}


READY = {"type": "Ready", "status": "True"}
LOST = the_pod(
    phase="Running",
    conditions=[READY | {"status": "False"}, {"type": "ContainersReady", "status": "True"}],
)


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (the_pod(phase="Running"), ""),
        (the_pod(phase="Pending"), ""),
        (
            the_pod(phase="Pending", conditions=[UNSCHEDULABLE]),
            "its Pod can't be scheduled: 0/3 nodes are available: 3 Insufficient cpu",
        ),
        (
            the_pod(
                phase="Pending",
                containerStatuses=[
                    container(
                        "worker",
                        "waiting",
                        reason="ImagePullBackOff",
                        message='Back-off pulling image "w"',
                    )
                ],
            ),
            'the worker in its Pod does not start: ImagePullBackOff: Back-off pulling image "w"',
        ),
        (
            the_pod(
                phase="Pending",
                containerStatuses=[container("worker", "waiting", reason="PodInitializing")],
            ),
            "",
        ),
        (
            the_pod(initContainerStatuses=[container("engine", "terminated", exitCode=1)]),
            "the engine in its Pod ended with exit code 1",
        ),
        (
            the_pod(
                containerStatuses=[
                    container(
                        "worker",
                        "terminated",
                        exitCode=2,
                        message=f"{'x' * 600}\nerror: the token is no worker's\n",
                    )
                ]
            ),
            "the worker in its Pod ended with exit code 2: "
            f"…{'x' * 468} error: the token is no worker's",
        ),
        (
            the_pod(
                initContainerStatuses=[
                    {
                        **container("engine", "running"),
                        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
                    }
                ]
            ),
            "the engine in its Pod ran out of memory (its limit is 4Gi)",
        ),
        (
            the_pod(
                containerStatuses=[
                    container("worker", "terminated", reason="OOMKilled", exitCode=137)
                ]
            ),
            "the worker in its Pod ran out of memory (its limit is 512Mi)",
        ),
        (
            the_pod(
                phase="Failed",
                reason="Evicted",
                message="The node was low on resource: memory. ",
            ),
            "its Pod was evicted from the node n1: The node was low on resource: memory",
        ),
        (
            the_pod(
                conditions=[condition("DisruptionTarget", "PreemptionByScheduler")],
                containerStatuses=[container("worker", "terminated", exitCode=137)],
            ),
            "its Pod was preempted by a Pod with a higher priority (node n1)",
        ),
        (
            the_pod(conditions=[condition("DisruptionTarget", "DeletionByTaintManager")]),
            "its Pod was deleted: its node is lost, or has a new taint (node n1)",
        ),
        (
            the_pod(
                phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node"
            ),
            "its Pod ran longer than the timeout of the build, and was stopped",
        ),
        (the_pod(phase="Failed", message="why"), "its Pod failed: why"),
        (LOST, "its node n1 is not ready"),
        (the_pod(phase="Running", conditions=[READY | {"status": "False"}]), ""),
    ],
)
def test_a_pod_says_why_it_does_not_run(pod, reason):
    (found,) = build_jobs([the_job()], [pod], [])
    assert found.reason == reason


@pytest.mark.parametrize(
    ("job", "pods", "reason"),
    [
        (the_job(FAILED), [], "its Pod was deleted"),
        (
            the_job(
                condition("Failed", "PodFailurePolicy", "Pod x has condition DisruptionTarget")
            ),
            [],
            "its Pod was deleted: Pod x has condition DisruptionTarget",
        ),
        (
            the_job(FAILED),
            [the_pod(phase="Running")],
            "its Job failed: Job has reached the specified backoff limit",
        ),
    ],
)
def test_a_job_that_failed_says_why(job, pods, reason):
    (found,) = build_jobs([job], pods, [])
    assert (found.build_id, found.namespace, found.name) == (ID, "ci", NAME)
    assert found.ended_at == datetime(2026, 12, 1, 12, tzinfo=UTC)
    assert found.reason == reason


def test_a_completed_job_has_ended_for_no_reason():
    pod = the_pod(
        phase="Succeeded", containerStatuses=[container("worker", "terminated", exitCode=0)]
    )
    (found,) = build_jobs([the_job(condition("Complete"))], [pod], [WARNING])
    assert (found.ended_at is not None, found.reason) == (True, "")


def test_events_say_why_a_pod_does_not_start_until_it_runs():
    text = 'its Pod does not start: MountVolume.SetUp failed for volume "token"'
    for phase, reason in (("Pending", text), ("Running", "")):
        (found,) = build_jobs([the_job()], [the_pod(phase=phase)], [WARNING])
        assert found.reason == reason


def test_a_job_without_a_pod_says_why_it_has_none():
    refused = "violates PodSecurity: privileged"
    warning = {"involvedObject": {"name": NAME}, "message": refused, "lastTimestamp": None}
    (found,) = build_jobs([the_job()], [], [WARNING, warning])
    assert found.reason == f"its Pod does not start: {refused}"


def test_a_job_that_kueue_holds_back_says_so():
    waits = manifest(queue="team")
    waits["metadata"]["namespace"] = "ci"
    (found,) = build_jobs([waits], [], [])
    assert found.reason == "its Job waits for the queue team of Kueue"


def test_other_jobs_and_jobs_that_are_being_deleted_do_not_count():
    other = {"metadata": {"name": "x", "namespace": "ci", "labels": LABELS}}
    going = the_job()
    going["metadata"]["deletionTimestamp"] = "2026-12-01T12:00:00Z"
    assert build_jobs([other, going], [], []) == []


def test_a_pod_that_is_gone_was_disrupted_as_it_said():
    message = "Pod ci/x has condition DisruptionTarget matching FailJob rule at index 0"
    failed = the_job(condition("Failed", "PodFailurePolicy", message))
    evicted = the_pod(conditions=[condition("DisruptionTarget", "EvictionByEvictionAPI")])
    evicted["metadata"]["labels"][LABEL_BUILD] = ID
    known = disruptions([evicted, the_pod(phase="Running")])
    assert known == {ID: "its Pod was evicted, as when a node is drained (node n1)"}
    assert build_jobs([failed], [], [])[0].reason == f"its Pod was deleted: {message}"
    assert build_jobs([failed], [], [], known)[0].reason == known[ID]
    assert build_jobs([the_job()], [], [], known)[0].reason == ""
    (ends,) = build_jobs([the_job()], [evicted], [])
    assert (ends.disrupted, ends.ended_at) == (True, None)
    (lost,) = build_jobs([the_job()], [LOST], [])
    assert (lost.disrupted, lost.node_lost) == (False, True)
    (runs,) = build_jobs([the_job()], [the_pod(phase="Running")], [])
    assert (runs.disrupted, runs.node_lost) == (False, False)


@pytest.mark.parametrize(
    ("phase", "live"),
    [("Pending", True), ("Running", True), ("Succeeded", False), ("Failed", False)],
)
def test_a_pod_lives_until_it_has_ended(phase, live):
    pod = the_pod(phase=phase)
    pod["metadata"]["labels"] |= {LABEL_BUILD: ID, LABEL_POOL: "arm"}
    assert live_pods([pod]) == ({ID: "arm"} if live else {})


@pytest.mark.parametrize(
    "message",
    [
        "Pod ephemeral local storage usage exceeds the total limit of containers 50Gi. ",
        'Usage of EmptyDir volume "disk" exceeds the limit "50Gi". ',
        'Container engine exceeded its local ephemeral storage limit "50Gi". ',
    ],
)
def test_a_build_that_wrote_more_to_the_disk_than_it_may_is_told_so(message):
    """The messages of the kubelet, in pkg/kubelet/eviction/helpers.go."""
    pod = the_pod(phase="Failed", reason="Evicted", message=message)
    (found,) = build_jobs([the_job(FAILED)], [pod], [])
    words = "the build wrote more to the disk than it may (its limit is 50Gi): its Pod was evicted"
    assert found.reason == f"{words}: {message.strip().rstrip('.')}"
    assert disruptions([pod]) == {"": found.reason}


def test_jobs_come_from_lightkube_in_the_same_form(api, cluster):
    api.create_job(manifest())
    (job,), (pod,) = cluster.of("jobs"), cluster.of("pods")
    job["status"]["conditions"] = [FAILED]
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "no disk"}
    (found,) = build_jobs(api.jobs("ci", LABELS), api.pods("ci", LABELS), api.warnings("ci"))
    assert found.ended_at == datetime(2026, 12, 1, 12, tzinfo=UTC)
    assert found.reason == "its Pod was evicted: no disk"
