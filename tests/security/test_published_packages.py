"""Attacks on the logins for package repositories, and on the memory of what publishes."""

import io
import json
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from buildrunner.artifacts.packages import PublishingContainer
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, ImageInfo
from buildrunner.errors import PackageError, UploadError
from buildrunner.workspace.files import WorkspaceFiles
from buildrunner.workspace.protocol import PreparedWorkspace
from tests.e2e.submit_bench import Bench
from tests.package_servers import PASSWORD, USER, Shelf

pytestmark = pytest.mark.docker

DOCKER = "gcr.io/cloud-builders/docker"


@pytest.fixture(scope="module")
def builders(docker_engine: DockerEngine) -> None:
    names = ("docker", "engine", "python")
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", *names]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def shelf(machine_address: str) -> Iterator[Shelf]:
    made = Shelf(address=machine_address)
    yield made
    made.close()


@pytest.fixture
def bench(
    tmp_path: Path,
    docker_engine: DockerEngine,
    busybox: str,
    builders: None,
    machine_address: str,
) -> Bench:
    folder = tmp_path / "source"
    folder.mkdir()
    made = Bench(folder, tmp_path / "data", docker_engine, busybox)
    home = tmp_path / "home"
    home.mkdir()
    made.environ["HOME"] = str(home)
    hosts = (machine_address, "169.254.169.254")
    lines = [f"machine {host} login {USER} password {PASSWORD}\n" for host in hosts]
    (home / ".netrc").write_text("".join(lines))
    return made


def publish(bench: Bench, script: str, repository: str) -> str:
    """Publish a file from a nested sandbox after a step ran ``script``; all that was shown."""
    steps = [
        {"name": DOCKER, "entrypoint": "sh", "args": ["-c", script.replace("IMAGE", bench.image)]}
    ]
    artifacts = {"genericArtifacts": [{"folder": "app.txt", "registryPath": repository}]}
    bench.write("cloudbuild.yaml", json.dumps({"steps": steps, "artifacts": artifacts}))
    bench.write("app.txt", "the file")
    done = bench.run("submit", ".", "--sandbox", "nested")
    return done.out + done.err


def test_no_step_gets_the_login_by_making_the_image_that_publishes(
    bench: Bench, shelf: Shelf
) -> None:
    script = """\
printf '#!/bin/sh\\ncat /buildrunner-publish/request.json | tr a-z b-za\\n' > python3
chmod +x python3
printf 'FROM IMAGE\\nCOPY python3 /usr/bin/python3\\nCOPY python3 /usr/local/bin/python3\\n' > evil
docker build -q -f evil -t buildrunner/python:latest -t buildrunner/python . && echo REPLACED
"""
    bench.write_own_settings(f'[artifacts.repositories]\n"shelf" = "{shelf.url}/shelf"\n')
    shown = publish(bench, script, f"{shelf.url}/shelf")
    assert "REPLACED" in shown
    changed = PASSWORD.translate(
        str.maketrans("abcdefghijklmnopqrstuvwxyz", "bcdefghijklmnopqrstuvwxyza")
    )
    assert PASSWORD not in shown
    assert changed not in shown
    assert shelf.files == {"/shelf/app.txt": b"the file"}


def test_no_config_has_the_login_of_a_host_sent_without_tls(bench: Bench, shelf: Shelf) -> None:
    shown = publish(bench, "true", f"{shelf.url}/shelf")
    assert "HTTP 401" in shown
    assert shelf.files == {}


def test_no_package_is_sent_to_a_metadata_service(bench: Bench) -> None:
    shown = publish(bench, "true", "http://169.254.169.254/latest")
    assert "http://169.254.169.254/latest can't be reached" in shown


def archive_of(name: str, size: int) -> Iterator[bytes]:
    """A tar archive with one file of zeros, made as it is read."""
    header = tarfile.TarInfo(f"buildrunner-publish/{name}")
    header.size = size
    yield header.tobuf(tarfile.GNU_FORMAT)
    for _ in range(0, size, 1 << 20):
        yield bytes(1 << 20)
    yield bytes(1024)


class _Engine:
    """Answers as an engine that a step replaced."""

    def __init__(self, archive: Iterable[bytes]) -> None:
        self.archive = archive

    def find_image(self, name: str) -> ImageInfo:
        return ImageInfo(id=name)

    def create_container(self, _spec: ContainerSpec) -> str:
        return "one"

    def get_archive(self, _container: str, _path: str) -> Iterator[bytes]:
        return iter(self.archive)

    def remove_container(self, _container: str) -> None:
        pass


def test_a_file_with_holes_that_a_script_leaves_is_copied_up_to_the_limit(tmp_path: Path) -> None:
    engine = _Engine(archive_of("evil.tgz", 8 << 30))
    spec = ContainerSpec(image="none")
    copy = tmp_path / "copy"
    tracemalloc.start()
    try:
        with (
            PublishingContainer(engine, spec) as container,  # type: ignore[arg-type]
            pytest.raises(PackageError, match=r"larger than 0\.1 GiB"),
        ):
            container.save(".tgz", str(copy), 64 << 20)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert copy.stat().st_size <= 64 << 20


@pytest.mark.parametrize(
    "name",
    [
        "./../../buildrunner-publish/publisher/generic.py",
        "./a/../../../buildrunner-publish/__main__.py",
        "dist/..",
        "./a//b",
    ],
)
def test_no_file_of_the_workspace_is_named_out_of_its_folder(name: str) -> None:
    """A step can replace the engine of its sandbox, which then chooses the names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        header = tarfile.TarInfo(name)
        header.size = 4
        tar.addfile(header, io.BytesIO(b"evil"))
    engine = _Engine([buffer.getvalue()])
    workspace = PreparedWorkspace(volume="any")
    with (
        WorkspaceFiles(engine, workspace, {}, threading.Event()) as files,  # type: ignore[arg-type]
        pytest.raises(UploadError, match="outside of its folder"),
    ):
        files.below("dist", lambda _: True)


def test_a_publishing_container_reads_only_the_beginning_of_a_result(
    docker_engine: DockerEngine, busybox: str
) -> None:
    spec = ContainerSpec(
        image=busybox,
        cmd=(
            "sh",
            "-c",
            "mkdir /buildrunner-publish; truncate -s 1G /buildrunner-publish/result.json",
        ),
        labels={LABEL_BUILD: f"test-{uuid.uuid4()}"},
    )
    with PublishingContainer(docker_engine, spec) as container:
        list(docker_engine.start_container(container._id, attach=True))
        docker_engine.wait_container(container._id)
        assert len(container.file("result.json", 1 << 20)) == 1 << 20
