"""The image cache of nested sandboxes: what is copied once, and what goes again."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.builders.catalog import ENGINE_IMAGE
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerSpec, ImageInfo
from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.sandboxes.nested.daemon import NestedDaemons
from buildrunner.sandboxes.nested.image_cache import UNUSED_S, ImageCache
from buildrunner.sandboxes.nested.image_catalog import Catalog
from buildrunner.sandboxes.nested.place import NestedPlace
from buildrunner.sandboxes.nested.sandbox import NestedSandbox
from buildrunner.sandboxes.protocol import SandboxLimits
from buildrunner.settings import Settings
from buildrunner.wiring.engines import image_cache_folder
from tests.conftest import remove_image
from tests.e2e.submit_bench import Bench
from tests.security.test_nested_sandbox import isolate_by

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", autouse=True)
def builders(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


class Machine:
    """Nested sandboxes with an image cache of their own."""

    def __init__(self, folder: Path, engine: DockerEngine, busybox: str) -> None:
        self.folder = folder
        self.engine = engine
        self.busybox = busybox
        self.daemons = NestedDaemons(engine.endpoint)
        self.cache = ImageCache(self.daemons, engine.endpoint, str(folder / "images"), ENGINE_IMAGE)
        sandbox = wiring.sandbox(
            "nested",
            data_folder=str(folder / "server"),
            labels={},
            settings=Settings(),
            limits=SandboxLimits(),
        )
        assert isinstance(sandbox, NestedSandbox)
        sandbox._cache = sandbox._starter._cache = sandbox._machine.cache = self.cache
        self.sandbox = sandbox
        self.places: dict[str, NestedPlace] = {}
        self.names: list[str] = []

    def image(self, content: str, name: str = "") -> str:
        """An image of the host with a shell and a file of its own; its name."""
        name = name or f"buildrunner-tests/{uuid.uuid4().hex[:12]}:1"
        self.names.append(name)
        made = self.engine.create_container(ContainerSpec(image=self.busybox, cmd=("true",)))
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as files:
            entry = tarfile.TarInfo("content")
            entry.size = len(content)
            files.addfile(entry, io.BytesIO(content.encode()))
        self.engine.put_archive(made, "/", [tar.getvalue()])
        subprocess.run(["docker", "commit", made, name], check=True, capture_output=True)
        self.engine.remove_container(made)
        return name

    def found(self, name: str) -> ImageInfo:
        found = self.engine.find_image(name)
        assert found is not None
        return found

    def host_id(self, name: str) -> str:
        return self.found(name).id

    def open(self) -> NestedPlace:
        build_id = f"test-{uuid.uuid4()}"
        place = self.sandbox.open(build_id)
        self.places[build_id] = place
        place.engine.info()
        return place

    def remove(self, place: NestedPlace) -> None:
        for build_id, one in tuple(self.places.items()):
            if one is place:
                place.close()
                self.sandbox.remove(build_id)
                del self.places[build_id]

    def use(self, name: str) -> None:
        """Run a build with that image, and let the cache take it in."""
        place = self.open()
        assert content(place, name)
        self.remove(place)
        self.cache.update()

    def catalog(self) -> Catalog:
        return self.cache._catalog() or Catalog()

    def is_cached(self, host_id: str) -> bool:
        return host_id in self.catalog().images

    def close(self) -> None:
        for place in tuple(self.places.values()):
            self.remove(place)
        self.sandbox.close()
        self.daemons.remove(self.cache.volume)
        self.daemons.remove_volume(self.cache.volume)
        assert self.daemons.cache_identity(self.cache.volume) == ""
        self.daemons.close()
        for name in self.names:
            remove_image(name)


@pytest.fixture
def machine(tmp_path: Path, docker_engine: DockerEngine, busybox: str) -> Iterator[Machine]:
    made = Machine(tmp_path, docker_engine, busybox)
    yield made
    made.close()


def content(place: NestedPlace, image: str) -> str:
    """What a container of that image finds in it; the image is looked up as a step's is."""
    found = place.engine.find_image(image)
    assert found is not None
    return run(place, found.id, "cat", "/content")


