"""The Job of a build, and that every supported release of Kubernetes knows all of its fields."""

from __future__ import annotations

import argparse
from datetime import timedelta

import kubernetes_validate
import pytest

from buildrunner.addresses import Egress
from buildrunner.cli.serve import remote_worker
from buildrunner.kubernetes.manifest import (
    ENGINE,
    LABEL_BUILD,
    LABEL_POOL,
    SOCKET,
    WORKER,
    PodBuild,
    job_manifest,
    spare_manifest,
    spare_version,
)
from buildrunner.kubernetes.pool import ISOLATIONS, Pool
from buildrunner.plan.compile import MACHINE_LIMITS
from buildrunner.sandboxes.pod import ENGINE_DATA, VOLUMES
from buildrunner.spec.model.build import MachineType

BUILD = PodBuild(id="aef20688-6937-4742-bce1-5f0b81931d41", timeout=timedelta(minutes=10))
POOL = Pool(
    name="ci",
    server="http://buildrunner:8080",
    worker_image="buildrunner/worker:1",
    engine_image="buildrunner/engine:1",
)
DISK = {"ephemeral-storage": "50Gi"}
UNRESERVED = {"ephemeral-storage": "0"}
RELEASES = ("1.34", "1.35", "1.36", "1.37")


def pool(**settings):
    return Pool(**{**{name: getattr(POOL, name) for name in POOL.__struct_fields__}, **settings})


def job(build=BUILD, **settings):
    return job_manifest(build, pool(**settings))


def pod(build=BUILD, **settings):
    return job(build, **settings)["spec"]["template"]["spec"]


def engine(build=BUILD, **settings):
    (container,) = pod(build, **settings)["initContainers"]
    assert container["name"] == ENGINE
    return container


def worker(build=BUILD, **settings):
    (container,) = pod(build, **settings)["containers"]
    assert container["name"] == WORKER
    return container


EVERYTHING = {
    "namespace": "builds",
    "pull_secrets": ("registry",),
    "node_selector": {"pool": "builds"},
    "tolerations": ("builds=yes:NoSchedule", "spot"),
    "runtime_class": "kata",
    "priority_class": "low",
    "queue": "team",
    "disk": "50Gi",
    "mirror": "http://mirror:5000",
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["least", "everything"])
def test_each_release_of_kubernetes_knows_every_field(release, isolation, settings):
    build = PodBuild(
        id=BUILD.id,
        timeout=BUILD.timeout,
        limits=MACHINE_LIMITS[MachineType.N1_HIGHCPU_8],
        disk_gb=200,
    )
    manifest = job(build, isolation=isolation, **settings)
    kubernetes_validate.validate(manifest, release, strict=True)


