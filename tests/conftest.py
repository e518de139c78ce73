"""Fixtures that several kinds of tests share: a Docker engine, a small image, a registry.

Nothing here is mocked. Where no engine answers, one is started (as root); where a program is
missing, the test fails and says what to install: nothing is skipped.
"""

from __future__ import annotations

import contextlib
import gc
import io
import ipaddress
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO

import hypothesis
import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.errors import EngineUnavailable

# gcloud is Google's own program: where it is not installed, the tests that run it are not
# collected, and pytest says so at its end.
HAS_GCLOUD = shutil.which("gcloud") is not None
TESTS_OF_GCLOUD = ["server/test_gcloud.py", "e2e/test_deploy_examples.py"]
collect_ignore = [] if HAS_GCLOUD else TESTS_OF_GCLOUD

# What only root may do: tests also run as the user of a rootless engine.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change owners and mount")

DEADLINE_S = 60.0

# Tests start hundreds of commands. Without stored bytecode, each compiles all its modules: 0.2 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes is the machine's business: timings belong in benchmarks/.
hypothesis.settings.register_profile("buildrunner", deadline=None)
hypothesis.settings.load_profile("buildrunner")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what the collection makes out of the garbage collector's later passes.

    Thousands of tests and their modules stay to the end: each full pass over them took half a
    second, a fifth of the time of tests that start servers.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the tests that are left out without gcloud."""
    if not HAS_GCLOUD:
        left_out = ", ".join(f"tests/{name}" for name in TESTS_OF_GCLOUD)
        terminalreporter.write_line(f"gcloud is not installed: {left_out} left out")


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """For what others do in their own time; they have the processor between two looks."""
    give_up_at = time.monotonic() + limit_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < give_up_at
        pause.wait(0.01)


def started_when(process: subprocess.Popen[bytes], word: bytes) -> bytes:
    """The first line of a server's stderr that holds ``word``; the rest of it is drained.

    A server that is ready says so: reading its words needs no sleep and no guess.
    """
    assert process.stderr is not None
    lines = process.stderr
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    seen = b""
    try:
        for line in lines:
            seen += line
            if word in line:
                threading.Thread(target=drain, args=(lines,)).start()
                return line
    finally:
        watchdog.cancel()
    process.wait()
    lines.close()
    pytest.fail(f"{process.args} ended before it was ready:\n{seen.decode(errors='replace')}")


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond that: to a program, that is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def drain(stream: IO[bytes]) -> None:
    """Read to the end and close, so that the writer is never held up."""
    with stream:
        while stream.read(65536):
            pass


def stop(process: subprocess.Popen[bytes], *, with_signal: int = signal.SIGTERM) -> None:
    """End a server that a fixture started."""
    process.send_signal(with_signal)
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def program(name: str, package: str) -> str:
    """Path of a program, or a failure that says what to install."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/bin")
    if found is None:
        pytest.fail(f"the tests need the program {name}: apt-get install {package}")
    return found


def compose_command() -> list[str]:
    """The command of Docker Compose 2: a plugin of Docker, or a program of its own."""
    plugin = ["docker", "compose"]
    if subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode:
        return [program("docker-compose", "docker-compose")]
    return plugin


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """The machine's Docker engine; one is started for the session when none answers."""
    engine = DockerEngine()
    daemon = None
    try:
        engine.info()
    except EngineUnavailable as error:
        if os.geteuid() != 0:
            pytest.fail(f"no Docker engine answers, and only root can start one: {error}")
        argv = [program("dockerd", "docker.io")]
        daemon = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        started_when(daemon, b"API listen on")
    yield engine
    engine.close()
    if daemon is not None:
        stop(daemon)