def run(place: NestedPlace, image: str, *argv: str) -> str:
    spec = ContainerSpec(image=image, cmd=argv)
    container = place.engine.create_container(spec)
    output = b"".join(place.engine.start_container(container, attach=True)).decode()
    assert place.engine.wait_container(container).code == 0, output
    return output


def docker(place: NestedPlace, *argv: str) -> str:
    """Return what the docker command says of a sandbox's engine, as it does in a step."""
    return place._daemons.execute(place.ready().state.id, ("docker", *argv)).decode()


def copies(place: NestedPlace) -> int:
    return len(place._nested._copied)


def test_an_image_is_copied_for_the_first_build_and_shared_with_all_later_ones(
    machine: Machine,
) -> None:
    name = machine.image("one")
    first = machine.open()
    assert content(first, name) == "one"
    assert copies(first) == 1
    inside = first._nested._copied[machine.host_id(name)]
    machine.remove(first)
    machine.cache.update()
    for _ in range(2):
        place = machine.open()
        assert content(place, name) == "one"
        assert copies(place) == 0
        # The same image to both engines, whatever each calls it.
        assert place.ready().images.ids[machine.host_id(name)] == inside
        found = place.engine.find_image(name)
        assert found is not None
        assert replace(found, size_bytes=0) == replace(machine.found(name), size_bytes=0)
        machine.remove(place)


def test_steps_see_the_same_id_name_and_layers_in_the_cache_as_in_a_copy(machine: Machine) -> None:
    name = machine.image("one")
    machine.cache.note_use([machine.host_id(name)])
    form = "{{.Id}} {{.RepoTags}} {{.RootFS.Layers}}"
    place = machine.open()
    place._nested.have_image(name, threading.Event())
    copied = docker(place, "image", "inspect", "--format", form, name)
    machine.cache.update()
    place = machine.open()
    assert docker(place, "image", "inspect", "--format", form, name) == copied
    assert name in copied


def test_a_name_that_the_host_gave_to_another_image_leads_there(machine: Machine) -> None:
    name = machine.image("old")
    machine.use(name)
    old = machine.host_id(name)
    machine.image("new", name)
    place = machine.open()
    assert content(place, name) == "new"
    machine.remove(place)
    machine.cache.update()
    place = machine.open()
    assert content(place, name) == "new"
    assert copies(place) == 0
    assert not machine.is_cached(old)


def test_a_second_name_of_a_cached_image_is_no_second_copy(machine: Machine) -> None:
    name = machine.image("one")
    machine.use(name)
    second = f"buildrunner-tests/{uuid.uuid4().hex[:12]}:2"
    machine.names.append(second)
    subprocess.run(["docker", "tag", name, second], check=True)
    place = machine.open()
    assert content(place, second) == "one"
    assert copies(place) == 0


def test_what_the_host_removed_goes_once_no_sandbox_reads_it(machine: Machine) -> None:
    name = machine.image("kept")
    machine.use(name)
    host_id = machine.host_id(name)
    place = machine.open()
    remove_image(name)
    machine.cache.update()
    assert machine.is_cached(host_id)
    # A sandbox that begins now does not have it, and does not keep it.
    later = machine.open()
    assert later.engine.find_image(name) is None
    assert content(place, name) == "kept"
    machine.remove(place)
    machine.cache.update()
    assert not machine.is_cached(host_id)
    assert later.engine.info().version


def test_what_no_build_uses_any_more_goes(machine: Machine) -> None:
    name, other = machine.image("one"), machine.image("two")
    machine.use(name)
    machine.use(other)
    used = machine.folder / "images" / "used" / machine.host_id(name).removeprefix("sha256:")
    long_ago = time.time() - UNUSED_S - 60
    os.utime(used, (long_ago, long_ago))
    machine.cache.update()
    assert not machine.is_cached(machine.host_id(name))
    assert machine.is_cached(machine.host_id(other))
    machine.use(name)
    assert machine.is_cached(machine.host_id(name))


