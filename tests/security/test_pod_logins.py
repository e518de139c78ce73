"""Attacks of a step on the registry logins of its project, through the engine of its Pod."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from buildrunner import wiring
from buildrunner.addresses import Egress
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerEngine, ContainerSpec, Mount
from buildrunner.errors import ConfigError, EngineError, ImagePullError
from buildrunner.kubernetes.manifest import PodBuild, job_manifest
from buildrunner.kubernetes.pool import Pool
from buildrunner.plan.resolve import PlanContext
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build, BuildStep
from buildrunner.spec.model.results import Artifacts, PythonPackage
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.wiring.engines import _EngineImage
from tests.conftest import Registry, busybox_tar, needs_root, wait_until
from tests.plans import plan_build
from tests.registry_servers import PASSWORD, USER, tls_registry, trusted
from tests.security.test_registry_logins import served_engine

PAIR = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
NEVER = threading.Event()


def log_in(monkeypatch: pytest.MonkeyPatch, folder: Path, address: str) -> None:
    """The login of the project, as a worker gets it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": PAIR}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def opened(monkeypatch: pytest.MonkeyPatch, path: Path) -> ContainerEngine:
    """The engine of a build in a Pod, by its socket in the shared folder."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    sandbox = wiring.sandbox("pod", data_folder="", labels={}, settings=Settings())
    return sandbox.open("b1").engine


def test_a_step_that_replaces_the_engine_of_its_pod_gets_no_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "registry.example.com:5000"
    log_in(monkeypatch, tmp_path / "docker", address)
    with served_engine(str(tmp_path / "docker.sock")) as replaced:
        engine = opened(monkeypatch, tmp_path / "docker.sock")
        # Such an engine says that it has pushed and pulled: it is not believed.
        with pytest.raises(EngineError, match="the registry has nothing"):
            engine.push_image(f"{address}/app:1", on_progress=lambda _: None, cancel=NEVER)
        with pytest.raises(ImagePullError, match="did not pull it"):
            engine.pull_image(f"{address}/app:1", on_progress=lambda _: None, cancel=NEVER)
        engine.close()
    assert {kind for kind, _ in replaced.logins} == {"push", "json", "create"}
    assert {login for _, login in replaced.logins} == {b"{}"}


class Eavesdropper(threading.Thread):
    """The socket that a step puts in the place of the engine's: it hears all, and passes it on."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.heard = bytearray()
        self._real = str(path.rename(path.with_name("real.sock")))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(self._real)
            back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
            back.start()
            self._pass(near, far)
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(1 << 16):
                self.heard += piece
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def engine_image(docker_engine: DockerEngine) -> str:
    """The id of the image of engines, as it is in this tree."""
    return _EngineImage(docker_engine, None).obtain()


class Pod:
    """A running engine of a Pod.

    Attributes:
        name: of its container.
        isolation: of its pool.
        shared: the folder that it shares with the worker.
    """

    def __init__(self, name: str, isolation: str, shared: Path) -> None:
        self.name = name
        self.isolation = isolation
        self.shared = shared
        self.socket = shared / "docker.sock"


