"""Builds that push: logins of steps and of the user, tags, and what the registry has then."""

from __future__ import annotations

import base64
import json
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from tests.conftest import Registry, remove_image, start_registry, stop
from tests.e2e.submit_bench import Bench, Done
from tests.registry_servers import (
    CUT,
    HTPASSWD,
    PASSWORD,
    USER,
    Fault,
    faulty_proxy,
    helper_program,
    tls_registry,
    trusted,
)

pytestmark = pytest.mark.docker

AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class PushBench(Bench):
    """Builds of one step that may write a Docker config, and of an image that is there already."""

    def __init__(self, folder: Path, data: Path, engine: DockerEngine, image: str) -> None:
        super().__init__(folder, data, engine, image)
        self.docker_config = data / "docker"
        self.docker_config.mkdir(parents=True)
        self.names: list[str] = []

    def image_at(self, address: str, *tags: str) -> str:
        repository = f"{address}/tests-{uuid.uuid4().hex[:8]}"
        for tag in tags or ("1",):
            name = f"{repository}:{tag}"
            self.names.append(name)
            self.engine.import_image(name, [bytes(1024)], cmd=["/none"], env=[f"U={uuid.uuid4()}"])
        return repository

    def login(self, address: str) -> None:
        config = {"auths": {address: {"auth": AUTH}, "other.example": {"auth": AUTH}}}
        (self.docker_config / "config.json").write_text(json.dumps(config))

    def push(self, images: list[str], script: str = "true", *flags: str) -> Done:
        config = {"steps": [{"name": self.image, "script": script}], "images": images}
        self.write("cloudbuild.yaml", json.dumps(config))
        done = self.run("submit", ".", "--output", "json", *flags)
        assert PASSWORD not in done.out + done.err
        assert AUTH not in done.out + done.err
        return done


def result_of(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])["build"]
    return found


@pytest.fixture
def bench(tmp_path: Path, docker_engine: DockerEngine, busybox: str) -> Iterator[PushBench]:
    folder = tmp_path / "source"
    folder.mkdir()
    made = PushBench(folder, tmp_path / "data", docker_engine, busybox)
    yield made
    for name in made.names:
        remove_image(name)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    running = start_registry(tmp_path_factory.mktemp("closed"), htpasswd=HTPASSWD)
    yield running
    stop(running.process)


def tags_in(registry: Registry, repository: str) -> list[str]:
    path = repository.removeprefix(f"{registry.address}/")
    with urllib.request.urlopen(f"http://{registry.address}/v2/{path}/tags/list") as answer:
        tags: list[str] = json.load(answer)["tags"]
    return sorted(tags)


def written(bench: PushBench, auth: str, address: str) -> str:
    """A script that logs in as ``docker login`` does, and has the login from a file."""
    bench.write("login", json.dumps({"auths": {f"http://{address}/v2/": {"auth": auth}}}))
    return "mkdir -p ~/.docker; cp login ~/.docker/config.json"


def test_a_login_of_a_step_counts_for_the_push(bench: PushBench, closed: Registry) -> None:
    image = bench.image_at(closed.address)
    done = bench.push([f"{image}:1"], written(bench, AUTH, closed.address))
    assert done.code == 0
    build = result_of(done)
    (pushed,) = build["results"]["images"]
    assert pushed["name"] == f"{image}:1"
    assert pushed["digest"].startswith("sha256:")
    assert pushed["pushTiming"]["endTime"] >= pushed["pushTiming"]["startTime"]


