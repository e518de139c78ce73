"""Pushes of nested builds: what the registry has is neither packed nor sent again."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from buildrunner import wiring
from buildrunner.builders.catalog import ENGINE_IMAGE
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerSpec, Mount
from buildrunner.sandboxes.nested.daemon import NestedDaemons
from buildrunner.sandboxes.nested.image_cache import ImageCache
from buildrunner.sandboxes.nested.place import NestedPlace
from buildrunner.sandboxes.nested.sandbox import NestedSandbox
from buildrunner.sandboxes.protocol import OpenSandbox
from buildrunner.settings import Settings
from tests.conftest import DEADLINE_S, Registry, remove_image, start_registry, stop
from tests.e2e.submit_bench import Bench

pytestmark = pytest.mark.docker

DOCKER = "gcr.io/cloud-builders/docker"
SENT, KNOWN = (1, 0), (0, 1)

Answer = TypeVar("Answer")


@pytest.fixture(scope="module", autouse=True)
def builders(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry that no other test pushes to: the host engine knows nothing of it."""
    root = tmp_path / "registry"
    root.mkdir()
    made = start_registry(root)
    yield made
    stop(made.process)


def one_layer(engine: DockerEngine, name: str) -> str:
    """Make an image of one layer that no other image has; the layer's short id."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("data")
        entry.size = 1 << 20
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    engine.import_image(name, [buffer.getvalue()], cmd=["none"], env=[])
    found = subprocess.run(["docker", "inspect", name], check=True, capture_output=True).stdout
    (layer,) = json.loads(found)[0]["RootFS"]["Layers"]
    return str(layer).removeprefix("sha256:")[:12]


class Project:
    """Builds of a server's, one after the other, that push one image."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        self.image = image
        self.cache: ImageCache | None = None
        """Instead of the image cache of this user."""

    def push(self, project: str, *, trusted: bool = True) -> tuple[int, int]:
        """How many layers a new build sends, and how many it finds in the registry."""
        return self.build(project, trusted=trusted, act=self._push)

    def push_in_a_step(self, project: str) -> str:
        """What a step's ``docker push`` says."""
        return self.build(project, act=self._push_in_a_step)

    def build(
        self, project: str, *, act: Callable[[OpenSandbox], Answer], trusted: bool = True
    ) -> Answer:
        sandbox = wiring.sandbox(
            "nested", data_folder=str(self.folder), labels={}, settings=Settings()
        )
        if self.cache is not None:
            assert isinstance(sandbox, NestedSandbox)
            sandbox._cache = sandbox._starter._cache = sandbox._machine.cache = self.cache
        build_id = f"test-{uuid.uuid4()}"
        try:
            place = sandbox.open(build_id, project=project, trusted=trusted)
            try:
                return act(place)
            finally:
                place.close()
        finally:
            sandbox.remove(build_id)
            sandbox.close()

    def _push(self, place: OpenSandbox) -> tuple[int, int]:
        pushed = place.engine.push_image(
            self.image, on_progress=lambda _: None, cancel=threading.Event()
        )
        return pushed.layers_pushed, pushed.layers_reused

    def _push_in_a_step(self, place: OpenSandbox) -> str:
        assert isinstance(place, NestedPlace)
        place._nested.have_image(self.image, threading.Event())  # as when the plan mentions it
        place._ports.open(int(self.image.partition("/")[0].rpartition(":")[2]))
        socket = "/var/run/docker.sock"
        container = place.engine.create_container(
            ContainerSpec(
                image="buildrunner/docker",
                cmd=("push", self.image),
                mounts=(Mount(source=socket, target=socket, bind=True),),
            )
        )
        output = b"".join(place.engine.start_container(container, attach=True)).decode()
        assert place.engine.wait_container(container).code == 0, output
        return output


@pytest.fixture
def project(
    tmp_path: Path, docker_engine: DockerEngine, own_registry: Registry
) -> Iterator[Project]:
    name = f"{own_registry.address}/app:1"
    one_layer(docker_engine, name)
    yield Project(tmp_path / "server", name)
    remove_image(name)


def test_what_the_registry_has_is_neither_packed_nor_sent_by_the_next_build(
    tmp_path: Path, docker_engine: DockerEngine, busybox: str, own_registry: Registry
) -> None:
    base = f"buildrunner-tests/base:{uuid.uuid4().hex[:8]}"
    layer = one_layer(docker_engine, base)
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", docker_engine, busybox)
    bench.write("Dockerfile", f"FROM {base}\nCOPY changed /changed\n")
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- {{name: {DOCKER}, args: [build, -t, '{own_registry.address}/app:1', .]}}
- name: {DOCKER}
  args: [history, --format, 'a layer of {{{{.Size}}}}', '{own_registry.address}/app:1']
images: ['{own_registry.address}/app:1']
""",
    )
    said = []
    for number in range(2):
        bench.write("changed", str(number))
        done = bench.run("submit", ".", "--sandbox", "nested")
        assert done.code == 0, done.out + done.err
        said.append(done.out)
    remove_image(base)
    assert f"{layer}: Pushed" in said[0]
    assert f"{layer}: Layer already exists" in said[1]
    assert f"{layer}: Pushed" not in said[1]
    # One byte was copied: nothing of the base is in what lies on it.
    assert "a layer of 1B" in said[0]


def test_a_project_hears_of_its_own_trusted_builds_only(project: Project) -> None:
    assert project.push("one", trusted=False) == SENT
    assert project.push("one") == SENT
    assert project.push("one") == KNOWN
    assert project.push("one", trusted=False) == SENT
    assert project.push("two") == SENT


def test_what_a_steps_own_push_taught_counts_as_well(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine learns late.
    monkeypatch.setattr("buildrunner.sandboxes.nested.place._LEARN_S", DEADLINE_S)
    assert ": Pushed" in project.push_in_a_step("one")
    assert ": Layer already exists" in project.push_in_a_step("one")


def test_what_was_learned_counts_for_a_sandbox_that_starts_without_cached_images(
    tmp_path: Path, project: Project, docker_engine: DockerEngine
) -> None:
    """As one does while another process reads or fills the cache for the first time."""
    daemons = NestedDaemons(docker_engine.endpoint)
    project.cache = ImageCache(
        daemons, docker_engine.endpoint, str(tmp_path / "images"), ENGINE_IMAGE
    )
    assert project.push("one") == SENT
    assert project.push("one") == KNOWN
    daemons.close()


def test_what_the_registry_lost_is_sent_again(
    project: Project, own_registry: Registry, docker_engine: DockerEngine
) -> None:
    assert project.push("one") == SENT
    shutil.rmtree(own_registry.root / "data")
    assert project.push("one") == SENT
    remove_image(project.image)
    pulled = docker_engine.pull_image(
        project.image, on_progress=lambda _: None, cancel=threading.Event()
    )
    assert pulled.digest


def test_a_garbled_memory_costs_nothing_but_time(project: Project) -> None:
    assert project.push("one") == SENT
    (file,) = (project.folder / "pushed-layers").iterdir()
    file.write_bytes(b"garbled" * 1000)
    assert project.push("one") == SENT
    assert project.push("one") == KNOWN
    shutil.rmtree(project.folder / "pushed-layers")
    assert project.push("one") == SENT