@contextmanager
def running_pod(image: str, isolation: str, egress: Egress) -> Iterator[Pod]:
    """The engine's container as the manifest of a Job has it."""
    build_id = str(uuid.uuid4())
    build = PodBuild(id=build_id, timeout=timedelta(minutes=5), egress=egress)
    pool = Pool(
        name="ci",
        server="http://nowhere",
        worker_image="none",
        engine_image=image,
        isolation=isolation,
    )
    spec = job_manifest(build, pool)["spec"]["template"]["spec"]["initContainers"][0]
    rights = spec["securityContext"]
    environ = dict(os.environ)  # tests set DOCKER_HOST
    name = f"buildrunner-tests-{build_id}"
    # Not of pytest: paths of sockets are short.
    shared = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    subprocess.run(
        [
            *("docker", "run", "--detach", "--name", name),
            *("--volume", f"{shared}:/run/buildrunner", "--volume", "/workspace"),
            *("--volume", "/var/lib/docker"),
            *(f"--env={one['name']}={one['value']}" for one in spec["env"]),
            *(["--privileged"] if rights.get("privileged") else []),
            *(f"--cap-add={one}" for one in rights.get("capabilities", {}).get("add", ())),
            *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
            *(spec["image"], *spec["args"]),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        ask = ["docker", f"--host=unix://{shared}/docker.sock", "version"]
        wait_until(lambda: not subprocess.run(ask, check=False, capture_output=True).returncode)
        yield Pod(name, isolation, shared)
    finally:
        argv = ["docker", "rm", "--force", "--volumes", name]
        subprocess.run(argv, check=True, env=environ, stdout=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", shared], check=True)


@pytest.fixture(params=["user-namespace", "capabilities"])
def pod(request: pytest.FixtureRequest, engine_image: str) -> Iterator[Pod]:
    """The engine of a Pod, whose project denies no network of its own."""
    with running_pod(engine_image, request.param, Egress()) as running:
        yield running


@pytest.fixture
def registry(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """A registry over TLS that wants the login of the project."""
    folder = tmp_path_factory.mktemp("registry")
    with tls_registry(folder) as running, trusted(running):
        log_in(monkeypatch, folder / "docker", running.address)
        yield running


@needs_root
@pytest.mark.docker
def test_no_login_comes_to_the_socket_of_a_pod_s_engine(
    pod: Pod, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are pushed and pulled with the login, by tag and by digest."""
    ears = Eavesdropper(pod.socket)
    ears.start()
    engine = opened(monkeypatch, pod.socket)
    name = f"{registry.address}/team/app:1"
    made = engine.import_image(name, [busybox_tar()], cmd=("sh",), env=("PATH=/bin",))
    pushed = engine.push_image(name, on_progress=lambda _: None, cancel=NEVER)
    tags = registry.root / "data/docker/registry/v2/repositories/team/app/_manifests/tags"
    link = tags / "1/current/link"
    assert pushed.digest == link.read_text()
    assert f"The push refers to repository [{registry.address}/team/app]" in pushed.log
    engine.untag_image(name)
    assert engine.find_image(name) is None
    by_digest = f"{registry.address}/team/app@{pushed.digest}"
    for wanted in (name, by_digest):
        pulled = engine.pull_image(wanted, on_progress=lambda _: None, cancel=NEVER)
        assert (pulled.id, pulled.digest) == (made, pushed.digest)
        assert engine.find_image(wanted) == pulled
    container = engine.create_container(ContainerSpec(image=pulled.id, cmd=("echo", "runs")))
    assert b"runs" in b"".join(engine.start_container(container, attach=True))
    engine.remove_container(container)
    engine.close()
    ears.close()
    assert b"/images/create" in ears.heard
    # An engine is sent an empty login as that of the registry.
    for secret in (PASSWORD, PAIR, base64.b64encode(PASSWORD.encode()).decode()[:-2], '"auth"'):
        assert secret.encode() not in ears.heard
    logins = {
        base64.urlsafe_b64decode(line.partition(b":")[2].strip())
        for line in bytes(ears.heard).splitlines()
        if line.lower().startswith(b"x-registry-auth")
    }
    assert logins == {b"{}"}


def shown_by_a_step(engine: ContainerEngine, *argv: str, **more: object) -> str:
    """The output of a container that a step starts on the engine."""
    engine.import_image("shell", [busybox_tar()], cmd=("sh",), env=("PATH=/bin",))
    spec = msgspec.structs.replace(ContainerSpec(image="shell", cmd=argv), **more)
    container = engine.create_container(spec)
    shown = b"".join(engine.start_container(container, attach=True))
    engine.remove_container(container)
    return shown.decode()


@needs_root
@pytest.mark.docker
def test_a_step_can_not_put_a_socket_of_its_own_in_the_place_of_the_engine_s(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(monkeypatch, pod.socket)
    folder = Mount(source="/run/buildrunner", target="/shared", bind=True)
    argv = ("mv", "/shared/docker.sock", "/shared/real.sock")
    shown = shown_by_a_step(engine, *argv, mounts=(folder,))
    engine.close()
    assert "Read-only file system" in shown


@needs_root
@pytest.mark.docker
def test_steps_are_not_in_the_network_of_their_pod_s_worker(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a Pod, the engine's container has the network of the worker's."""
    argv = ["docker", "exec", pod.name, "readlink", "/proc/1/ns/net"]
    of_pod = subprocess.check_output(argv, text=True).strip()
    engine = opened(monkeypatch, pod.socket)
    shown = shown_by_a_step(engine, "readlink", "/proc/self/ns/net", network="host")
    engine.close()
    assert shown.startswith("net:[")
    assert shown.strip() != of_pod


def test_no_package_is_published_from_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that publish would run on the engine of the steps, with the login."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    sandbox = wiring.sandbox("pod", data_folder="", labels={}, settings=Settings())
    place = sandbox.open("b1")
    packages = PythonPackage(repository="https://packages.example.com/py", paths=("dist/*",))
    build = Build(
        steps=(BuildStep(name="busybox"),), artifacts=Artifacts(python_packages=(packages,))
    )
    plan = plan_build(build, context=PlanContext(built_ins=BuiltIns(build_id="b1")))
    with pytest.raises(ConfigError, match="can't be published from a Pod") as caught:
        wiring.publisher(plan, Settings(), place.engine, place, None)
    assert "--sandbox nested" in str(caught.value)
