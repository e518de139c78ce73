"""What steps do with the engine that they run on, through the docker builder image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.image_name import REPOSITORY
from tests.conftest import Registry, busybox_tar

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCKER = "gcr.io/cloud-builders/docker"


@pytest.fixture(scope="module", autouse=True)
def builder_image(docker_engine) -> None:
    answer = buildrunner("builders", "install", "docker", "python")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def buildrunner(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "buildrunner", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tag() -> Iterator[str]:
    """A name for an image that steps build."""
    name = f"buildrunner-tests/in-steps-{uuid.uuid4().hex[:8]}:1"
    yield name
    subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


def logged(folder: Path, *steps: dict[str, object]) -> str:
    """The log of a build of these steps in a folder, which has to succeed."""
    config = folder / "cloudbuild.yaml"
    config.write_text(json.dumps({"steps": list(steps)}))
    answer = buildrunner(
        "submit", str(folder), "--config", str(config), XDG_DATA_HOME=str(folder.parent / "data")
    )
    assert answer.returncode == 0, answer.stdout[-6000:] + answer.stderr[-3000:]
    return answer.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        "FROM buildrunner/base\n"
        "RUN --mount=type=cache,target=/cache echo built by BuildKit > /proof\n"
        'CMD ["cat", "/proof"]\n'
    )
    return folder


@pytest.mark.parametrize("command", [["build"], ["buildx", "build", "--load"]])
def test_buildkit_builds_an_image_that_the_next_step_is(
    source: Path, tag: str, command: list[str], docker_engine
) -> None:
    if docker_engine.info().name == "podman":
        pytest.skip("Podman has no BuildKit")
    build = {"name": DOCKER, "args": [*command, "-t", tag, "."], "env": ["DOCKER_BUILDKIT=1"]}
    assert "built by BuildKit" in logged(source, build, {"name": tag})


def test_a_step_deletes_an_image_that_the_next_step_is(
    source: Path, registry: Registry, docker_engine: DockerEngine
) -> None:
    """The next step's container is made ahead of its turn, and must not be in the way."""
    name = f"{registry.address}/deleted-{uuid.uuid4().hex[:8]}:1"
    docker_engine.import_image(name, [busybox_tar()], env=["PATH=/bin"])
    docker_engine.push_image(name, on_progress=lambda _: None, cancel=threading.Event())
    wait = {"name": name, "args": ["sleep", "1"]}
    delete = {"name": DOCKER, "args": ["rmi", name]}
    try:
        log = logged(source, wait, delete, {"name": name, "args": ["echo", "once more"]})
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)
    assert f"Untagged: {name}" in log
    assert f"Step #2: Pulling image: {name}" in log
    assert "Step #2: once more" in log
    build_id = log.split('starting build "')[1].split('"')[0]
    deadline = time.monotonic() + 30  # the build's guardian cleans up behind its end
    while names := [one for one in docker_engine.tags_of(REPOSITORY) if one.startswith(build_id)]:
        assert time.monotonic() < deadline, names


def test_a_step_gives_the_name_of_the_next_steps_image_to_another(
    source: Path, tag: str, docker_engine: DockerEngine
) -> None:
    for name, word in ((tag, "old"), (f"{tag}-new", "new")):
        docker_engine.import_image(name, [busybox_tar()], cmd=["echo", word], env=["PATH=/bin"])
    wait = {"name": DOCKER, "entrypoint": "sleep", "args": ["1"]}
    try:
        rename = {"name": DOCKER, "args": ["tag", f"{tag}-new", tag]}
        assert "Step #2: new" in logged(source, wait, rename, {"name": tag})
    finally:
        subprocess.run(["docker", "rmi", "--force", f"{tag}-new"], check=False, capture_output=True)


def test_a_step_saves_an_image_and_a_later_one_loads_it(
    source: Path, tag: str, docker_engine: DockerEngine
) -> None:
    """The archive is the only copy of the image between the two steps, as in a cache of images."""
    name = f"docker.io/{tag}"  # Podman calls an image without a registry localhost/...
    docker_engine.import_image(name, [busybox_tar()], cmd=["echo", "loaded"], env=["PATH=/bin"])
    log = logged(
        source,
        {"name": DOCKER, "args": ["save", "--output", "image.tar", name]},
        {"name": DOCKER, "args": ["rmi", name]},
        {"name": DOCKER, "args": ["load", "--input", "image.tar"]},
        {"name": name},
    )
    assert "Loaded image" in log
    assert f"Step #3: Already have image: {name}" in log.replace(" (with digest)", "")
    assert "Step #3: loaded" in log


