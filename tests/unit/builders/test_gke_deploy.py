"""The program of steps/gke-deploy: the configs that it writes, and what it does with a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = Path(__file__).parents[3] / "steps" / "gke-deploy" / "gke-deploy"
DIGEST = "sha256:" + "1" * 64
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      initContainers: [{name: migrate, image: "registry.example.com:5000/app:old"}]
      containers:
      - {name: app, image: registry.example.com:5000/app}
      - {name: proxy, image: registry.example.com:5000/app-proxy:1}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: other}}
"""
# Programs that a cluster and a registry would be asked by: each notes its arguments and its input.
STAND_IN = """\
#!{python}
import json, os, sys
name, here = os.path.basename(sys.argv[0]), os.path.dirname(sys.argv[0])
text = sys.stdin.read() if sys.argv[-1] == "-" else ""
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:], *([json.loads(text)] if text else [])]) + "\\n")
if name == "skopeo":
    print("{digest}")
if name == "kubectl" and sys.argv[1] == "get":
    states = json.load(open(here + "/states"))
    left = states.get(sys.argv[2] + "/" + sys.argv[3], [])
    if left:
        print(json.dumps(left[0]))
        states[sys.argv[2] + "/" + sys.argv[3]] = left[1:] or left
        json.dump(states, open(here + "/states", "w"))
"""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("kubectl", "gcloud", "skopeo"):
            program = self.programs / name
            program.write_text(STAND_IN.format(python=sys.executable, digest=DIGEST))
            program.chmod(0o755)
        self.states({})
        (folder / "app.yaml").write_text(DEPLOYMENT)

    def states(self, states: dict[str, Any]) -> None:
        """What the cluster says of objects, one answer after the other; the last one stays."""
        (self.programs / "states").write_text(json.dumps(states))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROGRAM), *arguments],
            cwd=self.folder,
            env={"PATH": f"{self.programs}:{os.environ['PATH']}", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def prepared(self, *arguments: str, which: str = "expanded") -> dict[str, dict[str, Any]]:
        """The written objects, by kind."""
        done = self.run("prepare", *arguments)
        assert done.returncode == 0, done.stderr
        text = (self.folder / "output" / which / "aggregated-resources.yaml").read_text()
        return {one["kind"]: one for one in yaml.safe_load_all(text)}

    @property
    def calls(self) -> list[list[Any]]:
        path = self.programs / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def images_of(objects: dict[str, dict[str, Any]]) -> list[str]:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    return [one["image"] for one in (*pod.get("initContainers", ()), *pod["containers"])]


IMAGE = "registry.example.com:5000/app"


@pytest.mark.parametrize("image", [f"{IMAGE}:v2", f"{IMAGE}@{DIGEST}", f"{IMAGE}:v2@{DIGEST}"])
def test_the_image_is_deployed_by_its_digest(bench: Bench, image: str) -> None:
    first, second, proxy = images_of(bench.prepared("-f", "app.yaml", "-i", image))
    wanted = image if "@" in image else f"{IMAGE}@{DIGEST}"
    assert (first, second) == (wanted, wanted)
    assert proxy == f"{IMAGE}-proxy:1"
    requested = [call for call in bench.calls if call[0] == "skopeo"]
    assert [call[-1] for call in requested] == ([] if "@" in image else [f"docker://{image}"])


def test_labels_and_annotations_are_added_and_selectors_stay(bench: Bench) -> None:
    flags = ("-a", "shop", "-v", "1.2", "-L", "a=b,c=d", "--label=e=f", "-A", "build=7")
    deployment = bench.prepared("-f", "app.yaml", *flags)["Deployment"]
    labels = {
        "app.kubernetes.io/name": "shop",
        "app.kubernetes.io/version": "1.2",
        "app.kubernetes.io/managed-by": "gcp-cloud-build-deploy",
        "a": "b",
        "c": "d",
        "e": "f",
    }
    assert deployment["metadata"]["labels"] == labels
    assert deployment["spec"]["template"]["metadata"]["labels"] == {"app": "app", **labels}
    assert deployment["spec"]["selector"] == {"matchLabels": {"app": "app"}}
    assert deployment["metadata"]["annotations"] == {"build": "7"}


def test_the_suggested_configs_have_neither_the_digest_nor_further_labels(bench: Bench) -> None:
    flags = ("-f", "app.yaml", "-a", "shop", "-L", "a=b", "-i", f"{IMAGE}:v2")
    objects = bench.prepared(*flags, which="suggested")
    assert images_of(objects)[1] == IMAGE
    assert objects["Deployment"]["metadata"]["labels"] == {"app.kubernetes.io/name": "shop"}
    assert "namespace" not in objects["Deployment"]["metadata"]


@pytest.mark.parametrize(("flags", "namespace"), [((), "default"), (("-n", "shop"), "shop")])
def test_objects_get_a_namespace_where_they_have_none(
    bench: Bench, flags: tuple[str, ...], namespace: str
) -> None:
    objects = bench.prepared("-f", "app.yaml", *flags)
    assert objects["Deployment"]["metadata"]["namespace"] == namespace
    assert objects["ConfigMap"]["metadata"]["namespace"] == "other"
    assert "namespace" not in objects["Namespace"]["metadata"]


def test_an_image_alone_is_deployed_by_configs_that_are_made(bench: Bench) -> None:
    objects = bench.prepared("-i", f"{IMAGE}:v2", "-x", "80")
    assert set(objects) == {"Deployment", "HorizontalPodAutoscaler", "Service"}
    assert images_of(objects) == [f"{IMAGE}@{DIGEST}"]
    assert objects["Service"]["spec"]["selector"] == {"app": "app"}
    assert objects["Service"]["spec"]["ports"][0]["port"] == 80


def test_folders_are_read_and_deeper_ones_on_demand(bench: Bench) -> None:
    deep = bench.folder / "k8s" / "deep"
    deep.mkdir(parents=True)
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"
    (deep / "secret.yml").write_text(secret)
    (deep.parent / "app.yaml").write_text(DEPLOYMENT)
    (deep.parent / "notes.txt").write_text("no config")
    assert "Secret" not in bench.prepared("-f", "k8s")
    assert "Secret" in bench.prepared("-f", "k8s", "-R")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prepare",), "name configs with --filename, or an image with --image"),
        (("prepare", "-f", "none.yaml"), "there is no file or folder none.yaml"),
        (("prepare", "-f", "bin"), "has no file that ends in .yaml or .yml"),
        (("prepare", "-f", "bad.yaml"), "bad.yaml is not YAML"),
        (("prepare", "-f", "nameless.yaml"), "has a Pod without metadata.name"),
        (("prepare", "-f", "app.yaml", "-L", "a"), "--label takes KEY=VALUE, not a"),
        (("apply",), "name configs with --filename"),
        (("apply", "-f", "app.yaml", "-c", "prod"), "set -l|--location, too"),
        (("apply", "-f", "app.yaml", "-l", "europe-west1"), "set -c|--cluster, too"),
    ],
)
def test_what_can_not_be_is_one_clear_error(
    bench: Bench, arguments: tuple[str, ...], words: str
) -> None:
    (bench.folder / "bad.yaml").write_text("a: [")
    (bench.folder / "nameless.yaml").write_text("{apiVersion: v1, kind: Pod}")
    done = bench.run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: ")
    assert words in done.stderr


