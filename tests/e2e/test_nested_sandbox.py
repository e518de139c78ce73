"""Builds with an engine of their own: what they can't touch, and what they leave behind."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.docker.images import PulledImages
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, Mount
from buildrunner.errors import EngineUnavailable
from buildrunner.sandboxes.nested import host_pulls as wanted_images
from buildrunner.sandboxes.nested import start as nested_start
from buildrunner.sandboxes.nested.container import container_name
from buildrunner.sandboxes.nested.place import NestedPlace
from buildrunner.sandboxes.nested.sandbox import NestedSandbox
from buildrunner.sandboxes.protocol import OpenSandbox, SandboxLimits
from buildrunner.settings import Settings
from tests.conftest import Registry, remove_image
from tests.e2e.submit_bench import Bench, Done, read_until
from tests.fixtures_git import HttpServer, Repository, closing
from tests.security.test_nested_sandbox import isolate_by

pytestmark = pytest.mark.docker

LABELS = {"buildrunner.server": "test-nested"}
DOCKER = "gcr.io/cloud-builders/docker"
SOCKET = "/var/run/docker.sock"


@pytest.fixture(scope="module")
def builders(docker_engine: DockerEngine) -> None:
    """The images that nested builds need; a tenth of a second when they are up to date."""
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def bench(tmp_path: Path, docker_engine: DockerEngine, busybox: str, builders: None) -> Bench:
    return another(tmp_path, "one", docker_engine, busybox)


def another(tmp_path: Path, name: str, engine: DockerEngine, image: str) -> Bench:
    folder = tmp_path / name
    folder.mkdir()
    return Bench(folder, tmp_path / "data", engine, image)


def submit(bench: Bench, *arguments: str) -> Done:
    return bench.run("submit", ".", "--sandbox", "nested", *arguments)


def nothing_left(bench: Bench, build_id: str) -> None:
    """No container, volume, folder or mount of a build is there."""
    assert bench.left_behind(build_id) == []
    run = Path(bench.environ["XDG_DATA_HOME"]) / "buildrunner" / "sandboxes" / "run"
    assert list(run.iterdir()) == []
    assert build_id not in Path("/proc/self/mountinfo").read_text()


def test_a_step_may_hand_the_workspace_to_a_container_of_its_own(bench: Bench) -> None:
    bench.write("source.txt", "from the source")
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  args: [run, --rm, -v, '/workspace:/workspace', IMAGE, sh, -c,
         'cat /workspace/source.txt && echo made > /workspace/made']
- name: IMAGE
  args: [cat, made]
""",
    )
    done = submit(bench)
    assert done.code == 0, done.out + done.err
    assert "Step #0: from the source" in done.out
    assert "Step #1: made" in done.out
    assert {one.name for one in bench.folder.iterdir()} == {"cloudbuild.yaml", "source.txt"}
    nothing_left(bench, done.build_id)


@pytest.mark.parametrize("mode", ["user-namespace", "capabilities"])
def test_dependencies_are_beside_a_source_that_is_a_layer(
    bench: Bench, tmp_path: Path, mode: str
) -> None:
    """Issue: the layers hid the files of the dependencies."""
    isolate_by(bench, mode)
    repository = Repository(tmp_path / "served")
    repository.commit({"part": b"of the dependency\n", "both": b"of the dependency\n"})
    repository.push("main")
    bench.write("lib/mine", "of the source\n")
    bench.write("lib/both", "of the source\n")
    bench.write("left-out/mine", "of the source\n")
    bench.write(".gcloudignore", "left-out\n")
    script = """
      cat lib/mine lib/both lib/part
      ls left-out
      stat -c %u:%a left-out/part
      mv lib moved
      cat moved/mine moved/part
      echo changed > moved/part
    """
    with closing(HttpServer(repository.root)) as http:
        git_source = {"repository": {"url": http.url()}, "revision": "main"}
        config = {
            "dependencies": [
                {"gitSource": {**git_source, "destPath": path}} for path in ("lib", "left-out")
            ],
            "steps": [{"name": bench.image, "script": script}],
        }
        bench.write("cloudbuild.yaml", json.dumps(config))
        done = submit(bench)
    assert done.code == 0, done.out + done.err
    said = [line for line in done.out.partition("BUILD\n")[2].splitlines() if "of the" in line]
    mine, theirs = "of the source", "of the dependency"
    assert said == [mine, theirs, theirs, mine, theirs]
    assert "\nboth\npart\n0:644\n" in done.out
    nothing_left(bench, done.build_id)