def test_the_schemas_refuse_a_field_that_does_not_exist():
    manifest = job()
    manifest["spec"]["template"]["spec"]["hostUser"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.36", strict=True)


def test_kubernetes_never_runs_a_build_again_by_itself():
    spec = job()["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"


def test_the_deadline_of_the_pod_is_behind_the_timeout_of_the_build():
    assert pod()["activeDeadlineSeconds"] == (10 + 15) * 60


def test_a_job_waits_for_a_node_without_a_deadline():
    assert "activeDeadlineSeconds" not in job()["spec"]


NUMBER = "aef20688-6937-4742-bce1-5f0b81931d41"


@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_accepts_a_spare_job(release):
    long = pool(name="p" * 63)
    manifest = spare_manifest(long, NUMBER, Egress())
    assert len(manifest["metadata"]["name"]) <= 63
    kubernetes_validate.validate(manifest, release, strict=True)


def test_a_spare_pod_is_that_of_a_build_without_its_id_and_its_deadline():
    spare = spare_manifest(pool(), NUMBER, Egress())["spec"]["template"]["spec"]
    of_build = pod(PodBuild(id=BUILD.id, timeout=BUILD.timeout))
    del of_build["activeDeadlineSeconds"]
    arguments = of_build["containers"][0]["args"]
    arguments.remove(f"--build={BUILD.id}")
    assert spare == of_build


def test_what_a_spare_pod_is_made_of_has_a_version():
    same = spare_version(pool(), Egress())
    assert same == spare_version(pool(spare=3, max_builds=9), Egress())
    for other in (spare_version(pool(cpu="3"), Egress()), spare_version(pool(), Egress(deny=()))):
        assert other != same


def test_job_and_pod_carry_the_labels_by_which_the_server_finds_them():
    manifest = job()
    wanted = {LABEL_BUILD: BUILD.id, LABEL_POOL: "ci"}
    for metadata in (manifest["metadata"], manifest["spec"]["template"]["metadata"]):
        assert wanted.items() <= metadata["labels"].items()


@pytest.mark.parametrize(
    ("machine", "limits", "requests"),
    [
        (
            MachineType.UNSPECIFIED,
            {"cpu": "2", "memory": "4Gi", **DISK},
            {"cpu": "2000m", "memory": "4Gi", **UNRESERVED},
        ),
        (
            MachineType.E2_HIGHCPU_8,
            {"cpu": "8", "memory": str(8 << 30), **DISK},
            {"cpu": "8000m", "memory": str(8 << 30), **UNRESERVED},
        ),
        (
            MachineType.E2_MEDIUM,
            {"cpu": "1", "memory": str(4 << 30), **DISK},
            {"cpu": "1000m", "memory": str(4 << 30), **UNRESERVED},
        ),
    ],
)
def test_the_machine_type_is_the_size_of_the_engine(machine, limits, requests):
    build = PodBuild(id=BUILD.id, timeout=BUILD.timeout, limits=MACHINE_LIMITS[machine])
    assert engine(build)["resources"] == {"limits": limits, "requests": requests}


@pytest.mark.parametrize(
    ("cpu", "percent", "reserved"),
    [("2", 50, "1000m"), ("500m", 50, "250m"), ("1.5", 100, "1500m"), ("1m", 1, "1m")],
)
def test_a_pool_reserves_a_share_of_the_processors(cpu, percent, reserved):
    resources = engine(cpu=cpu, cpu_request_percent=percent)["resources"]
    assert (resources["limits"]["cpu"], resources["requests"]["cpu"]) == (cpu, reserved)


def test_the_size_of_the_disk_holds_for_all_that_the_build_writes():
    build = PodBuild(id=BUILD.id, timeout=BUILD.timeout, disk_gb=200)
    disk = pod(build, disk="50Gi")["volumes"][0]
    assert disk == {"name": "disk", "emptyDir": {"sizeLimit": "200G"}}
    resources = engine(build)["resources"]
    for kind in ("limits", "requests"):
        assert resources[kind]["ephemeral-storage"] == "200G"


def test_a_build_that_asks_for_no_size_fills_no_disk_of_its_node():
    """Attack: a step writes beside the volume, to the engine itself: `docker run -v /tmp:/x`.

    The kubelet compares the sum of the limits of the containers with all that the Pod has written.
    """
    for settings, size in (({}, "50Gi"), ({"disk": "9Gi"}, "9Gi")):
        found = pod(**settings)
        containers = [*found["initContainers"], *found["containers"]]
        sizes = [one["resources"]["limits"].get("ephemeral-storage", "") for one in containers]
        assert [one for one in sizes if one] == [size]
        volumes = [one["emptyDir"]["sizeLimit"] for one in found["volumes"] if "emptyDir" in one]
        assert volumes == [size, "16Mi"]


def test_only_the_disk_that_a_build_asks_for_is_reserved_on_its_node():
    """A limit without a request would be one."""
    assert engine(disk="9Gi")["resources"]["requests"]["ephemeral-storage"] == "0"


def test_a_pool_may_set_no_limit_of_the_disk():
    assert pod(disk="")["volumes"][0]["emptyDir"] == {}
    for kind in ("limits", "requests"):
        assert "ephemeral-storage" not in engine(disk="")["resources"][kind]


def test_worker_and_engine_share_the_socket_and_the_workspace():
    def mounts(container):
        return {
            (one["name"], one["mountPath"], one.get("subPath")) for one in container["volumeMounts"]
        }

    shared = mounts(engine()) & mounts(worker())
    assert shared == {
        ("disk", "/workspace", "workspace"),
        ("shared", "/run/buildrunner", None),
    }
    assert "--host=fd://" in engine()["args"]  # by the start script, in this folder
    assert {"name": "DOCKER_HOST", "value": f"unix://{SOCKET}"} in worker()["env"]


def test_the_worker_has_the_volumes_of_the_engine_where_its_sandbox_looks_for_them():
    inside, outside = (
        {one["mountPath"]: one.get("subPath") for one in container["volumeMounts"]}
        for container in (engine(), worker())
    )
    assert inside[f"{ENGINE_DATA}/volumes"] == outside[VOLUMES] == "volumes"


def test_the_engine_is_a_sidecar():
    assert engine()["restartPolicy"] == "Always"


@pytest.mark.parametrize("isolation", ["user-namespace", "capabilities"])
def test_the_engine_gets_capabilities_and_no_privilege(isolation):
    rights = engine(isolation=isolation)["securityContext"]
    assert "privileged" not in rights
    assert "SYS_ADMIN" in rights["capabilities"]["add"]
    assert {"name": "ISOLATION", "value": isolation} in engine(isolation=isolation)["env"]


def test_steps_reach_no_metadata_service_of_a_cloud():
    (denied,) = (one["value"] for one in engine()["env"] if one["name"] == "EGRESS_DENY")
    assert "169.254.0.0/16" in denied.split()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_steps_reach_no_network_that_the_project_denies_and_the_worker_does(isolation):
    """Where steps have the worker's network, the worker knows that nothing keeps them from it."""
    wanted = Egress(deny=(*Egress().deny, "10.0.0.0/8"), allow=("10.1.2.3",))
    build = PodBuild(id=BUILD.id, timeout=BUILD.timeout, egress=wanted)
    env = {one["name"]: one["value"] for one in engine(build, isolation=isolation)["env"]}
    parser = argparse.ArgumentParser()
    remote_worker.configure(parser)
    args = parser.parse_args(worker(build, isolation=isolation)["args"][1:])
    enforced = wanted if isolation == "user-namespace" else Egress()
    for deny, allow in (
        (env["EGRESS_DENY"], env["EGRESS_ALLOW"]),
        (args.pod_egress_deny, args.pod_egress_allow),
    ):
        assert (deny.split(), allow.split()) == (list(enforced.deny), list(enforced.allow))
    assert env["POD_DENY"].split() == list(Egress().deny)


def test_a_pool_can_run_privileged_engines():
    assert engine(isolation="privileged")["securityContext"] == {"privileged": True}


def test_the_worker_has_no_more_rights_than_reading_the_files_of_steps():
    rights = worker()["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {
        "drop": ["ALL"],
        "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
    }


def test_no_secret_is_in_the_job_and_only_the_worker_sees_the_token():
    manifest = job()
    assert not manifest["spec"]["template"]["spec"]["automountServiceAccountToken"]
    token = next(one for one in pod()["volumes"] if one["name"] == "token")
    (source,) = token["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "buildrunner"
    assert "token" in {one["name"] for one in worker()["volumeMounts"]}
    assert "token" not in {one["name"] for one in engine()["volumeMounts"]}


def test_the_pool_says_where_the_pod_runs():
    found = pod(**EVERYTHING)
    assert found["nodeSelector"] == {"pool": "builds"}
    assert found["runtimeClassName"] == "kata"
    assert found["priorityClassName"] == "low"
    assert found["imagePullSecrets"] == [{"name": "registry"}]
    assert {"key": "spot", "operator": "Exists"} in found["tolerations"]


def test_a_lost_node_is_given_up_after_half_a_minute():
    seconds = {one["key"]: one["tolerationSeconds"] for one in pod()["tolerations"]}
    assert seconds == {
        "node.kubernetes.io/not-ready": 30,
        "node.kubernetes.io/unreachable": 30,
    }


def test_a_job_of_a_queue_of_kueue_waits_until_it_is_admitted():
    manifest = job(queue="team")
    assert manifest["spec"]["suspend"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspend" not in job()["spec"]


def test_a_mirror_is_told_to_the_engine():
    assert "--registry-mirror=http://mirror:5000" in engine(mirror="http://mirror:5000")["args"]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_command_of_the_worker_takes_the_arguments_of_the_job(isolation):
    parser = argparse.ArgumentParser()
    remote_worker.configure(parser)
    program, *arguments = worker(isolation=isolation)["args"]
    args = parser.parse_args(arguments)
    assert program == "worker"
    assert (args.sandbox, args.pod_isolation, args.once) == ("pod", isolation, True)
    assert (args.build, args.pool) == (BUILD.id, "ci")


def test_the_end_of_a_container_s_log_says_why_it_failed():
    for container in (worker(), engine()):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
