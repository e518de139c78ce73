"""Pushes and pulls through the engine against real registries: logins, TLS, faults."""

from __future__ import annotations

import base64
import json
import os
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildrunner.containers.docker.endpoint import find_endpoint
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import PushedImage, RegistryLogin, TransferProgress
from buildrunner.errors import ImagePullError, ImagePushError
from tests.conftest import Registry, remove_image, start_registry, stop
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

ALWAYS = 10**6
AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def ignore(progress: TransferProgress) -> None: ...


class Pusher:
    """Tiny images with fresh content, pushed by an engine with a Docker config of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environ = {"DOCKER_CONFIG": str(folder), "PATH": str(folder)}
        self.engine = DockerEngine(find_endpoint(os.environ), environ=environ)
        self.names: list[str] = []

    def config(self, content: object) -> None:
        (self.folder / "config.json").write_text(json.dumps(content))

    def image(self, address: str, tag: str = "1", size: int = 0) -> str:
        name = f"{address}/tests-{uuid.uuid4().hex[:8]}:{tag}"
        self.names.append(name)
        unique = os.urandom(16 + size)
        header = b"file".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
        header += b"%011o\0" % len(unique) + b"%011o\0" % 0 + b" " * 8 + b"0" + b"\0" * 355
        header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
        tar = header + unique + bytes(-len(unique) % 512) + bytes(1024)
        self.engine.import_image(name, [tar], cmd=["/none"])
        return name

    def push(self, name: str, login: RegistryLogin | None = None) -> PushedImage:
        return self.engine.push_image(
            name, on_progress=ignore, cancel=threading.Event(), login=login
        )

    def refused(self, name: str, login: RegistryLogin | None = None) -> ImagePushError:
        with pytest.raises(ImagePushError) as caught:
            self.push(name, login)
        assert PASSWORD not in f"{caught.value}{caught.value.hint}"
        assert "\n" not in str(caught.value)
        return caught.value


@pytest.fixture
def pusher(docker_engine: DockerEngine, tmp_path: Path) -> Iterator[Pusher]:
    made = Pusher(tmp_path)
    yield made
    made.engine.close()
    for name in made.names:
        remove_image(name)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants a login."""
    running = start_registry(tmp_path_factory.mktemp("closed"), htpasswd=HTPASSWD)
    yield running
    stop(running.process)


def digest_in(registry: Registry, name: str) -> str:
    """What the registry itself answers about a tag."""
    repository, _, tag = name.removeprefix(f"{registry.address}/").rpartition(":")
    request = urllib.request.Request(
        f"http://{registry.address}/v2/{repository}/manifests/{tag}",
        method="HEAD",
        headers={
            "Accept": "application/vnd.docker.distribution.manifest.v2+json, "
            "application/vnd.oci.image.manifest.v1+json",
            "Authorization": f"Basic {AUTH}",
        },
    )
    with urllib.request.urlopen(request) as answer:
        return str(answer.headers["Docker-Content-Digest"])


def again_if_transient(push: Callable[[], PushedImage]) -> PushedImage:
    """Push, and push once more where the engine does not try again by itself."""
    try:
        return push()
    except ImagePushError as error:
        if not error.transient:
            raise
    return push()


