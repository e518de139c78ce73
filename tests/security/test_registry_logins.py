"""Attacks of a step on the registry logins of the machine, through its own engine."""

import base64
import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.registry_auth import registry_login
from buildrunner.sandboxes.nested.sandbox import NestedSandbox
from buildrunner.settings import Settings
from tests.conftest import Registry, start_registry, stop
from tests.e2e.submit_bench import Bench
from tests.registry_servers import HTPASSWD, PASSWORD, USER, tls_registry, trusted

pytestmark = pytest.mark.docker

DOCKER = "gcr.io/cloud-builders/docker"


@pytest.fixture(scope="module")
def builders(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def bench(tmp_path: Path, docker_engine: DockerEngine, busybox: str, builders: None) -> Bench:
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry on 127.0.0.1 that wants a login."""
    running = start_registry(tmp_path_factory.mktemp("registry"), htpasswd=HTPASSWD)
    yield running
    stop(running.process)


def log_in(bench: Bench, address: str, login: str = f"{USER}:{PASSWORD}") -> None:
    folder = Path(bench.environ["DOCKER_CONFIG"])
    folder.mkdir(parents=True)
    pair = base64.b64encode(login.encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": pair}}}))


def push(bench: Bench, name: str) -> str:
    """Build and push an image from a nested sandbox; all that was shown."""
    bench.write("Dockerfile", "FROM IMAGE\nRUN head -c 3000000 /dev/urandom > /layer\n")
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  args: [build, -q, -t, {name}, .]
images: [{name}]
""",
    )
    done = bench.run("submit", ".", "--sandbox", "nested")
    return done.out + done.err


class ReplacedEngine(http.server.ThreadingHTTPServer):
    """What a step put in the place of its engine: it takes note of the logins that it is given.

    Args:
        path: of its socket.
    """

    address_family = socket.AF_UNIX
    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.logins: list[tuple[str, bytes]] = []
        super().__init__((path, 0), _Handler)

    def server_bind(self) -> None:
        """Listen at the path."""
        self.socket.bind(self.server_address[0])

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The next connection."""
        return self.socket.accept()[0], ("unix", 0)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReplacedEngine

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        login = self.headers.get("X-Registry-Auth")
        if login is not None:
            kind = self.path.partition("?")[0].rpartition("/")[2]
            self.server.logins.append((kind, base64.urlsafe_b64decode(login)))
        content: dict[str, object] = {"Id": f"sha256:{'1' * 64}"}
        if "/push?" in self.path:
            content = {"status": f"one: digest: sha256:{'2' * 64} size: 1"}
        if "/distribution/" in self.path:
            content = {"Descriptor": {"digest": f"sha256:{'2' * 64}"}}
        if "/create?" in self.path:
            content = {"status": "Pull complete"}
        body = json.dumps(content).encode()
        self.send_response(201 if "/tag?" in self.path else 200)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served_engine(path: str) -> Iterator[ReplacedEngine]:
    """A replaced engine, which answers until the end."""
    with ReplacedEngine(path) as replaced:
        thread = threading.Thread(target=replaced.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield replaced
        finally:
            replaced.shutdown()
            thread.join()


def test_a_step_that_replaces_its_engine_gets_no_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker_engine: DockerEngine
) -> None:
    """Whatever is asked of it, also what the sandbox itself would do in another way."""
    address = "registry.example.com:5000"
    folder = tmp_path / "docker"
    folder.mkdir()
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": pair}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    path = str(tmp_path / "docker.sock")
    sandbox = wiring.sandbox("nested", data_folder=str(tmp_path), labels={}, settings=Settings())
    assert isinstance(sandbox, NestedSandbox)
    never = threading.Event()
    with served_engine(path) as replaced:
        engine = sandbox._machine.connect(path)
        try:
            engine.push_image(f"{address}/app:one", on_progress=lambda _: None, cancel=never)
            engine.pull_image(f"{address}/app:one", on_progress=lambda _: None, cancel=never)
        finally:
            engine.close()
            sandbox.close()
    assert replaced.logins == [("push", b"{}"), ("json", b"{}"), ("create", b"{}")]
    # The machine's own engine gets it.
    login = registry_login(address, {"DOCKER_CONFIG": str(folder)})
    assert login is not None
    assert login.password == PASSWORD


def tags(registry: Registry, name: str) -> Path:
    return registry.root / "data/docker/registry/v2/repositories" / name / "_manifests/tags"


def test_an_image_is_pushed_with_the_login_of_the_machine(bench: Bench, registry: Registry) -> None:
    log_in(bench, registry.address)
    name = f"{registry.address}/team/app"
    shown = push(bench, f"{name}:one")
    assert (tags(registry, "team/app") / "one").exists(), shown
    assert f"The push refers to repository [{name}]" in shown
    assert "detected failure" not in shown


def test_a_login_is_used_over_tls_with_the_authorities_that_the_machine_s_engine_trusts(
    bench: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    with tls_registry(folder) as registry, trusted(registry):
        log_in(bench, registry.address)
        shown = push(bench, f"{registry.address}/team/app")
        assert (tags(registry, "team/app") / "latest").exists(), shown


def test_a_wrong_login_says_what_to_do(bench: Bench, registry: Registry) -> None:
    log_in(bench, registry.address, "someone:wrong")
    shown = push(bench, f"{registry.address}/team/refused")
    assert f"docker login {registry.address}" in shown
    assert "attempt 1" not in shown  # a refusal is final
