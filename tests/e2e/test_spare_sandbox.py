"""Sandboxes that are started before their builds: one for each, and only while they are fit."""

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from buildrunner import wiring
from buildrunner.builders.catalog import ENGINE_IMAGE
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, Mount
from buildrunner.errors import EngineUnavailable
from buildrunner.sandboxes.nested.container import container_name
from buildrunner.sandboxes.nested.daemon import NestedDaemons
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sandboxes.nested.image_cache import ImageCache
from buildrunner.sandboxes.nested.place import NestedPlace
from buildrunner.sandboxes.nested.sandbox import NestedSandbox
from buildrunner.sandboxes.protocol import SandboxLimits
from buildrunner.settings import Settings
from tests.conftest import Registry, remove_image

pytestmark = pytest.mark.docker

LABELS = {"buildrunner.server": "test-spares"}


@pytest.fixture(scope="module")
def builders(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cache(
    builders: None, docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImageCache]:
    """An image cache of these tests' own.

    In the user's cache, a name that another test gives to an image makes each spare sandbox unfit.
    """
    folder = tmp_path_factory.mktemp("images")
    daemons = NestedDaemons(docker_engine.endpoint)
    made = ImageCache(daemons, docker_engine.endpoint, str(folder), ENGINE_IMAGE)
    yield made
    daemons.remove(made.volume)
    daemons.remove_volume(made.volume)
    assert daemons.cache_identity(made.volume) == ""
    daemons.close()


class Server:
    """The sandboxes of a server, in a folder of the test's."""

    def __init__(self, folder: Path, engine: DockerEngine, cache: ImageCache) -> None:
        self.folders = SandboxFolders(str(folder))
        self.engine = engine
        self.cache = cache
        self.builds: list[str] = []
        self.places: list[NestedPlace] = []
        self.sandbox = self.of(SandboxLimits())

    def of(self, limits: SandboxLimits) -> NestedSandbox:
        sandbox = wiring.sandbox(
            "nested",
            data_folder=self.folders.root,
            labels=LABELS,
            settings=Settings(),
            limits=limits,
        )
        assert isinstance(sandbox, NestedSandbox)
        sandbox._cache = sandbox._starter._cache = sandbox._machine.cache = self.cache
        sandbox._machine.ensure_images()
        self.cache.update()
        return sandbox

    def spare(self) -> str:
        """The place of one that stands ahead and is fit."""
        self.sandbox.keep_spares(1)
        (place,) = self.folders.spares()
        return place

    def new(self) -> str:
        self.builds.append(f"test-{uuid.uuid4()}")
        return self.builds[-1]

    def open(self, build_id: str, **options: object) -> NestedPlace:
        place = self.sandbox.open(build_id, **options)  # type: ignore[arg-type]
        self.places.append(place)
        return place

    def opened_spare(self, **options: object) -> tuple[str, str, NestedPlace]:
        """A build that got the spare one: its id, its place, and that place opened."""
        spare, build_id = self.spare(), self.new()
        place = self.open(build_id, **options)
        assert self.folders.place(build_id) == spare
        return build_id, spare, place

    def cached(self, image: str) -> None:
        """Have an image in the image cache, as after a build that used it."""
        found = self.engine.find_image(image)
        assert found is not None
        self.cache.note_use([found.id])
        self.cache.update()

    def is_fit(self, sandbox: NestedSandbox | None = None) -> bool:
        """Whether a build would get the one that stands ahead."""
        chosen = sandbox or self.sandbox
        return chosen._spares.take(self.new(), chosen._daemons.facts()) is not None

    def left(self, name: str) -> list[str]:
        owned = self.engine.list_owned({LABEL_BUILD: name})
        return [*owned.containers, *owned.volumes]

    def close(self) -> None:
        for place in self.places:
            place.close()
        self.sandbox.drop_spares()
        for build_id in self.builds:
            self.sandbox.remove(build_id)
        self.sandbox.close()


@pytest.fixture
def server(tmp_path: Path, docker_engine: DockerEngine, cache: ImageCache) -> Iterator[Server]:
    made = Server(tmp_path / "server", docker_engine, cache)
    yield made
    made.close()


def run(place: NestedPlace, image: str, *argv: str) -> str:
    found = place.engine.find_image(image)
    assert found is not None
    spec = ContainerSpec(
        image=found.id,
        cmd=argv,
        network="cloudbuild",
        mounts=(Mount(source="/workspace", target="/workspace", bind=True),),
    )
    container = place.engine.create_container(spec)
    output = b"".join(place.engine.start_container(container, attach=True))
    assert place.engine.wait_container(container).code == 0, output
    return output.decode()


@pytest.mark.parametrize("count", [0, 1])
def test_the_image_of_its_engine_is_made_before_the_first_build(server: Server, count: int) -> None:
    made = []
    make = server.sandbox._image
    server.sandbox._image = lambda: made.append("engine") or make()
    server.sandbox.keep_spares(count)
    assert made


def test_builds_wait_while_the_image_of_its_engine_is_made(server: Server) -> None:
    server.sandbox.check()
    server.sandbox._machine.image = SimpleNamespace(is_being_made=True)
    with pytest.raises(EngineUnavailable, match="is being made, once on this machine"):
        server.sandbox.check()


def test_one_build_gets_it_and_nobody_after_that_one(server: Server, busybox: str) -> None:
    build_id, spare, place = server.opened_spare()
    assert server.folders.spares() == ()
    assert run(place, busybox, "sh", "-c", "ls /workspace; touch /workspace/used") == ""
    other = server.new()
    second = server.open(other)
    second.engine.ensure_network("cloudbuild", {})
    assert server.folders.place(other) == other
    assert run(second, busybox, "ls", "/workspace") == ""
    assert set(server.sandbox.builds_left()) >= {build_id, other}
    assert spare not in server.sandbox.builds_left()
    for one, opened in ((build_id, place), (other, second)):
        opened.close()
        server.sandbox.remove(one)
    assert server.left(spare) == server.left(build_id) == server.left(other) == []
    assert not set(server.sandbox.builds_left()) & {build_id, other, spare}
    assert not Path(server.folders.notes(build_id)).exists()


def test_of_builds_that_begin_at_once_one_gets_it(server: Server) -> None:
    spare = server.spare()
    facts = server.sandbox._daemons.facts()
    builds = [server.new() for _ in range(8)]
    together = threading.Barrier(len(builds))

    def take(build_id: str) -> bool:
        together.wait()
        return server.folders.take(spare, build_id)

    with ThreadPoolExecutor(len(builds)) as pool:
        assert sorted(pool.map(take, builds)) == [False] * 7 + [True]
    assert server.sandbox._spares.take(server.new(), facts) is None
    (owner,) = (one for one in builds if server.folders.place(one) == spare)
    assert server.sandbox.builds_left().count(owner) == 1


def test_who_goes_on_with_a_build_finds_the_one_it_had(server: Server, busybox: str) -> None:
    build_id, spare, place = server.opened_spare()
    run(place, busybox, "touch", "/workspace/used")
    place.close()
    _, second, other = server.opened_spare()
    again = server.open(build_id)
    assert run(again, busybox, "ls", "/workspace") == "used\n"
    assert run(other, busybox, "ls", "/workspace") == ""
    assert server.folders.place(build_id) == spare != second


def test_a_dead_one_is_not_handed_out_and_goes(server: Server) -> None:
    """As the restart of an engine leaves it."""
    spare = server.spare()
    subprocess.run(["docker", "kill", container_name(spare)], check=True, capture_output=True)
    assert server.sandbox._starter.answers(spare) is None
    build_id = server.new()
    server.open(build_id).engine.info()
    assert server.folders.place(build_id) == build_id
    assert server.spare() != spare
    assert server.left(spare) == []


def test_one_that_would_be_another_now_is_not_handed_out(server: Server, busybox: str) -> None:
    spare = server.spare()
    other = server.of(SandboxLimits(memory_bytes=1 << 30))
    assert not server.is_fit(other)
    other.close()
    name = f"spare-{uuid.uuid4().hex[:8]}:1"
    subprocess.run(["docker", "tag", busybox, name], check=True)
    server.cached(busybox)
    assert not server.is_fit()
    _, second, place = server.opened_spare()
    assert place.engine.find_image(name) is not None
    assert second != spare
    assert server.left(spare) == []
    remove_image(name)


def test_one_of_an_earlier_server_is_not_kept(server: Server) -> None:
    """Who cleans up after dead servers would remove it while it stands ahead."""
    spare = server.spare()
    note = Path(server.folders.notes(spare)) / "spare.json"
    told = json.loads(note.read_text())
    note.write_text(json.dumps({**told, "keeper": "1:1"}))
    assert server.spare() != spare
    assert server.left(spare) == []


def test_one_that_does_not_answer_is_not_handed_out(server: Server) -> None:
    spare = server.spare()
    Path(server.folders.socket(spare)).unlink()
    assert not server.is_fit()


def test_its_build_knows_what_builds_of_the_project_pushed(
    server: Server, busybox: str, registry: Registry
) -> None:
    name = f"{registry.address}/{uuid.uuid4().hex[:8]}:1"
    build_id, _, place = server.opened_spare(project="a")
    place._nested.have_image(busybox, threading.Event())
    argv = ["docker", "-H", "unix://docker.sock", "tag", busybox, name]  # its path is too long
    subprocess.run(argv, check=True, cwd=server.folders.notes(build_id))
    place.engine.push_image(name, on_progress=lambda _: None, cancel=threading.Event())
    place.close()

    def is_told(build_id: str, place: NestedPlace) -> bool:
        place.engine.info()
        place.close()
        notes = Path(server.folders.notes(build_id), "origins").glob("sha256/*")
        return any(name.partition(":1")[0].encode() in one.read_bytes() for one in notes)

    for project, knows in (("a", True), ("b", False)):
        build_id, _, place = server.opened_spare(project=project)
        assert is_told(build_id, place) is knows
    stranger = server.new()
    assert not is_told(stranger, server.open(stranger, project="a", trusted=False))


def test_the_server_takes_it_along(server: Server) -> None:
    spare = server.spare()
    assert spare not in server.sandbox.builds_left()
    server.sandbox.drop_spares()
    assert server.folders.spares() == ()
    assert server.left(spare) == []
