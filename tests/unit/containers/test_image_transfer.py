"""Pull and push against real registries: healthy, closed, overloaded, gone."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import TransferProgress
from buildrunner.errors import EngineError, ImagePullError, ImagePushError
from tests.conftest import Registry, remove_image, start_registry, stop
from tests.contract.test_container_engine import keeps_manifests

# user "me", password "opensesame"
HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuQbLfdQZSxZ9gjhA5V9o8Tyc6aQRO0Qi\n"


def ignore(_: TransferProgress) -> None:
    pass


def named(address: str) -> str:
    return f"{address}/test-{uuid.uuid4().hex[:12]}:v1"


@pytest.fixture
def image(docker_engine: DockerEngine, busybox: str) -> Iterator[list[str]]:
    """Names that a test gave to images; they are taken away afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        remove_image(name)


def give(engine: DockerEngine, name: str, given: list[str]) -> str:
    """A tiny image of that name."""
    given.append(name)
    engine.import_image(name, [b"\0" * 1024], cmd=["/none"])
    return name


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants a login."""
    running = start_registry(tmp_path_factory.mktemp("closed"), htpasswd=HTPASSWD)
    yield running
    stop(running.process)


@pytest.fixture
def answering_registry() -> Iterator[tuple[str, list[int]]]:
    """Address of a registry that answers everything with the status in the list."""
    status = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", status
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.docker
class TestALockedRegistry:
    def test_refuses_who_did_not_log_in(
        self, docker_engine: DockerEngine, closed_registry: Registry, image: list[str]
    ) -> None:
        name = give(docker_engine, named(closed_registry.address), image)
        with pytest.raises(ImagePushError, match="can't be pushed") as push:
            docker_engine.push_image(name, on_progress=ignore, cancel=threading.Event())
        assert (push.value.transient, push.value.unauthorized) == (False, True)
        assert f"docker login {closed_registry.address}" in push.value.hint
        with pytest.raises(ImagePullError, match="can't be pulled") as pull:
            docker_engine.pull_image(name, on_progress=ignore, cancel=threading.Event())
        assert not pull.value.transient

    def test_takes_from_who_logged_in(
        self,
        docker_engine: DockerEngine,
        closed_registry: Registry,
        image: list[str],
        tmp_path: Path,
    ) -> None:
        auth = base64.b64encode(b"me:opensesame").decode()
        config = {"auths": {closed_registry.address: {"auth": auth}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        engine = DockerEngine(docker_engine.endpoint, environ={"DOCKER_CONFIG": str(tmp_path)})
        name = give(engine, named(closed_registry.address), image)
        pushed = engine.push_image(name, on_progress=ignore, cancel=threading.Event())
        pulled = engine.pull_image(name, on_progress=ignore, cancel=threading.Event())
        engine.close()
        assert pulled.digest == pushed.digest

    def test_refuses_a_wrong_password(
        self,
        docker_engine: DockerEngine,
        closed_registry: Registry,
        image: list[str],
        tmp_path: Path,
    ) -> None:
        auth = base64.b64encode(b"me:guess").decode()
        config = {"auths": {closed_registry.address: {"auth": auth}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        engine = DockerEngine(docker_engine.endpoint, environ={"DOCKER_CONFIG": str(tmp_path)})
        name = give(engine, named(closed_registry.address), image)
        with pytest.raises(ImagePushError) as caught:
            engine.push_image(name, on_progress=ignore, cancel=threading.Event())
        engine.close()
        assert (caught.value.transient, caught.value.unauthorized) == (False, True)
        assert "guess" not in str(caught.value)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("status", "transient"), [(503, True), (500, True), (429, True), (403, False), (404, False)]
)
def test_what_a_registry_answers_decides_whether_to_try_again(
    docker_engine: DockerEngine,
    answering_registry: tuple[str, list[int]],
    status: int,
    transient: bool,
) -> None:
    address, answer = answering_registry
    answer[0] = status
    with pytest.raises(ImagePullError) as caught:
        docker_engine.pull_image(named(address), on_progress=ignore, cancel=threading.Event())
    assert caught.value.transient is transient, str(caught.value)


@pytest.mark.docker
def test_a_registry_that_is_gone_may_come_back(docker_engine: DockerEngine) -> None:
    with pytest.raises(ImagePullError, match="connection refused") as caught:
        docker_engine.pull_image(
            "127.0.0.1:1/test:v1", on_progress=ignore, cancel=threading.Event()
        )
    assert caught.value.transient
    assert "127.0.0.1:1 reachable" in caught.value.hint


@pytest.mark.docker
def test_a_pull_that_hangs_is_released_by_cancel(docker_engine: DockerEngine) -> None:
    cancel = threading.Event()
    released = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cancel.set()
            released.wait(60)

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        name = named(f"127.0.0.1:{server.server_address[1]}")
        with pytest.raises(ImagePullError, match="cancelled"):
            docker_engine.pull_image(name, on_progress=ignore, cancel=cancel)
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.docker
def test_an_image_has_the_digest_of_the_name_that_was_asked_for(
    docker_engine: DockerEngine, registry: Registry, image: list[str]
) -> None:
    pushed = give(docker_engine, named(registry.address), image)
    digest = docker_engine.push_image(pushed, on_progress=ignore, cancel=threading.Event()).digest
    made = docker_engine.find_image(pushed)
    assert made is not None
    local = f"buildrunner-tests/local-{uuid.uuid4().hex[:12]}"
    image.append(local)
    assert docker_engine.tag_image(made.id, local)
    other = docker_engine.find_image(local)
    assert other is not None
    assert other.id == made.id
    if not keeps_manifests(docker_engine):
        assert other.digest == ""
    repository = pushed.rpartition(":")[0]
    by_digest = docker_engine.find_image(f"{repository}:any-tag@{digest}")
    assert by_digest is not None
    assert (by_digest.id, by_digest.digest) == (made.id, digest)


@pytest.mark.docker
def test_an_imported_image_keeps_its_settings_to_the_letter(
    docker_engine: DockerEngine, image: list[str]
) -> None:
    name = f"buildrunner-tests/settings-{uuid.uuid4().hex[:12]}"
    image.append(name)
    odd = "a \"b\" $HOME \\ 'c'"
    docker_engine.import_image(
        name,
        [b"\0" * 1024],
        entrypoint=["/bin/x", odd],
        cmd=[odd],
        env=[f"ODD={odd}"],
        labels={"buildrunner.test": odd},
    )
    found = docker_engine.find_image(name)
    assert found is not None
    assert (found.entrypoint, found.cmd) == (("/bin/x", odd), (odd,))
    config = json.loads(docker_engine._api.send("GET", f"/images/{name}/json"))["Config"]
    assert f"ODD={odd}" in config["Env"]
    assert config["Labels"] == {"buildrunner.test": odd}


@pytest.mark.docker
def test_what_is_no_root_file_system_is_not_imported(docker_engine: DockerEngine) -> None:
    with pytest.raises(EngineError, match="can't be made"):
        docker_engine.import_image("buildrunner-tests/broken:1", [b"not a tar file" * 1000])