class TestLogins:
    def test_nobody_may_push_without_one(self, pusher: Pusher, closed: Registry) -> None:
        error = pusher.refused(pusher.image(closed.address))
        assert error.unauthorized
        assert not error.transient
        assert f"docker login {closed.address}" in error.hint

    def test_a_wrong_password_is_final(self, pusher: Pusher, closed: Registry) -> None:
        wrong = RegistryLogin(username=USER, password="wrong")
        error = pusher.refused(pusher.image(closed.address), wrong)
        assert error.unauthorized
        assert not error.transient

    def test_docker_logins_own_entry(self, pusher: Pusher, closed: Registry) -> None:
        pusher.config({"auths": {closed.address: {"auth": AUTH}}})
        name = pusher.image(closed.address)
        assert pusher.push(name).digest == digest_in(closed, name)

    @pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
    def test_a_helper_program(self, pusher: Pusher, closed: Registry, key: str,
                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        helper_program(pusher.folder, "tests", {closed.address: (USER, PASSWORD)})
        monkeypatch.setenv("PATH", str(pusher.folder), prepend=":")
        pusher.config({key: {closed.address: "tests"} if key == "credHelpers" else "tests"})
        name = pusher.image(closed.address)
        assert pusher.push(name).digest == digest_in(closed, name)

    def test_one_that_is_given_wins(self, pusher: Pusher, closed: Registry) -> None:
        wrong = base64.b64encode(b"nobody:wrong").decode()
        pusher.config({"auths": {closed.address: {"auth": wrong}}})
        name = pusher.image(closed.address)
        assert pusher.refused(name).unauthorized
        pushed = pusher.push(name, RegistryLogin(username=USER, password=PASSWORD))
        assert pushed.digest == digest_in(closed, name)

    def test_pulls_use_them_too(self, pusher: Pusher, closed: Registry) -> None:
        name = pusher.image(closed.address)
        digest = pusher.push(name, RegistryLogin(username=USER, password=PASSWORD)).digest
        remove_image(name)
        with pytest.raises(ImagePullError) as caught:
            pusher.engine.pull_image(name, on_progress=ignore, cancel=threading.Event())
        assert not caught.value.transient
        pusher.config({"auths": {closed.address: {"auth": AUTH}}})
        pulled = pusher.engine.pull_image(name, on_progress=ignore, cancel=threading.Event())
        assert pulled.digest == digest


class TestTls:
    def test_an_authority_of_its_own_must_be_trusted(self, pusher: Pusher, tmp_path: Path) -> None:
        folder = tmp_path / "registry"
        folder.mkdir()
        with tls_registry(folder) as registry:
            name = pusher.image(registry.address)
            login = RegistryLogin(username=USER, password=PASSWORD)
            error = pusher.refused(name, login)
            assert not error.transient
            assert f"/etc/docker/certs.d/{registry.address}/ca.crt" in error.hint
            with trusted(registry):
                assert pusher.push(name, login).digest.startswith("sha256:")
                assert pusher.refused(name).unauthorized


class TestFaults:
    @pytest.mark.parametrize(("status", "transient", "unauthorized"), [
        (401, False, True), (403, False, True), (429, True, False), (500, True, False),
        (503, True, False), (405, False, False), (409, False, False), (413, False, False),
    ])  # fmt: skip
    def test_a_refused_manifest(self, pusher: Pusher, registry: Registry, status: int,
                                transient: bool, unauthorized: bool) -> None:  # fmt: skip
        fault = Fault("PUT", "/manifests/", status, times=ALWAYS)
        with faulty_proxy(registry.address, fault) as address:
            name = pusher.image(address)
            error = pusher.refused(name)
            assert (error.transient, error.unauthorized) == (transient, unauthorized)
            assert ("is busy or broken" in error.hint) is transient
            fault.left = 0
            again = pusher.push(name)
            assert (again.layers_pushed, again.layers_reused) == (0, 1)

    @pytest.mark.parametrize(("said", "seconds"), [
        ("slowly", 0.0), ("retry-after: 250ms, allowed: 1/minute", 0.25), ("Retry-After: 7", 7.0),
    ])  # fmt: skip
    def test_the_time_that_a_registry_asks_for(self, pusher: Pusher, registry: Registry, said: str,
                                               seconds: float) -> None:  # fmt: skip
        fault = Fault("PUT", "/manifests/", 429, times=ALWAYS, message=said)
        with faulty_proxy(registry.address, fault) as address:
            error = pusher.refused(pusher.image(address))
        assert (error.transient, error.retry_after_s) == (True, seconds)

    def test_a_connection_that_is_cut_within_a_layer(self, pusher: Pusher,
                                                     registry: Registry) -> None:  # fmt: skip
        fault = Fault("PATCH|PUT", "/blobs/uploads/", CUT, times=1)
        with faulty_proxy(registry.address, fault) as address:
            name = pusher.image(address, size=2_000_000)
            cancel = threading.Event()
            pushed = again_if_transient(
                lambda: pusher.engine.push_image(name, on_progress=ignore, cancel=cancel)
            )
        assert fault.hits >= 2
        assert pushed.layers_pushed == 1

    def test_a_registry_that_forgets_what_it_took(self, pusher: Pusher,
                                                  registry: Registry) -> None:  # fmt: skip
        fault = Fault("PUT", "/manifests/", 201, times=ALWAYS)
        with faulty_proxy(registry.address, fault) as address:
            error = pusher.refused(pusher.image(address))
        assert error.transient
        assert "without the header Docker-Content-Digest: is it a registry" in error.hint

    def test_a_registry_that_is_gone(self, pusher: Pusher, registry: Registry) -> None:
        with faulty_proxy(registry.address, Fault("PUT", "nothing", 500)) as address:
            name = pusher.image(address)
        error = pusher.refused(name)
        assert error.transient
        assert "reachable" in error.hint
