"""The chart: what its values become, what they may be, and that Kubernetes knows every field."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from buildrunner.kubernetes.manifest import PodBuild, job_manifest
from buildrunner.kubernetes.pool import ISOLATIONS, Pool
from buildrunner.settings import own_settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "buildrunner"
RELEASES = ("1.34", "1.35", "1.36", "1.37")
EVERYTHING = {
    "replicas": 2,
    "database": {"url": "postgresql://builds@db/builds"},
    "publicUrl": "https://builds.example.com",
    "allowSourceHosts": ["git.example.com"],
    "extraArgs": ["--keep-logs-days=30"],
    "settings": '[project]\nid = "shop"\n',
    "secretEnv": [{"name": "GIT_TOKEN", "secret": "forge", "key": "token"}],
    "imagePullSecrets": ["registry"],
    "pools": {
        "arm": {
            "namespace": "builds",
            "max_builds": 3,
            "tolerations": ["spot"],
            "node_selector": {"kubernetes.io/arch": "arm64"},
            "worker_image": 'w"1',
        },
        "x86": None,
    },
    "workers": {
        "replicas": 3,
        "tokenSecret": "workers",
        "mirror": "http://mirror:5000",
        "disk": "50Gi",
        "runtimeClass": "kata",
        "priorityClass": "low",
        "nodeSelector": {"pool": "builds"},
        "tolerations": [{"key": "builds", "operator": "Exists"}],
    },
    "persistence": {"size": "5Gi", "storageClass": "fast", "whenDeleted": "Delete"},
    "service": {"type": "LoadBalancer", "clusterIP": "10.0.0.9"},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "builds.example.com",
        "tlsSecret": "tls",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "0"},
    },
    "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "ci", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"example.com/team": "web"},
}


@pytest.fixture(scope="module")
def helm():
    """The program of the version that the scripts fetch."""
    folder = subprocess.check_output([ROOT / "scripts" / "kubernetes.sh", "tools"], text=True)
    return Path(folder.strip()) / "helm"


def templated(helm, values):
    """Return the objects that Helm makes of the values."""
    return subprocess.run(
        [helm, "template", "buildrunner", CHART, "--namespace=ci", "--values=-"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(helm, values):
    """The last object of each kind, by kind; a text if the chart refuses the values."""
    done = templated(helm, values)
    if done.returncode:
        return done.stderr
    return {one["kind"]: one for one in all_objects(done.stdout)}


def all_objects(text):
    return [one for one in yaml.safe_load_all(text) if one]


def server(objects):
    return objects["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["least", "everything"])
def test_each_release_of_kubernetes_knows_every_field(helm, values):
    objects = all_objects(templated(helm, values).stdout)
    kinds = [one["kind"] for one in objects]
    assert kinds.count("Role") == len(values.get("pools", ()))  # each in a namespace of its own
    for release in RELEASES:
        for one in objects:
            kubernetes_validate.validate(one, release, strict=True)


def test_without_values_one_server_keeps_a_database_on_its_volume(helm):
    objects = rendered(helm, {})
    assert set(objects) == {"ServiceAccount", "ConfigMap", "Service", "StatefulSet"}
    assert objects["StatefulSet"]["spec"]["replicas"] == 1
    assert "BUILDRUNNER_DATABASE" not in {one["name"] for one in server(objects)["env"]}


def test_one_of_several_servers_is_reached_by_the_address_of_its_pod(helm):
    assert "POD_IP" not in str(rendered(helm, {}))
    container = server(rendered(helm, EVERYTHING))
    assert "--internal-url=http://$(POD_IP):8080" in container["args"]
    (address,) = (one for one in container["env"] if one["name"] == "POD_IP")
    assert address["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_the_server_runs_no_builds_in_its_own_pod(helm):
    objects = rendered(helm, {})
    assert "--sandbox=none" in server(objects)["args"]
    assert server(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_every_value_reaches_an_object(helm):
    objects = rendered(helm, EVERYTHING)
    assert {"Secret", "Ingress", "NetworkPolicy"} <= set(objects)
    container = server(objects)
    for argument in (
        "--public-url=https://builds.example.com",
        "--allow-source-host=git.example.com",
        "--keep-logs-days=30",
    ):
        assert argument in container["args"]
    secrets = {
        one["name"]: one["valueFrom"]["secretKeyRef"]["name"]
        for one in container["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    assert secrets == {"BUILDRUNNER_DATABASE": "buildrunner-database", "GIT_TOKEN": "forge"}
    assert objects["ConfigMap"]["data"]["config.toml"].startswith(EVERYTHING["settings"])
    assert objects["Ingress"]["spec"]["rules"][0]["host"] == "builds.example.com"
    peers = objects["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert peers[0] == {"namespaceSelector": {}}
    assert [one["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for one in peers[1:]] == [
        "buildrunner",
        *["buildrunner-build"] * 2,
    ]
    namespaces = [one["namespaceSelector"]["matchLabels"] for one in peers[2:]]
    assert namespaces == [{"kubernetes.io/metadata.name": name} for name in ("builds", "ci")]
    claim = objects["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast"


def test_the_password_of_the_database_is_in_no_object_but_the_secret(helm):
    objects = rendered(helm, {"database": {"url": "postgresql://builds:sesame@db/builds"}})
    assert [kind for kind, one in objects.items() if "sesame" in str(one)] == ["Secret"]


def test_a_secret_at_hand_is_used_for_the_database(helm):
    objects = rendered(helm, {"database": {"existingSecret": "db"}, "replicas": 3})
    assert "Secret" not in objects
    (found,) = (one for one in server(objects)["env"] if one["name"] == "BUILDRUNNER_DATABASE")
    assert found["valueFrom"]["secretKeyRef"] == {"name": "db", "key": "url"}


def test_new_settings_start_the_server_anew(helm):
    def annotations(settings):
        template = rendered(helm, {"settings": settings})["StatefulSet"]["spec"]["template"]
        return template["metadata"]["annotations"]

    assert annotations("") != annotations('[project]\nid = "shop"\n')


def settings_of(objects, folder):
    """The settings as the server reads them."""
    (folder / "buildrunner").mkdir()
    text = objects["ConfigMap"]["data"]["config.toml"]
    (folder / "buildrunner" / "config.toml").write_text(text)
    return own_settings({"XDG_CONFIG_HOME": str(folder)})


def test_pools_become_settings_of_the_server(helm, tmp_path):
    settings = settings_of(rendered(helm, EVERYTHING), tmp_path)
    assert settings.project_id == "shop"
    common = {
        "server": "http://buildrunner.ci.svc:80",
        "engine_image": "buildrunner/engine:latest",
        "pull_secrets": ("registry",),
        "owner": "buildrunner-pools",
    }
    assert settings.pools == {
        "arm": Pool(
            name="arm",
            namespace="builds",
            max_builds=3,
            tolerations=("spot",),
            node_selector={"kubernetes.io/arch": "arm64"},
            worker_image='w"1',
            **common,
        ),
        "x86": Pool(name="x86", namespace="ci", worker_image="buildrunner/worker:latest", **common),
    }


def test_the_server_may_do_what_it_does_in_the_namespaces_of_pools_and_nothing_else(helm):
    assert not {"Role", "RoleBinding"} & set(rendered(helm, {}))
    text = templated(helm, {"pools": EVERYTHING["pools"]}).stdout
    roles = [one for one in all_objects(text) if one["kind"] == "Role"]
    assert [one["metadata"]["namespace"] for one in roles] == ["builds", "ci"]
    names = [rule["resourceNames"] for rule in roles[0]["rules"] if "roles" in rule["resources"]]
    assert names == [[roles[0]["metadata"]["name"]]]
    may = {
        (resource, verb)
        for rule in roles[0]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert may == {
        *(("jobs", verb) for verb in ("create", "list", "delete")),
        *((resource, "list") for resource in ("pods", "events")),
        ("roles", "get"),
    }


def test_the_server_has_a_token_of_the_cluster_only_where_it_has_pools(helm):
    for values, has_one in (({}, False), ({"pools": {"arm": {}}}, True)):
        account = rendered(helm, values)["ServiceAccount"]
        assert account["automountServiceAccountToken"] is has_one


def test_workers_have_the_engine_that_the_pods_of_builds_have(helm):
    for isolation in ISOLATIONS:
        workers = {**EVERYTHING["workers"], "isolation": isolation}
        found = rendered(helm, {"workers": workers})["Deployment"]["spec"]["template"]["spec"]
        pool = Pool(
            name="ci",
            server="http://buildrunner",
            worker_image="buildrunner/worker:latest",
            engine_image="buildrunner/engine:latest",
            isolation=isolation,
            mirror="http://mirror:5000",
            disk="50Gi",
        )
        build = PodBuild(id="1", timeout=timedelta(minutes=10))
        wanted = job_manifest(build, pool)["spec"]["template"]["spec"]
        engine, wanted_engine = found["initContainers"][0], wanted["initContainers"][0]
        for field in ("args", "env", "securityContext", "volumeMounts", "restartPolicy"):
            assert engine[field] == wanted_engine[field]
        for kind in ("limits", "requests"):
            assert {**engine["resources"][kind], "cpu": ""} == {
                **wanted_engine["resources"][kind],
                "cpu": "",
            }
        assert engine["resources"]["limits"]["cpu"] == wanted_engine["resources"]["limits"]["cpu"]
        worker, wanted_worker = found["containers"][0], wanted["containers"][0]
        for field in ("securityContext", "volumeMounts"):
            assert worker[field] == wanted_worker[field]
        assert found["volumes"][:2] == wanted["volumes"][:2]


def test_workers_fill_no_disk_of_their_node(helm):
    values = {"workers": {"replicas": 1, "tokenSecret": "workers"}}
    found = rendered(helm, values)["Deployment"]["spec"]["template"]["spec"]
    engine = found["initContainers"][0]["resources"]
    assert engine["limits"]["ephemeral-storage"] == "100Gi"
    assert [one["emptyDir"]["sizeLimit"] for one in found["volumes"][:2]] == ["100Gi", "16Mi"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": 2}, "several servers need PostgreSQL"),
        ({"replicas": 0}, "replicas"),
        ({"replica": 1}, "replica"),
        ({"ingress": {"enabled": True}}, "host"),
        ({"networkPolicy": {"enabled": True}}, "from"),
        ({"database": {"url": "mysql://db"}}, "url"),
        ({"workers": {"replicas": 1}}, "tokenSecret"),
        ({"workers": {"isolation": "none"}}, "isolation"),
        ({"pools": {"Arm": {}}}, "Arm"),
        ({"pools": {"arm": {"max_builds": 1.5}}}, "max_builds"),
        ({"publicUrl": "builds.example.com"}, "publicUrl"),
        ({"persistence": {"size": "much"}}, "size"),
    ],
)
def test_a_value_that_can_not_be_is_refused_by_its_name(helm, values, message):
    refusal = rendered(helm, values)
    assert isinstance(refusal, str)
    assert message in refusal


def test_the_yaml_for_kubectl_is_the_chart_without_values(helm):
    made = subprocess.check_output([helm, "template", "buildrunner", CHART], text=True)
    text = (ROOT / "deploy" / "kubernetes.yaml").read_text()
    assert text == made, "run: scripts/kubernetes.sh render"