@pytest.mark.parametrize("mentioned", [True, False])
def test_an_image_stays_that_only_a_build_in_the_sandbox_starts_from(
    machine: Machine, mentioned: bool
) -> None:
    name = machine.image("content")
    machine.use(name)
    used = machine.folder / "images" / "used" / machine.host_id(name).removeprefix("sha256:")
    weeks_ago = time.time() - UNUSED_S / 2 - 60
    os.utime(used, (weeks_ago, weeks_ago))
    place = machine.open()
    args = ("build", f"--build-arg=BASE={name if mentioned else 'scratch'}", ".")
    steps = (StepPlan(index=0, image="docker", args=args),)
    place.expect(BuildPlan(build_id="b", project_id="p", steps=steps, docker_socket=True))
    place._copy_mentioned(threading.Event())
    assert (used.stat().st_mtime > weeks_ago + 60) is mentioned


def test_the_disk_space_of_what_goes_is_free_again(machine: Machine) -> None:
    name = machine.image("x" * (8 << 20))
    machine.use(name)
    before = stored_mib(machine)
    remove_image(name)
    machine.cache.update()
    assert before - stored_mib(machine) >= 8


def stored_mib(machine: Machine) -> int:
    folder = machine.engine.create_volume(machine.cache.volume, {})
    said = subprocess.run(["du", "-sm", folder], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[0])


UPDATING = """
import sys
from tests.e2e.test_image_cache import ENGINE_IMAGE, DockerEngine, ImageCache, NestedDaemons
engine = DockerEngine()
ImageCache(NestedDaemons(engine.endpoint), engine.endpoint, sys.argv[1], ENGINE_IMAGE).update()
"""


def test_a_process_that_dies_while_it_adds_images_costs_nothing_but_time(machine: Machine) -> None:
    small, large = machine.image("one"), machine.image("x" * (64 << 20))
    machine.use(small)
    machine.cache.note_use([machine.host_id(large)])
    argv = [sys.executable, "-c", UPDATING, str(machine.folder / "images")]
    with subprocess.Popen(argv) as updating:
        pause = threading.Event()
        while not machine.daemons.is_running(machine.cache.volume):
            assert updating.poll() is None
            pause.wait(0.01)
        loading = machine.folder / "images" / "engine" / "docker.sock"
        while not loading.exists():
            assert updating.poll() is None
            pause.wait(0.001)
        updating.send_signal(signal.SIGKILL)
    place = machine.open()
    assert content(place, small) == "one"
    assert copies(place) == 0
    machine.remove(place)
    machine.cache.update()
    assert machine.is_cached(machine.host_id(large))
    assert not machine.daemons.is_running(machine.cache.volume)
    place = machine.open()
    assert len(content(place, large)) == 64 << 20
    assert copies(place) == 0


def test_a_killed_cache_engine_leaves_no_layer_that_nobody_knows(machine: Machine) -> None:
    name = machine.image("one")
    machine.use(name)
    folder = Path(machine.engine.create_volume(machine.cache.volume, {})) / "overlay2"
    (folder / "unfinished" / "diff").mkdir(parents=True)
    known = {one.name for one in folder.iterdir()} - {"unfinished"}
    machine.cache.note_use([machine.host_id(machine.image("two"))])
    machine.cache.update()
    assert not (folder / "unfinished").exists()
    assert known < {one.name for one in folder.iterdir()}


def test_processes_that_add_images_at_once_add_each_of_them(machine: Machine) -> None:
    names = [machine.image(str(number)) for number in range(4)]

    def add(name: str) -> None:
        cache = ImageCache(
            machine.daemons, machine.engine.endpoint, str(machine.folder / "images"), ENGINE_IMAGE
        )
        cache.note_use([machine.host_id(name)])
        cache.update()

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(add, names))
    place = machine.open()
    assert [content(place, name) for name in names] == ["0", "1", "2", "3"]
    assert copies(place) == 0


