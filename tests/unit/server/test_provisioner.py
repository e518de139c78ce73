"""The provisioner between a real queue and a server that answers as Kubernetes does."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from buildrunner.addresses import Egress
from buildrunner.kubernetes.api import KubernetesApi
from buildrunner.kubernetes.pool import Pool
from buildrunner.server.services.provisioner import Provisioner
from buildrunner.store.model.builds import ClaimScope, KnownServer, Lease, NewBuild
from tests.conftest import wait_until
from tests.fake_cluster import fake_cluster
from tests.server_databases import new_store

POOL = Pool(
    name="arm", server="http://ci", worker_image="w", engine_image="e", namespace="ci", max_builds=2
)


@pytest.fixture
def cluster():
    with fake_cluster() as running:
        yield running


class World:
    """A queue, a cluster, and the provisioner between them."""

    def __init__(self, store, cluster, api):
        self.store, self.cluster, self.api = store, cluster, api
        self.now = datetime(2026, 12, 1, 12, tzinfo=UTC)
        self.lost = []
        self.provisioner = self.another()

    def another(self, pool=POOL, **options):
        def report(lease, reason):
            self.lost.append((lease, reason))

        pools = {"arm": pool}
        return Provisioner(self.store, self.api, pools, report, lambda: self.now, **options)

    def build(self, pool="arm", facts=None, **fields):
        build_id = str(uuid.uuid4())
        document = {"id": build_id, "projectId": "p", "status": "QUEUED", "steps": [], **fields}
        document["createTime"] = "2026-12-01T12:00:00Z"
        expires = self.now + timedelta(hours=1)
        self.store.builds.create(
            NewBuild(document=document, request={}, expires_at=expires, pool=pool, **(facts or {}))
        )
        return build_id

    def claim(self, build_id):
        found = self.store.queue.claim(
            "worker:pod:u1/host/1",
            now=self.now,
            lease_s=30,
            limit=1,
            scope=ClaimScope(pool="arm", build_id=build_id),
        )
        return found[1]

    def end(self, lease, status="SUCCESS"):
        document = self.store.builds.find(lease.build_id).document
        ended = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        self.store.queue.record(lease, {**document, "status": status, "finishTime": ended})

    def why(self, build_id):
        return self.store.queue.why_waiting(build_id, now=self.now, limit=0).text

    def turn(self, seconds=0):
        self.now += timedelta(seconds=seconds)
        self.provisioner.turn()

    def jobs(self):
        return [job["metadata"]["name"].removeprefix("build-") for job in self.cluster.of("jobs")]


@pytest.fixture
def world(cluster, tmp_path):
    store = new_store(str(tmp_path / "server"))
    api = KubernetesApi({"KUBECONFIG": cluster.kubeconfig(tmp_path)})
    yield World(store, cluster, api)
    api.close()
    store.close()


def test_a_build_of_the_pool_gets_a_job_of_its_size(world):
    world.build(pool="")
    options = {"machineType": "E2_HIGHCPU_8", "diskSizeGb": "200"}
    build = world.build(options=options, timeout="120s")
    world.turn()
    world.turn()
    assert world.jobs() == [build]
    (job,) = world.cluster.of("jobs")
    pod = job["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["resources"]["limits"]["cpu"] == "8"
    assert pod["volumes"][0]["emptyDir"] == {"sizeLimit": "200G"}
    assert pod["activeDeadlineSeconds"] == (2 + 15) * 60
    assert world.why(build) == "Its Pod starts."


def test_the_role_of_the_chart_owns_the_job_and_without_it_no_job_is_made(world):
    provisioner = world.another(replace(POOL, owner="ci-pools"))
    build = world.build()
    provisioner.turn()
    assert world.jobs() == []
    assert world.why(build) == (
        f"Kubernetes at {world.cluster.url} refuses to read the Role ci-pools in the namespace ci:"
        ' roles "ci-pools" not found.'
    )
    world.cluster.add("roles", "ci", {"metadata": {"name": "ci-pools"}})
    world.now += timedelta(seconds=30)
    provisioner.turn()
    (role,), (job,) = world.cluster.of("roles"), world.cluster.of("jobs")
    assert job["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "name": "ci-pools",
            "uid": role["metadata"]["uid"],
        }
    ]


def test_the_pod_of_a_build_has_the_networks_of_its_project(world):
    denied = Egress(deny=("10.0.0.0/8",))
    world.build()
    world.another(egress={"p": denied}.__getitem__).turn()
    (job,) = world.cluster.of("jobs")
    env = job["spec"]["template"]["spec"]["initContainers"][0]["env"]
    assert {"name": "EGRESS_DENY", "value": "10.0.0.0/8"} in env


@pytest.mark.parametrize(
    ("demanded", "jobs"), [("", 1), ("capabilities", 1), ("user-namespace", 0)]
)
def test_a_fork_gets_a_pod_that_isolates_it_as_the_server_demands(world, demanded, jobs):
    pool = replace(POOL, isolation="capabilities")
    world.build(facts={"untrusted": True})
    world.another(pool, isolation=demanded).turn()
    assert len(world.jobs()) == jobs


def test_the_worker_of_an_uploaded_source_reaches_the_server_that_has_it(world):
    def reached():
        (job,) = world.cluster.of("jobs")
        return job["spec"]["template"]["spec"]["containers"][0]["args"][1]

    for name, only, url in (
        ("a", "a", "http://ci"),
        ("b", "b", "http://b:8080"),
        ("b", "", "http://ci"),
    ):
        known = KnownServer(name=name, url=f"http://{name}:8080", started_at=world.now)
        world.store.servers.put(known)
        build = world.build(facts={"only_worker": only})
        world.turn()
        assert reached() == f"--server={url}"
        world.store.builds.request_cancel("p", build, now=world.now)
        world.turn(15)


def test_a_pool_runs_as_many_builds_as_it_may(world):
    builds = [world.build() for _ in range(3)]
    world.turn()
    assert len(world.jobs()) == 2
    (last,) = set(builds) - set(world.jobs())
    assert world.why(last) == "No more than 2 builds of the pool arm may run."
    done = world.jobs()[0]
    world.end(world.claim(done))
    world.turn()
    assert last not in world.jobs()  # the Pod has not ended yet
    (pod,) = [one for one in world.cluster.of("pods") if done in one["metadata"]["name"]]
    pod["status"]["phase"] = "Succeeded"
    world.turn()
    assert last in world.jobs()


def test_what_a_pod_waits_for_is_why_its_build_waits(world):
    build = world.build()
    world.turn()
    (pod,) = world.cluster.of("pods")
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: no cpu"}
    pod["status"]["conditions"] = [condition]
    world.turn()
    assert world.why(build) == "Its Pod can't be scheduled: 0/1 nodes: no cpu."


def test_events_are_read_while_a_pod_is_pending(world):
    build = world.build()
    world.turn()
    (pod,) = world.cluster.of("pods")
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"name": pod["metadata"]["name"]},
        "type": "Warning",
        "message": "no such volume",
    }
    world.cluster.add("events", "ci", event)
    world.turn()
    assert world.why(build) == "Its Pod does not start: no such volume."
    pod["status"]["phase"] = "Running"
    world.cluster.requests.clear()
    world.turn()
    assert not [one for one in world.cluster.requests if one.endswith("/events")]


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (lambda cluster: setattr(cluster, "quota", 0), "The quota of the namespace ci is used up"),
        (lambda cluster: cluster.namespaces.clear(), "The cluster has no namespace ci."),
        (lambda cluster: cluster.refused.add("create"), "does not allow the server to create"),
        (lambda cluster: cluster.refused.add("list"), "does not allow the server to list Jobs"),
        (lambda cluster: setattr(cluster, "broken", (503, "")), "can't list Jobs in the namespace"),
    ],
)
def test_a_cluster_that_refuses_jobs_loses_no_build(world, broken, text):
    builds = [world.build(), world.build()]
    before = dict(vars(world.cluster))
    saved = {"quota": None, "namespaces": {"ci"}, "refused": set(), "broken": None}
    broken(world.cluster)
    world.turn()
    assert world.jobs() == []
    assert sum(one.startswith("POST") for one in world.cluster.requests) <= 1
    for build in builds:
        assert text in world.why(build)
    vars(world.cluster).update({**before, **saved})
    world.turn()
    assert sorted(world.jobs()) == sorted(builds)


def test_a_job_that_the_cluster_denies_holds_up_no_other(world):
    """Issue: a build with a machine that a policy forbids stopped the pool for all projects."""
    denied, other = world.build(), world.build()
    world.cluster.denied.add(f"build-{denied}")
    world.turn()
    assert world.jobs() == [other]
    assert "denied the request: too large" in world.why(denied)


def test_builds_whose_jobs_are_denied_again_and_again_hold_no_place_of_the_pool(world):
    """Issue: a project whose builds all were denied had the fewest running, so came first."""
    denied = [world.build(projectId="a") for _ in range(6)]
    world.cluster.denied.update(f"build-{build}" for build in denied)
    others = [world.build(projectId="b") for _ in range(2)]
    for _ in range(3):
        world.turn(2)
    assert sorted(world.jobs()) == sorted(others)
    tried = sum(one.startswith("POST") for one in world.cluster.requests)
    world.turn(2)
    assert sum(one.startswith("POST") for one in world.cluster.requests) == tried
    assert any("denied the request: too large" in world.why(build) for build in denied)


def test_builds_of_higher_priority_do_not_make_a_pool_forget_the_jobs_that_it_has(world):
    first = [world.build() for _ in range(2)]
    world.turn()
    assert sorted(world.jobs()) == sorted(first)
    for _ in range(101):
        world.build(facts={"priority": 9})
    world.turn(2)
    assert sorted(world.jobs()) == sorted(first)


def test_a_build_whose_job_was_denied_gets_one_once_the_policy_allows_it(world):
    build = world.build()
    world.cluster.denied.add(f"build-{build}")
    world.turn()
    world.cluster.denied.clear()
    world.turn(29)
    assert world.jobs() == []
    world.turn(1)
    assert world.jobs() == [build]


def test_a_running_build_whose_job_was_deleted_is_reported_lost(world):
    build = world.build()
    world.turn()
    lease = world.claim(build)
    world.cluster.remove_job("ci", f"build-{build}")
    world.turn(9)
    assert world.lost == []
    world.turn(1)
    assert world.lost == [(Lease(build, lease.fence), "its Job was deleted")]


def test_a_build_whose_pod_was_evicted_is_lost_for_that_reason(world):
    build = world.build()
    world.turn()
    world.claim(build)
    (pod,) = world.cluster.of("pods")
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    pod["status"] = {"phase": "Running", "conditions": [disrupted]}
    world.turn()
    (job,) = world.cluster.of("jobs")
    at = f"{world.now:%Y-%m-%dT%H:%M:%SZ}"
    job["status"]["conditions"] = [
        {"type": "Failed", "status": "True", "lastTransitionTime": at, "reason": "PodFailurePolicy"}
    ]
    del world.cluster.objects["pods", "ci", pod["metadata"]["name"]]
    world.turn(10)
    ((_, reason),) = world.lost
    assert reason == "its Pod was evicted, as when a node is drained"


def test_a_build_that_is_queued_again_gets_another_job(world):
    build = world.build()
    world.turn()
    lease = world.claim(build)
    (job,) = world.cluster.of("jobs")
    failed = f"{world.now:%Y-%m-%dT%H:%M:%SZ}"
    condition = {"type": "Failed", "status": "True", "lastTransitionTime": failed}
    job["status"]["conditions"] = [condition]
    world.store.queue.run_again(build, instead_of=lease.fence, now=world.now, reason="lost")
    world.turn(29)
    assert "Another Pod follows" in world.why(build)
    world.turn(1)
    assert world.jobs() == []
    world.turn()
    assert world.jobs() == [build]


def test_the_job_of_a_cancelled_build_is_deleted(world):
    build = world.build()
    world.turn()
    world.store.builds.request_cancel("p", build, now=world.now)
    world.turn(14)
    assert world.jobs() == [build]
    world.turn(1)
    assert world.jobs() == []


def test_a_job_of_another_server_stays(world):
    world.build()
    world.turn()
    (job,) = world.cluster.of("jobs")
    job["metadata"]["labels"]["buildrunner.dev/build"] = str(uuid.uuid4())
    world.store.builds.request_cancel("p", world.jobs()[0], now=world.now)
    world.turn(3600)
    assert len(world.jobs()) == 1


def test_the_loop_makes_a_job_as_soon_as_it_is_woken(world, cluster, monkeypatch):
    monkeypatch.setattr("buildrunner.server.services.provisioner._LOOK_S", 600)
    provisioner = world.another()
    provisioner.start()
    wait_until(lambda: bool(cluster.requests))
    world.build()
    provisioner.wake()
    wait_until(lambda: bool(cluster.of("jobs")))
    provisioner.stop()
    provisioner.stop()
    assert len(world.jobs()) == 1


class TestSpares:
    @pytest.fixture
    def provisioner(self, world):
        return world.another(replace(POOL, spare=1))

    @staticmethod
    def ready(world):
        """Let all Pods run."""
        for pod in world.cluster.of("pods"):
            conditions = [{"type": "Ready", "status": "True"}]
            pod["status"] = {"phase": "Running", "conditions": conditions}

    @staticmethod
    def claimed(world, build_id):
        """Claim a build as the first spare Pod does; return the lease and the name of the Job."""
        names = [job["metadata"]["name"] for job in world.cluster.of("jobs")]
        job = next(name for name in names if name.startswith("spare-"))
        scope = ClaimScope(pool="arm", build_id=build_id, spare=job)
        found = world.store.queue.claim(
            "worker:pod:u1/host/1", now=world.now, lease_s=30, limit=1, scope=scope
        )
        return found[1], job

    def test_a_spare_pod_waits_for_any_build_of_its_pool(self, world, provisioner):
        provisioner.turn()
        provisioner.turn()
        (job,) = world.cluster.of("jobs")
        pod = job["spec"]["template"]["spec"]
        assert job["metadata"]["name"].startswith("spare-")
        assert "activeDeadlineSeconds" not in pod
        arguments = pod["containers"][0]["args"]
        assert "--pool=arm" in arguments
        assert not [one for one in arguments if one.startswith("--build")]

    def test_a_build_that_fits_is_left_to_it_and_another_pod_replaces_it(self, world, provisioner):
        provisioner.turn()
        self.ready(world)
        build = world.build()
        provisioner.turn()
        assert world.why(build) == "A spare Pod of its pool takes it."
        _, job = self.claimed(world, build)
        provisioner.turn()
        names = {one["metadata"]["name"] for one in world.cluster.of("jobs")}
        assert job in names
        assert len(names) == 2
        assert all(name.startswith("spare-") for name in names)

    @pytest.mark.parametrize(
        "fields", [{"options": {"machineType": "E2_HIGHCPU_8"}}, {"projectId": "walled"}]
    )
    def test_a_build_that_needs_another_pod_gets_a_job(self, world, fields):
        denied = Egress(deny=("10.0.0.0/8",))
        provisioner = world.another(
            replace(POOL, spare=1), egress=lambda name: denied if name == "walled" else Egress()
        )
        provisioner.turn()
        self.ready(world)
        build = world.build(**fields)
        provisioner.turn()
        assert f"build-{build}" in [one["metadata"]["name"] for one in world.cluster.of("jobs")]

    def test_a_build_whose_spare_pod_was_deleted_is_reported_lost(self, world, provisioner):
        build = world.build()
        provisioner.turn()
        self.ready(world)
        lease, job = self.claimed(world, build)
        provisioner.turn()
        assert world.lost == []
        world.cluster.remove_job("ci", job)
        world.now += timedelta(seconds=10)
        provisioner.turn()
        assert world.lost == [(Lease(build, lease.fence), "its Job was deleted")]

    def test_the_job_of_a_spare_pod_whose_build_has_ended_is_deleted(self, world, provisioner):
        build = world.build()
        provisioner.turn()
        self.ready(world)
        lease, job = self.claimed(world, build)
        world.end(lease)
        world.now += timedelta(seconds=16)
        provisioner.turn()
        assert job not in [one["metadata"]["name"] for one in world.cluster.of("jobs")]

    def test_the_job_of_a_spare_pod_whose_build_was_deleted_is_deleted(self, world, provisioner):
        """No deadline ends such a Pod, and it must not count as one that waits for a build."""
        build = world.build()
        provisioner.turn()
        self.ready(world)
        lease, job = self.claimed(world, build)
        world.end(lease)
        world.store.retention.delete("p", build, now=world.now)
        world.turn()
        provisioner.turn()
        assert job not in [one["metadata"]["name"] for one in world.cluster.of("jobs")]

    def test_spare_pods_of_another_server_in_the_namespace_stay(self, world, provisioner):
        world.another(replace(POOL, spare=1, server="http://other")).turn()
        provisioner.turn()
        provisioner.turn()
        assert len(world.cluster.of("jobs")) == 2

    def test_a_cluster_that_refuses_spare_pods_is_asked_again_after_a_while(
        self, world, provisioner
    ):
        world.cluster.quota = 0
        for _ in range(3):
            provisioner.turn()
        assert sum(one.startswith("POST") for one in world.cluster.requests) == 1
        world.cluster.quota = None
        world.now += timedelta(seconds=30)
        provisioner.turn()
        assert len(world.cluster.of("jobs")) == 1