def test_a_wrong_login_of_a_step_fails_the_push_at_once(bench: PushBench, closed: Registry) -> None:
    bench.login(closed.address)
    image = bench.image_at(closed.address)
    wrong = base64.b64encode(b"nobody:nothing").decode()
    done = bench.push([f"{image}:1"], written(bench, wrong, closed.address))
    assert done.code == 1
    build = result_of(done)
    assert build["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    assert build["steps"][0]["status"] == "SUCCESS"


def test_without_any_login_the_push_is_refused(bench: PushBench, closed: Registry) -> None:
    image = bench.image_at(closed.address)
    done = bench.push([f"{image}:1"])
    assert done.code == 1
    assert result_of(done)["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"


@pytest.mark.parametrize("way", ["auths", "credHelpers", "credsStore"])
def test_the_users_own_login_pushes_and_no_step_sees_it(
    bench: PushBench, closed: Registry, way: str
) -> None:
    if way == "auths":
        bench.login(closed.address)
    else:
        helper_program(bench.docker_config, "tests", {closed.address: (USER, PASSWORD)})
        value: Any = {closed.address: "tests"} if way == "credHelpers" else "tests"
        (bench.docker_config / "config.json").write_text(json.dumps({way: value}))
        bench.environ["PATH"] = f"{bench.docker_config}:{bench.environ['PATH']}"
    image = bench.image_at(closed.address)
    done = bench.push([f"{image}:1"], "! test -e ~/.docker/config.json")
    assert done.code == 0


def test_steps_get_the_logins_of_the_builds_registries_when_told(
    bench: PushBench, closed: Registry
) -> None:
    bench.login(closed.address)
    image = bench.image_at(closed.address)
    script = (
        f"set -e; grep -q {closed.address} ~/.docker/config.json;"
        " ! grep -q other.example ~/.docker/config.json; ls -l ~/.docker/config.json"
    )
    done = bench.push([f"{image}:1"], script, "--share-registry-logins")
    assert done.code == 0
    assert "-rw-------" in done.out


def test_a_helper_of_a_step_is_warned_about(bench: PushBench, closed: Registry) -> None:
    bench.login(closed.address)
    image = bench.image_at(closed.address)
    config = json.dumps({"credHelpers": {closed.address: "gcloud", "gcr.io": "gcloud"}})
    done = bench.push(
        [f"{image}:1"], f"mkdir -p ~/.docker; echo '{config}' > ~/.docker/config.json"
    )
    assert done.code == 0
    texts = [warning["text"] for warning in result_of(done)["warnings"]]
    assert [text for text in texts if "docker-credential-gcloud" in text and closed.address in text]
    assert not [text for text in texts if "gcr.io" in text]


def test_a_docker_config_that_is_a_link_is_not_followed(
    bench: PushBench, registry: Registry
) -> None:
    image = bench.image_at(registry.address)
    done = bench.push([f"{image}:1"], "mkdir -p ~/.docker; ln -s /etc/shadow ~/.docker/config.json")
    assert done.code == 0


def test_all_tags_and_latest(bench: PushBench, registry: Registry) -> None:
    image = bench.image_at(registry.address, "latest", "v1", "v2")
    done = bench.push([image, f"{image}:v1"])
    assert done.code == 0
    names = [one["name"] for one in result_of(done)["results"]["images"]]
    assert names == [image, f"{image}:latest", f"{image}:v1", f"{image}:v2", f"{image}:v1"]
    assert tags_in(registry, image) == ["latest", "v1", "v2"]


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        (Fault("PUT", "/manifests/", 429, times=2), 3),
        (Fault("PUT", "/manifests/", 500, times=1), 2),
        (Fault("PUT", "/manifests/", 201, times=1), 2),  # it says so, and keeps nothing
        (Fault("PUT", "/manifests/", CUT, times=1), 2),
        (Fault("PATCH", "/blobs/", CUT, times=1), 1),  # the engine itself goes on
        (Fault("PUT", "/manifests/", 429, message="retry-after: 1s"), 2),
    ],
    ids=["busy twice", "broken", "forgetful", "cut at the end", "cut in a layer", "asks for time"],
)
def test_what_passes_is_tried_again_until_the_registry_has_it(
    bench: PushBench, registry: Registry, fault: Fault, tries: int
) -> None:
    with faulty_proxy(registry.address, fault) as address:
        image = bench.image_at(address)
        done = bench.push([f"{image}:1"])
        assert done.code == 0, done.out
        assert tags_in(registry, image.replace(address, registry.address)) == ["1"]
    assert fault.hits >= 1
    assert done.out.count("detected failure, retrying") == tries - 1
    assert len(result_of(done)["results"]["images"]) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_asked_again(bench: PushBench, registry: Registry, status: int) -> None:
    fault = Fault("PUT", "/manifests/", status, times=9)
    with faulty_proxy(registry.address, fault) as address:
        image = bench.image_at(address)
        done = bench.push([f"{image}:1"])
    assert done.code == 1
    assert fault.hits == 1
    build = result_of(done)
    assert build["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    assert "\n" not in build["statusDetail"]
    assert f"docker login {address}" in build["statusDetail"]
    assert bench.left_behind(build["id"]) == []


def test_a_registry_over_tls_with_a_login(bench: PushBench, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    root.mkdir()
    with tls_registry(root) as running:
        image = bench.image_at(running.address)
        bench.login(running.address)
        refused = bench.push([f"{image}:1"])
        assert refused.code == 1
        assert "does not trust the certificate" in result_of(refused)["statusDetail"]
        with trusted(running):
            done = bench.push([f"{image}:1"])
            assert done.code == 0, done.out
            assert result_of(done)["results"]["images"][0]["name"] == f"{image}:1"