def test_a_cache_whose_catalog_is_lost_is_found_again(machine: Machine) -> None:
    """As a restart of the machine loses it."""
    name = machine.image("one")
    machine.use(name)
    for one in (f"{machine.cache.volume}.catalog", "start.lock", "update.lock"):
        (machine.folder / "images" / one).unlink()
    place = machine.open()
    assert content(place, name) == "one"
    assert copies(place) == 0


def test_sandboxes_with_and_without_a_user_namespace_do_not_read_each_other_s_catalog(
    machine: Machine,
) -> None:
    name = machine.image("one")
    machine.use(name)
    catalog = machine.catalog()
    machine.cache.mode = "capabilities"
    assert not machine.is_cached(machine.host_id(name))
    machine.cache.update()
    assert machine.is_cached(machine.host_id(name))
    machine.daemons.remove_volume(machine.cache.volume)
    machine.cache.mode = "user-namespace"
    assert machine.catalog() == catalog


def test_a_build_that_starts_while_the_cache_changes_has_what_was_cached_before(
    machine: Machine,
) -> None:
    name = machine.image("one")
    machine.use(name)
    with machine.cache._lock("update.lock"), machine.cache._engine() as api:
        api.ping()
        place = machine.open()
        assert content(place, name) == "one"
        assert copies(place) == 0


def test_the_images_of_a_build_without_a_user_namespace_are_cached_for_such_builds(
    tmp_path: Path, machine: Machine
) -> None:
    """The guardian of the build does so, once the build is over."""
    name = machine.image("one")
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", machine.engine, machine.busybox)
    isolate_by(bench, "capabilities")
    bench.write("cloudbuild.yaml", f"steps: [{{name: '{name}', args: [cat, /content]}}]\n")
    done = bench.run("submit", ".", "--sandbox", "nested")
    assert done.code == 0, done.out + done.err
    endpoint = machine.engine.endpoint
    of_user = image_cache_folder(endpoint.address)
    cache = ImageCache(machine.daemons, endpoint, of_user, ENGINE_IMAGE)
    cache.mode = "capabilities"
    deadline = time.monotonic() + 120
    while machine.host_id(name) not in (cache._catalog() or Catalog()).images:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_cache_whose_volume_is_lost_is_filled_again(machine: Machine) -> None:
    name = machine.image("one")
    machine.use(name)
    machine.daemons.remove_volume(machine.cache.volume)
    machine.use(name)
    place = machine.open()
    assert content(place, name) == "one"
    assert copies(place) == 0


def test_a_cache_that_is_broken_is_filled_again(machine: Machine) -> None:
    name = machine.image("one")
    machine.use(name)
    folder = Path(machine.engine.create_volume(machine.cache.volume, {}))
    (folder / "image" / "overlay2" / "repositories.json").write_text("{")
    (machine.folder / "images" / f"{machine.cache.volume}.catalog").unlink()
    machine.use(name)
    assert machine.is_cached(machine.host_id(name))


def test_steps_can_not_change_what_later_builds_share(machine: Machine) -> None:
    name = machine.image("one")
    machine.use(name)
    place = machine.open()
    said = docker(
        place,
        "run",
        "--rm",
        "-v",
        "/run:/run-of-engine",
        name,
        "sh",
        "-c",
        "for one in /run-of-engine/layers/*/diff/content; do echo x > $one || :; done 2>&1",
    )
    assert "Read-only file system" in said
    docker(place, "rmi", "--force", name)
    machine.remove(place)
    assert content(machine.open(), name) == "one"


def test_nothing_is_made_for_a_cache_that_nobody_needs(machine: Machine) -> None:
    machine.cache.update()
    assert machine.daemons.cache_identity(machine.cache.volume) == ""


def test_a_copy_can_be_stopped(machine: Machine) -> None:
    name = machine.image("x" * (8 << 20))
    place = machine.open()
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Exception, match="stopped"):
        place._nested.have_image(name, stopped)
    assert copies(place) == 0