def needs_loader(elf: bytes) -> bool:
    """Whether a 64-bit ELF file names a dynamic loader (a PT_INTERP program header)."""
    (start,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    return any(struct.unpack_from("<I", elf, start + n * size)[0] == 3 for n in range(count))


def static_busybox() -> Path:
    """A busybox that needs no library (Debian: busybox-static)."""
    for folder in ("/bin", "/usr/bin", "/usr/lib/initramfs-tools/bin"):
        path = Path(folder) / "busybox"
        if path.exists() and not needs_loader(path.read_bytes()):
            return path
    pytest.fail("the tests need a static busybox: apt-get install busybox-static")


def busybox_tar() -> bytes:
    """A root file system: busybox, a link for each of its programs, /tmp and root.

    As in most images, /var/run is an absolute link to /run.
    """
    busybox = static_busybox()
    listed = subprocess.run([str(busybox), "--list"], check=True, capture_output=True, text=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder, mode in (
            ("bin", 0o755),
            ("etc", 0o755),
            ("root", 0o700),
            ("tmp", 0o1777),
            ("run", 0o755),
            ("var", 0o755),
        ):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            entry.mode = mode
            tar.addfile(entry)
        accounts = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
        for name, content, mode in (
            ("bin/busybox", busybox.read_bytes(), 0o755),
            ("etc/passwd", accounts, 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = mode
            tar.addfile(entry, io.BytesIO(content))
        links = {f"bin/{name}": "busybox" for name in listed.stdout.split() if name != "busybox"}
        for name, target in {**links, "var/run": "/run"}.items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
            tar.addfile(entry)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def busybox(docker_engine: DockerEngine) -> Iterator[str]:
    """Name of a small image with a shell, made for this session from the machine's busybox."""
    name = f"buildrunner-tests/busybox:{uuid.uuid4().hex[:12]}"
    docker_engine.import_image(name, [busybox_tar()], cmd=["sh"], env=["PATH=/bin"])
    yield name
    remove_image(name)


@pytest.fixture(scope="session")
def machine_address(docker_engine: DockerEngine) -> str:
    """The address of this machine that containers reach: that of the engine's own network.

    Docker does not report its gateway until it has started for the second time on a machine.
    """
    argv = ["docker", "network", "inspect", "bridge", "--format={{json (index .IPAM.Config 0)}}"]
    found = json.loads(subprocess.check_output(argv))
    return str(found.get("Gateway") or ipaddress.ip_network(found["Subnet"])[1])


def remove_image(name: str) -> None:
    """Take a name off an image (and the image, when it was the last)."""
    subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


class Registry:
    """A running registry.

    Attributes:
        address: ``127.0.0.1:PORT``; Docker speaks plain HTTP to it without being asked to. A
            rootless engine has a 127.0.0.1 of its own: TEST_REGISTRY_HOST names another address.
    """

    def __init__(self, address: str, process: subprocess.Popen[bytes], root: Path) -> None:
        self.address = address
        self.process = process
        self.root = root


def start_registry(root: Path, *, htpasswd: str = "") -> Registry:
    """Start a real registry (Debian: docker-registry) on a free port.

    Args:
        root: folder for its config and images.
        htpasswd: lines ``user:bcrypt``; when given, everyone must log in.
    """
    host = os.environ.get("TEST_REGISTRY_HOST", "127.0.0.1")
    config = (
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host}:0'}}\n"
    )
    if htpasswd:
        (root / "htpasswd").write_text(htpasswd)
        config += f"auth: {{htpasswd: {{realm: tests, path: {root}/htpasswd}}}}\n"
    (root / "config.yml").write_text(config)
    process = subprocess.Popen(
        [program("docker-registry", "docker-registry"), "serve", str(root / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", ""), "OTEL_TRACES_EXPORTER": "none"},
    )
    line = started_when(process, b"listening on").decode()
    port = line.split(f"{host}:")[1].split('"')[0].split()[0]
    return Registry(f"{host}:{port}", process, root)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry on 127.0.0.1 that anyone may use."""
    running = start_registry(tmp_path_factory.mktemp("registry"))
    yield running
    stop(running.process)


@pytest.fixture
def build_labels(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Labels for what a test makes on the Docker engine; all of it is removed afterwards."""
    labels = {LABEL_BUILD: f"test-{uuid.uuid4()}"}
    yield labels
    if "docker_engine" in request.fixturenames:
        engine: DockerEngine = request.getfixturevalue("docker_engine")
        owned = engine.list_owned(labels)
        for container in owned.containers:
            engine.remove_container(container)
        for volume in owned.volumes:
            engine.remove_volume(volume)
        for network in owned.networks:
            engine.remove_network(network)