def test_builds_at_once_have_names_images_and_networks_of_their_own(
    tmp_path: Path, docker_engine: DockerEngine, busybox: str, bench: Bench
) -> None:
    benches = [bench, another(tmp_path, "two", docker_engine, busybox)]
    tag = f"nested-{uuid.uuid4().hex[:8]}"
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    for one in benches:
        one.write("Dockerfile", f"FROM IMAGE\nRUN echo {one.folder.name} > /whose\n")
        one.write(
            "cloudbuild.yaml",
            f"""
steps:
- name: {DOCKER}
  entrypoint: sh
  args:
  - -euxc
  - |
    docker network create same-network
    docker build -t {tag} .
    docker run -d --name same-name --network same-network {tag} sleep 600
    test "$$(docker ps -q | wc -l)" -le 4
    docker exec same-name cat /whose
- name: {tag}
  args: [cat, /whose]
""",
        )
    running = [one.start("submit", ".", "--sandbox", "nested") for one in benches]
    for one, process in zip(benches, running, strict=True):
        out, err = process.communicate(timeout=90)
        done = Done(process.returncode, out, err)
        assert done.code == 0, out + err
        assert f"Step #1: {one.folder.name}" in out
        assert one.left_behind(done.build_id) == []
    assert docker_engine.find_image(tag) is None


def test_images_are_built_and_pushed_also_to_a_registry_of_this_machine(
    bench: Bench, registry: Registry
) -> None:
    name = f"{registry.address}/{uuid.uuid4().hex[:8]}"
    bench.write("Dockerfile", "FROM IMAGE\nRUN echo new > /new\n")
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  args: [build, -t, '{name}/app:1', -t, '{name}/by-step:1', .]
- name: {DOCKER}
  args: [push, '{name}/by-step:1']
images: ['{name}/app:1']
""",
    )
    done = submit(bench)
    assert done.code == 0, done.out + done.err
    (build,) = bench.builds("list")
    (image,) = build["results"]["images"]
    assert image["digest"].startswith("sha256:")
    assert f"{image['digest']} size" in done.out
    assert bench.engine.find_image(f"{name}/app:1") is None
    pulled = bench.engine.pull_image(
        f"{name}/app:1", on_progress=lambda _: None, cancel=threading.Event()
    )
    remove_image(f"{name}/app:1")
    assert pulled.digest == image["digest"]


def test_whatever_a_step_does_to_images_the_host_keeps_its_own(bench: Bench) -> None:
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  entrypoint: sh
  args:
  - -euc
  - |
    docker run --name changed IMAGE sh -c 'rm -rf /bin/ls; echo changed > /etc/passwd'
    docker commit changed IMAGE
    docker rm changed
    docker rmi -f IMAGE
    docker system prune -af --volumes > /dev/null
    docker images -q | wc -l > left
- name: {DOCKER}
  entrypoint: cat
  args: [left]
""",
    )
    before = bench.engine.find_image(bench.image)
    done = submit(bench)
    # The second step's own image was pruned away: it comes back from the host.
    assert done.code == 0, done.out + done.err
    assert bench.engine.find_image(bench.image) == before
    made = bench.engine.create_container(
        ContainerSpec(image=bench.image, cmd=("sh", "-c", "ls /bin/ls && cat /etc/passwd"))
    )
    output = b"".join(bench.engine.start_container(made, attach=True))
    bench.engine.remove_container(made)
    assert b"/bin/ls" in output
    assert b"root:x:0:0" in output


@pytest.mark.parametrize("moment", ["FETCHSOURCE", "in it"])
def test_a_killed_command_leaves_nothing(bench: Bench, moment: str) -> None:
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  entrypoint: sh
  args: [-c, 'docker run -d -v vol:/vol -v /workspace:/w IMAGE sleep 600; echo in it; sleep 600']
""",
    )
    process = bench.start("submit", ".", "--sandbox", "nested")
    seen = read_until(process, moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    nothing_left(bench, Done(0, seen, "").build_id)


def test_a_killed_engine_is_an_internal_error_that_says_so(bench: Bench) -> None:
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [sh, -c, 'echo up; sleep 600']}]")
    process = bench.start("submit", ".", "--sandbox", "nested")
    seen = read_until(process, "up")
    build_id = Done(0, seen, "").build_id
    bench.engine.kill_container(container_name(build_id))
    out, err = process.communicate(timeout=90)
    assert process.returncode == 3, out + err
    assert "the engine of the build's sandbox was killed" in out + err
    assert "left behind" not in out + err  # what was in it went with it
    (build,) = bench.builds("list")
    assert build["status"] == "INTERNAL_ERROR"
    nothing_left(bench, build_id)


class Sandboxes:
    """Sandboxes as a server has them, in a folder of the test's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.sandbox = self.of(SandboxLimits())

    def of(self, limits: SandboxLimits) -> NestedSandbox:
        sandbox = wiring.sandbox(
            "nested",
            data_folder=str(self.folder),
            labels=LABELS,
            settings=Settings(),
            limits=limits,
        )
        assert isinstance(sandbox, NestedSandbox)
        return sandbox

    def new(self) -> str:
        self.made.append(f"test-{uuid.uuid4()}")
        return self.made[-1]

    def close(self) -> None:
        for build_id in self.made:
            self.sandbox.remove(build_id)
        self.sandbox.close()


