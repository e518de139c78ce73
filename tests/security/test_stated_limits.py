"""Each limit that the page on security states as "Not a wall" is real."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec
from buildrunner.errors import ImagePullError
from tests.api_server import ApiServer, api_server, now
from tests.conftest import remove_image
from tests.e2e.submit_bench import Bench
from tests.server.test_hooks import PUSH, SECRET, builds, github, handle, make_trigger

COMMIT = "c" * 40
OF_ACME = {"github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "server") as running:
        yield running


def run_trigger(server: ApiServer, **requested: object) -> str:
    """Run a new trigger by hand; the id of its build."""
    path = "/v1/projects/p/triggers"
    document = {"name": "ci", "build": {"steps": [{"name": "busybox"}]}, **OF_ACME}
    assert server.http.post(path, json=document).status_code == 200
    answer = server.http.post(f"{path}/ci:run", json=requested)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["metadata"]["build"]["id"])


def test_a_commit_that_is_built_by_hand_is_trusted_whoever_wrote_it(server: ApiServer) -> None:
    build = server.store.builds.find(run_trigger(server, commitSha=COMMIT))
    assert build.request["source"]["gitSource"]["revision"] == COMMIT
    assert not build.untrusted
    assert build.document["status"] == "QUEUED"


def test_whoever_runs_a_trigger_chooses_its_branch_and_substitutions(server: ApiServer) -> None:
    requested = {"branchName": "release", "substitutions": {"_TARGET": "production"}}
    build = server.store.builds.find(run_trigger(server, **requested))
    assert build.request["source"]["gitSource"]["revision"] == "refs/heads/release"
    assert build.document["substitutions"]["_TARGET"] == "production"


def test_the_sender_of_a_webhook_chooses_the_commit(server: ApiServer) -> None:
    server.hook("github", SECRET, owners=["acme"])
    make_trigger(server)
    of_a_fork = "e" * 40
    assert github(server, {**PUSH, "after": of_a_fork}).status_code == 200
    handle(server)
    (build,) = builds(server)
    assert build["source"]["gitSource"]["revision"] == of_a_fork
    stored = server.store.builds.find(build["id"])
    assert stored.labels["built_ref"] == "refs/heads/main"
    assert not stored.untrusted


def test_builds_that_do_not_end_leave_no_place_to_other_projects(server: ApiServer) -> None:
    for project in ("p", "p", "q"):
        server.create(project)

    def claim() -> object:
        return server.store.queue.claim("tests", now=now(), lease_s=600, limit=2)

    # The limit holds for all projects: the third build waits until one of the others ends.
    assert claim() is not None
    assert claim() is not None
    assert claim() is None


def test_whoever_owns_the_data_folder_changes_the_audit_log(server: ApiServer) -> None:
    path = "/buildrunner/v1/audit"
    run_trigger(server)
    assert "triggers.create" in server.http.get(path).text
    with server.store._database.write() as connection:
        connection.exec_driver_sql("DELETE FROM audit_log")
    assert "triggers.create" not in server.http.get(path).text


class _Service(BaseHTTPRequestHandler):
    """A registry whose manifests are elsewhere, or a service of the machine."""

    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        target = self.server.target if "/manifests/" in self.path else ""  # type: ignore[attr-defined]
        self.send_response(307 if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{}")

    do_GET = do_HEAD = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def services() -> Iterator[tuple[ThreadingHTTPServer, ThreadingHTTPServer]]:
    """A registry, and a service of the machine to which it redirects."""
    made = [ThreadingHTTPServer(("127.0.0.1", 0), _Service) for _ in range(2)]
    registry, service = made
    registry.target = f"http://127.0.0.1:{service.server_port}/secret"  # type: ignore[attr-defined]
    service.target = ""  # type: ignore[attr-defined]
    threads = [threading.Thread(target=one.serve_forever, args=(0.02,)) for one in made]
    for one, thread in zip(made, threads, strict=True):
        one.requests = []  # type: ignore[attr-defined]
        thread.start()
    yield registry, service
    for one, thread in zip(made, threads, strict=True):
        one.shutdown()
        thread.join()
        one.server_close()


@pytest.mark.docker
def test_the_machine_s_engine_follows_the_redirects_of_a_registry(
    docker_engine: DockerEngine, services: tuple[ThreadingHTTPServer, ThreadingHTTPServer]
) -> None:
    registry, service = services
    name = f"127.0.0.1:{registry.server_port}/app:1"
    with pytest.raises(ImagePullError):
        docker_engine.pull_image(name, on_progress=lambda _: None, cancel=threading.Event())
    assert {f"{method} /secret" for method in ("HEAD", "GET")} & {
        *service.requests  # type: ignore[attr-defined]
    }


DOCKER = "gcr.io/cloud-builders/docker"


@pytest.fixture
def bench(tmp_path: Path, docker_engine: DockerEngine, busybox: str) -> Bench:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


@pytest.mark.docker
def test_a_step_with_the_machine_s_socket_is_root_there_and_sees_other_builds(
    bench: Bench, tmp_path: Path, docker_engine: DockerEngine, busybox: str
) -> None:
    secret = tmp_path / "of-root"
    secret.write_text("a file of the machine's root")
    secret.chmod(0o600)
    other = f"test-{uuid.uuid4()}"
    container = docker_engine.create_container(
        ContainerSpec(image=busybox, cmd=("sleep", "60"), labels={LABEL_BUILD: other})
    )
    read = ["run", "--rm", "-v", "/:/machine", "IMAGE", "cat", f"/machine{secret}"]
    look = ["ps", "--all", "--filter", f"label={LABEL_BUILD}={other}", "--format", "seen {{.ID}}"]
    steps = [{"name": DOCKER, "args": read}, {"name": DOCKER, "args": look}]
    bench.write("cloudbuild.yaml", json.dumps({"steps": steps}))
    try:
        done = bench.run("submit", ".", "--sandbox", "host")
    finally:
        docker_engine.remove_container(container)
    assert done.code == 0, done.out + done.err
    assert "a file of the machine's root" in done.out
    assert f"seen {container[:12]}" in done.out


@pytest.mark.docker
def test_a_step_with_an_engine_changes_the_program_of_a_later_step(
    bench: Bench, docker_engine: DockerEngine, busybox: str
) -> None:
    name = f"buildrunner-tests/tool:{uuid.uuid4().hex[:12]}"
    docker_engine.tag_image(busybox, name)
    change = ["build", "-q", "-t", name, "."]
    steps = [{"name": DOCKER, "args": change}, {"name": name, "args": ["cat", "/changed"]}]
    bench.write("Dockerfile", "FROM IMAGE\nRUN echo by the step before > /changed\n")
    bench.write("cloudbuild.yaml", json.dumps({"steps": steps}))
    try:
        done = bench.run("submit", ".")
    finally:
        remove_image(name)
    assert done.code == 0, done.out + done.err
    assert "by the step before" in done.out