def rollout(available: int) -> dict[str, Any]:
    counts = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": available}
    return {
        "kind": "Deployment",
        "metadata": {"name": "app", "generation": 3},
        "spec": {"replicas": 2},
        "status": {"observedGeneration": 3, **counts},
    }


def there(kind: str, name: str) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name}}


OTHERS = {
    "Namespace/shop": [there("Namespace", "shop")],
    "ConfigMap/c": [there("ConfigMap", "c")],
}


def test_run_applies_the_expanded_configs_and_waits_until_they_are_ready(bench: Bench) -> None:
    bench.states({**OTHERS, "Deployment.v1.apps/app": [rollout(0), rollout(1), rollout(2)]})
    cluster = ("-c", "prod", "-l", "europe-west1-b", "-p", "p7")
    done = bench.run("run", "-f", "app.yaml", "-i", f"{IMAGE}:v2", "-t", "1m0s", *cluster)
    assert done.returncode == 0, done.stderr
    gcloud = ["gcloud", "container", "clusters", "get-credentials", "prod"]
    assert [*gcloud, "--zone=europe-west1-b", "--project=p7"] in bench.calls
    applied = [call[-1] for call in bench.calls if call[:2] == ["kubectl", "apply"]]
    assert [one["kind"] for one in applied] == ["Namespace", "Deployment", "ConfigMap"]
    assert images_of({"Deployment": applied[1]})[0] == f"{IMAGE}@{DIGEST}"
    requested = [
        call for call in bench.calls if call[:3] == ["kubectl", "get", "Deployment.v1.apps"]
    ]
    assert len(requested) == 3
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["NAMESPACE", "KIND", "NAME", "READY", "ADDRESS"] in table
    assert ["default", "Deployment", "app", "Yes"] in table
    assert ["Namespace", "shop", "Yes"] in table


