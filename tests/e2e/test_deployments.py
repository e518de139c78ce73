"""A rollout with the real gke-deploy and kubectl in steps: its records, and its rollback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from tests.conftest import remove_image
from tests.e2e.test_gke_deploy import IMAGE, PROGRAM
from tests.kubernetes_api import Cluster
from tests.web.serving import Serving, serving

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ONE, TWO = IMAGE, IMAGE.replace("1", "2")
DOCKERFILE = """\
FROM buildrunner/python
COPY yaml /usr/lib/python3/dist-packages/yaml
COPY kubectl gke-deploy /usr/local/bin/
RUN chmod 755 /usr/local/bin/*
ENTRYPOINT ["gke-deploy"]
"""
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/app"


def buildrunner(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "buildrunner", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def gke_deploy(docker_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with the program of the builder image, and a kubectl that needs no Google Cloud."""
    made = buildrunner("builders", "install", "python")
    assert made.returncode == 0, made.stdout + made.stderr
    folder = tmp_path_factory.mktemp("image")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    shutil.copy(PROGRAM, folder / "gke-deploy")
    shutil.copy(f"{sysconfig.get_path('scripts')}/kubectl", folder / "kubectl")
    shutil.copytree(Path(yaml.__file__).parent, folder / "yaml", ignore=_compiled)
    name = f"buildrunner-tests/gke-deploy:{uuid.uuid4().hex[:12]}"
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(folder)], check=True)
    yield name
    remove_image(name)


_compiled = shutil.ignore_patterns("*.so", "__pycache__")


@pytest.fixture
def cluster(machine_address: str) -> Iterator[Cluster]:
    """A Kubernetes API that steps reach at the address of the engine's network."""
    server = Cluster(machine_address)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address_of(cluster: Cluster) -> str:
    host, port = cluster.server_address[:2]
    return f"{host!s}:{port}"


def build(cluster: Cluster, image: str, deployed: str) -> dict[str, Any]:
    """A build whose first step writes the configs that its second step deploys."""
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://{address_of(cluster)}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
        "current-context": "c",
    }
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "app"}},
            "template": {
                "metadata": {"labels": {"app": "app"}},
                "spec": {"containers": [{"name": "app", "image": deployed}]},
            },
        },
    }
    files = {"kubeconfig": kubeconfig, "app.yaml": workload}
    lines = [f"echo '{json.dumps(content)}' > {name}" for name, content in files.items()]
    return {
        "steps": [
            {"id": "render", "name": image, "script": "#!/bin/sh\n" + "\n".join(lines)},
            {
                "id": "deploy",
                "name": image,
                "args": ["apply", "-f", "app.yaml", "-n", "shop"],
                "env": ["KUBECONFIG=/workspace/kubeconfig"],
            },
            {"id": "after", "name": image, "script": "#!/bin/sh\necho after"},
        ]
    }


def running_image(cluster: Cluster) -> str:
    pod = cluster.objects[DEPLOYMENT]["spec"]["template"]["spec"]
    return str(pod["containers"][0]["image"])


def deploy(server: Serving, cluster: Cluster, image: str, deployed: str) -> str:
    build_id = server.create("p", build(cluster, image, deployed))
    status = server.ended("p", build_id)
    log = server.http.get(f"/buildrunner/v1/projects/p/builds/{build_id}/log").text
    assert status == "SUCCESS", log
    return build_id


def test_a_rollout_is_visible_and_its_rollback_deploys_the_earlier_digest(
    gke_deploy: str, cluster: Cluster, tmp_path: Path
) -> None:
    target = f"kubernetes://{address_of(cluster)}/shop/Deployment/app"
    with serving(tmp_path, "--sandbox", "host", "--auth", "none") as server:
        first = deploy(server, cluster, gke_deploy, ONE)
        second = deploy(server, cluster, gke_deploy, TWO)
        assert running_image(cluster) == TWO
        path = f"/buildrunner/v1/projects/p/builds/{second}/deployments"
        (shown,) = server.http.get(path).json()["deployments"]
        assert (shown["target"], shown["step"], shown["reported"]) == (target, 1, True)
        assert (shown["images"], shown["previousImages"]) == ([TWO], [ONE])
        page = server.http.get(f"/builds/p/{second}").text
        assert target in page
        assert TWO in page

        chosen = ("--server", server.url, "--project", "p")
        home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
        done = buildrunner("deployments", "rollback", "Deployment/app", *chosen, **home)
        assert done.returncode == 0, done.stderr
        rollback = done.stdout.strip()
        status = server.ended("p", rollback)
        log = server.http.get(f"/buildrunner/v1/projects/p/builds/{rollback}/log").text
        assert status == "SUCCESS", log
        assert f"The workspace is that of build {first}" in log
        assert running_image(cluster) == ONE
        steps = server.http.get(f"/v1/projects/p/builds/{rollback}").json()["steps"]
        assert [step.get("status") for step in steps] == [None, "SUCCESS", None]
        listed = buildrunner(
            *("deployments", "list", "--target", target, "--format", "value(buildId,images[0])"),
            *chosen,
            **home,
        )
        assert [line.split() for line in listed.stdout.splitlines()] == [
            [rollback, ONE],
            [second, TWO],
            [first, ONE],
        ]


def test_the_summary_and_the_local_list_show_a_rollout(
    gke_deploy: str, cluster: Cluster, tmp_path: Path
) -> None:
    home = {name: str(tmp_path / "home") for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    config = tmp_path / "cloudbuild.json"
    for image in (ONE, TWO):
        config.write_text(json.dumps(build(cluster, gke_deploy, image)))
        done = buildrunner("submit", "--no-source", "--config", str(config), "--local", **home)
        assert done.returncode == 0, done.stderr
    target = f"kubernetes://{address_of(cluster)}/shop/Deployment/app"
    assert f"DEPLOYED\n{target}\n  {TWO}\n  before: {ONE}\n" in done.stderr
    listed = buildrunner("deployments", "list", "--local", "--format", "value(images[0])", **home)
    assert listed.stdout.splitlines() == [TWO, ONE]


def test_a_build_in_a_nested_sandbox_is_rolled_back_to_with_its_workspace(
    busybox: str, tmp_path: Path
) -> None:
    with serving(tmp_path, "--auth", "none") as server:
        for image in (ONE, TWO):
            report = json.dumps({"target": "run://p/r/web", "images": [image]})
            render = f"#!/bin/sh\necho '{report}' > report"
            deploys = "#!/bin/sh\ncat report > $BUILDER_OUTPUT/deployments.jsonl"
            steps = [{"name": busybox, "script": script} for script in (render, deploys)]
            assert server.ended("p", server.create("p", {"steps": steps})) == "SUCCESS"
        path = "/buildrunner/v1/projects/p/deployments"
        _, first = server.http.get(path).json()["deployments"]
        retry = f"/v1/projects/p/builds/{first['buildId']}:retry?deployment={first['id']}"
        made = server.http.post(retry, json={})
        assert made.status_code == 200, made.text
        assert server.ended("p", made.json()["metadata"]["build"]["id"]) == "SUCCESS"
        latest = server.http.get(path).json()["deployments"][0]
        assert (latest["images"], latest["previousImages"]) == ([ONE], [TWO])