@pytest.fixture
def sandboxes(tmp_path: Path, builders: None) -> Iterator[Sandboxes]:
    made = Sandboxes(tmp_path / "server")
    yield made
    made.close()


def start(place: OpenSandbox, image: str, *argv: str) -> str:
    container = place.engine.create_container(
        ContainerSpec(
            image=image,
            cmd=argv,
            labels={"of": "test"},
            mounts=(Mount(source="/workspace", target="/workspace", bind=True),),
            keep_log=True,
        )
    )
    place.engine.start_container(container, attach=False)
    return container


def run(place: OpenSandbox, image: str, *argv: str) -> tuple[str, int]:
    container = place.engine.create_container(ContainerSpec(image=image, cmd=argv))
    output = b"".join(place.engine.start_container(container, attach=True)).decode()
    return output, place.engine.wait_container(container).code


CRASHING = """
import os, signal, sys
from buildrunner import wiring
from buildrunner.settings import Settings
from tests.e2e.test_nested_sandbox import LABELS, start
folder, build_id, image = sys.argv[1:]
sandbox = wiring.sandbox("nested", data_folder=folder, labels=LABELS, settings=Settings())
place = sandbox.open(build_id)
start(place, image, "sh", "-c", "echo still here > /workspace/found; sleep 600")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_dead_process_left_is_found_again(sandboxes: Sandboxes, busybox: str) -> None:
    build_id = sandboxes.new()
    argv = [sys.executable, "-c", CRASHING, str(sandboxes.folder), build_id, busybox]
    ended = subprocess.run(argv, check=False, capture_output=True, timeout=90)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert build_id in sandboxes.sandbox.builds_left()
    place = sandboxes.sandbox.open(build_id)
    (found,) = place.engine.find_containers({"of": "test"})
    assert found.was_started
    place.engine.kill_container(found.id)
    assert place.engine.wait_container(found.id).code == 137
    reader = place.engine.create_container(
        ContainerSpec(
            image=busybox,
            cmd=("cat", "/workspace/found"),
            mounts=(Mount(source="/workspace", target="/workspace", bind=True),),
        )
    )
    output = b"".join(place.engine.start_container(reader, attach=True))
    assert output == b"still here\n"
    place.close()
    sandboxes.sandbox.remove(build_id)
    sandboxes.sandbox.remove(build_id)
    assert build_id not in sandboxes.sandbox.builds_left()


STARTING = """
import sys
from buildrunner import wiring
from buildrunner.settings import Settings
from tests.e2e.test_nested_sandbox import LABELS
folder, build_id = sys.argv[1:]
sandbox = wiring.sandbox("nested", data_folder=folder, labels=LABELS, settings=Settings())
sandbox.open(build_id).engine.info()
"""


@pytest.mark.parametrize("event", ["create", "start"])
def test_a_process_that_dies_while_it_makes_one_leaves_nothing_for_good(
    sandboxes: Sandboxes, docker_engine: DockerEngine, event: str
) -> None:
    build_id = sandboxes.new()
    chosen = [f"--filter=label={LABEL_BUILD}={build_id}", f"--filter=event={event}"]
    # From the beginning, so that no event is missed.
    events = subprocess.Popen(["docker", "events", "--since=0", *chosen], stdout=subprocess.PIPE)
    argv = [sys.executable, "-c", STARTING, str(sandboxes.folder), build_id]
    with events, subprocess.Popen(argv, stderr=subprocess.DEVNULL) as starting:
        assert events.stdout is not None
        assert events.stdout.readline()
        starting.kill()
        events.kill()
    sandboxes.sandbox.remove(build_id)
    assert build_id not in sandboxes.sandbox.builds_left()
    owned = docker_engine.list_owned({LABEL_BUILD: build_id})
    assert (owned.containers, owned.volumes, owned.networks) == ((), (), ())
    assert not (sandboxes.folder / "run" / build_id).exists()


def test_one_that_was_only_created_is_made_anew(sandboxes: Sandboxes, busybox: str) -> None:
    build_id = sandboxes.new()
    host = wiring.container_engine()
    host.create_container(
        ContainerSpec(
            image=busybox, name=container_name(build_id), labels={**LABELS, LABEL_BUILD: build_id}
        )
    )
    host.close()
    place = sandboxes.sandbox.open(build_id)
    assert run(place, busybox, "echo", "up") == ("up\n", 0)
    place.close()


def test_a_sandbox_and_all_in_it_have_limits_together(sandboxes: Sandboxes, busybox: str) -> None:
    sandbox = sandboxes.of(SandboxLimits(memory_bytes=300 << 20, cpu_shares=512, pids=500))
    build_id = sandboxes.new()
    place = sandbox.open(build_id)
    engine = place.engine
    # It has no limit of its own.
    container = engine.create_container(ContainerSpec(image=busybox, cmd=("tail", "/dev/zero")))
    list(engine.start_container(container, attach=True))
    assert engine.wait_container(container).code == 137
    argv = ["docker", "inspect", container_name(build_id)]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    host = found[0]["HostConfig"]
    assert (host["Memory"], host["CpuShares"], host["PidsLimit"]) == (300 << 20, 512, 500)
    place.close()
    sandbox.close()


def test_a_sandbox_trusts_the_authorities_of_registries_and_has_no_key_of_a_client(
    sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = tmp_path / "certs.d" / "registry.example.com:5000"
    registry.mkdir(parents=True)
    for name in ("ca.crt", "client.cert", "client.key"):
        (registry / name).write_text(f"content of {name}")
    monkeypatch.setattr(nested_start, "CERTIFICATES", str(registry.parent))
    build_id = sandboxes.new()
    place = sandboxes.sandbox.open(build_id)
    assert place.engine.info().version
    argv = ["docker", "exec", container_name(build_id), "find", "/etc/docker/certs.d", "-type", "f"]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert found.split() == ["/etc/docker/certs.d/registry.example.com:5000/ca.crt"]
    place.close()


def test_a_sandbox_starts_without_any_certificates_of_registries(
    sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nested_start, "CERTIFICATES", str(tmp_path / "certs.d"))
    place = sandboxes.sandbox.open(sandboxes.new())
    assert place.engine.info().version
    place.close()


def test_an_engine_that_runs_out_of_memory_says_so(sandboxes: Sandboxes) -> None:
    sandboxes.sandbox.open(sandboxes.new()).close()  # from now on it is known how they start
    sandbox = sandboxes.of(SandboxLimits(memory_bytes=32 << 20))
    place = sandbox.open(sandboxes.new())
    with contextlib.closing(sandbox), contextlib.closing(place):
        out = r"ran out of memory \(its limit is 32 MiB\)"
        with pytest.raises(EngineUnavailable, match=out):
            place.engine.info()


def test_what_a_step_pulls_by_itself_the_next_build_has(
    sandboxes: Sandboxes,
    docker_engine: DockerEngine,
    busybox: str,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The only registry that the engine trusts here is at the loopback address, whose images are
    # not pulled for others.
    monkeypatch.setattr(wanted_images, "is_of_this_machine", lambda _: False)
    name = f"{registry.address}/{uuid.uuid4().hex[:8]}:1"
    subprocess.run(["docker", "tag", busybox, name], check=True)
    docker_engine.push_image(name, on_progress=lambda _: None, cancel=threading.Event())
    remove_image(name)
    place = sandboxes.sandbox.open(sandboxes.new())
    assert isinstance(place, NestedPlace)
    place._ports.open(int(registry.address.rpartition(":")[2]))
    on_host = PulledImages(docker_engine.endpoint)
    puller = place.engine.create_container(
        ContainerSpec(
            image="buildrunner/docker",
            cmd=("pull", name),
            mounts=(
                Mount(source="/var/run/docker.sock", target="/var/run/docker.sock", bind=True),
            ),
        )
    )
    output = b"".join(place.engine.start_container(puller, attach=True))
    assert place.engine.wait_container(puller).code == 0, output
    watchdog = threading.Timer(60, on_host.close)
    watchdog.start()
    assert name in on_host  # told by the host's own events
    watchdog.cancel()
    on_host.close()
    assert docker_engine.find_image(name) is not None
    place.close()
    remove_image(name)


@pytest.mark.parametrize("kit", ["0", "1"])
def test_steps_build_on_images_that_only_the_host_has(
    bench: Bench, docker_engine: DockerEngine, kit: str
) -> None:
    """In the first build that names them, when they are copied, and in the next, when not."""
    first, second = (f"nested-{uuid.uuid4().hex[:8]}:1" for _ in range(2))
    for name in (first, second):
        subprocess.run(["docker", "tag", bench.image, name], check=True)
    bench.write(
        "app/Dockerfile",
        f"FROM {first} AS one\nFROM {second}\nCOPY --from=one /bin/busybox /else/busybox\n",
    )
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  env: [DOCKER_BUILDKIT={kit}]
  args: [build, -t, app, app]
- {{name: app, args: [/else/busybox, ls, -d, /workspace]}}
""",
    )
    try:
        for _ in range(2):
            done = submit(bench)
            assert done.code == 0, done.out + done.err
            assert "Step #1: /workspace" in done.out
    finally:
        for name in (first, second):
            remove_image(name)