def test_what_is_not_ready_in_time_is_named(bench: Bench) -> None:
    bench.states({**OTHERS, "Deployment.v1.apps/app": [rollout(1)]})
    done = bench.run("apply", "-f", "app.yaml", "-t", "0s")
    assert done.returncode == 1
    assert "not ready after 0 s: Deployment app" in done.stderr
    assert ["default", "Deployment", "app", "No"] in [
        line.split() for line in done.stdout.splitlines()
    ]


def test_a_dry_run_changes_nothing_and_waits_for_nothing(bench: Bench) -> None:
    done = bench.run("apply", "-f", "app.yaml", "-D", "-n", "new")
    assert done.returncode == 0, done.stderr
    applies = [call for call in bench.calls if call[:2] == ["kubectl", "apply"]]
    assert len(applies) == 4  # the namespace that is missing, too
    assert all("--dry-run=server" in call for call in applies)
    assert [call for call in bench.calls if "Deployment.v1.apps" in call] == []


@pytest.mark.parametrize(
    ("obj", "ready"),
    [
        ({}, False),
        (rollout(2), True),
        (rollout(1), False),
        ({**rollout(2), "metadata": {"name": "app", "generation": 4}}, False),
        ({"kind": "StatefulSet", "status": {"readyReplicas": 1, "updatedReplicas": 1}}, True),
        ({"kind": "StatefulSet", "status": {"readyReplicas": 1}}, False),
        ({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 2}}, False),
        ({"kind": "Pod", "status": {"phase": "Succeeded"}}, True),
        ({"kind": "Pod", "status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
        ({"kind": "Pod", "status": {"phase": "Pending"}}, False),
        ({"kind": "Job", "status": {}}, False),
        ({"kind": "Job", "status": {"conditions": [{"type": "Complete", "status": "True"}]}}, True),
        ({"kind": "PersistentVolumeClaim", "status": {"phase": "Pending"}}, False),
        ({"kind": "Service", "spec": {"type": "ClusterIP"}}, True),
        ({"kind": "Service", "spec": {"type": "LoadBalancer"}, "status": {}}, False),
        (
            {
                "kind": "Service",
                "spec": {"type": "LoadBalancer"},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}},
            },
            True,
        ),
        ({"kind": "ConfigMap"}, True),
    ],
)
def test_an_object_is_ready_once_the_cluster_did_what_it_asks_for(
    obj: dict[str, Any], ready: bool
) -> None:
    assert program()["is_ready"]({"metadata": {"name": "x"}, **obj} if obj else {}) is ready


def program() -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "gke_deploy"}
    exec(compile(PROGRAM.read_text(), str(PROGRAM), "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m0s", 300), ("1h", 3600), ("90s", 90), ("1.5m", 90), ("500ms", 0.5)]
)
def test_a_timeout_is_written_as_in_go(text: str, seconds: float) -> None:
    assert program()["duration"](text) == seconds


def test_a_timeout_without_a_unit_is_refused(bench: Bench) -> None:
    done = bench.run("apply", "-f", "app.yaml", "-t", "300")
    assert done.returncode == 2
    assert "no duration such as 5m0s" in done.stderr