def test_a_step_pushes_an_image_and_a_later_one_pulls_it(source: Path, registry: Registry) -> None:
    name = f"{registry.address}/pushed-{uuid.uuid4().hex[:8]}:1"
    (source / "Dockerfile").write_text(
        "FROM buildrunner/base\nRUN echo pushed by a step > /proof\n"
    )
    try:
        log = logged(
            source,
            {"name": DOCKER, "args": ["build", "--tag", name, "."]},
            {"name": DOCKER, "args": ["push", name]},
            {"name": DOCKER, "args": ["rmi", name]},
            {"name": DOCKER, "args": ["pull", name]},
            {"name": DOCKER, "args": ["run", "--rm", name, "cat", "/proof"]},
            {"name": name, "args": ["cat", "/proof"]},
        )
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)
    assert "Step #4: pushed by a step" in log
    assert "Step #5: pushed by a step" in log


def test_the_example_is_built_tested_and_pushed(registry: Registry, tmp_path: Path) -> None:
    values = f"_PYTHON=buildrunner/python,_REGISTRY={registry.address}"
    answer = buildrunner(
        "submit", str(EXAMPLES), "--substitutions", values, XDG_DATA_HOME=str(tmp_path)
    )
    subprocess.run(
        ["docker", "rmi", "--force", f"{registry.address}/service:latest"],
        check=False,
        capture_output=True,
    )
    assert answer.returncode == 0, answer.stdout[-6000:] + answer.stderr[-3000:]
    assert "the service renders a list over HTTP" in answer.stdout
    assert "latest: digest: sha256:" in answer.stdout


def test_a_step_runs_a_container_on_the_network_of_the_build(source: Path) -> None:
    run = ["run", "--rm", "--network=cloudbuild", "buildrunner/base", "echo", "from a container"]
    assert "from a container" in logged(source, {"name": DOCKER, "args": run})


def test_each_step_has_a_host_name_and_an_address_of_its_own(source: Path) -> None:
    inspect = '{{.Id}} {{(index .NetworkSettings.Networks "cloudbuild").IPAddress}}'
    look = f"echo seen $(hostname) $(hostname -i) $(docker inspect -f '{inspect}' $(hostname)) ."
    step = {"name": DOCKER, "entrypoint": "sh", "args": ["-c", look]}
    log = logged(source, step, step, step)
    seen = [line.split()[3:7] for line in log.splitlines() if ": seen " in line]
    assert len(seen) == 3
    for name, address, container, known_address in seen:
        assert len(name) == 12
        assert container.startswith(name)
        assert address == known_address
    assert len({name for name, *_ in seen}) == 3
    assert len({address for _, address, *_ in seen}) > 1  # an engine may give one again


def test_a_step_shares_its_workspace_by_its_host_name(source: Path) -> None:
    run = 'docker run --rm --volumes-from "$(hostname)" buildrunner/base'
    script = f"echo noted $1 > note; {run} cat /workspace/note"
    step = {"name": DOCKER, "entrypoint": "sh", "args": ["-c", script, "sh"]}
    log = logged(source, *({**step, "args": [*step["args"], word]} for word in ("one", "two")))
    assert "Step #0: noted one" in log
    assert "Step #1: noted two" in log


def test_steps_reach_what_an_earlier_step_started_by_its_name(source: Path) -> None:
    name = f"buildrunner-test-{uuid.uuid4().hex[:8]}"
    run = ["run", "--detach", "--network=cloudbuild", f"--name={name}", "buildrunner/base"]
    start = {"name": DOCKER, "args": [*run, "sleep", "60"]}
    ask = {"name": DOCKER, "entrypoint": "getent", "args": ["hosts", name]}
    remove = {"name": DOCKER, "args": ["rm", "--force", name]}
    log = logged(source, start, ask, remove)
    assert any(name in line for line in log.splitlines() if line.startswith("Step #1: 1"))


def test_steps_need_images_by_their_whole_names(source: Path, tag: str) -> None:
    """Podman finds ``acme/app`` by the name ``app``, too: then nothing seems to be missing."""
    name = tag.partition("/")[2]
    subprocess.run(["docker", "tag", "buildrunner/python", tag], check=True, capture_output=True)
    config = source / "cloudbuild.yaml"
    config.write_text(json.dumps({"steps": [{"name": name}]}))
    answer = buildrunner("builders", "install", "--for", str(config))
    assert f"No builder image can replace {name}: pull or load it." in answer.stdout
