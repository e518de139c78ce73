"""The guardian for real: a process dies, and nothing of its build is left on the engine."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.containers import cleanup
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import (
    LABEL_BUILD,
    LABEL_OWNER,
    ContainerSpec,
    Mount,
    OwnedResources,
)
from buildrunner.sandboxes.guardian import Guardian

DEADLINE_S = 60

BUILD = """
import signal, sys
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerSpec, LABEL_BUILD, Mount
from buildrunner.sandboxes.guardian import Guardian

build, image, network, state, folder = sys.argv[1:]
engine = DockerEngine()
labels = {LABEL_BUILD: build}
guardian = Guardian.start(build, engine.endpoint, state, network=network)
guardian.note_directory(folder)
guardian.hold_network()
engine.ensure_network(network, labels)
engine.create_volume(f"{network}-volume", labels)
mounts = (Mount(source=f"{network}-volume", target="/data"),)
spec = ContainerSpec(
    image=image, cmd=("sleep", "600"), labels=labels, network=network, mounts=mounts
)
for _ in range(3):
    engine.start_container(engine.create_container(spec), attach=False)
engine.create_container(spec)
print(guardian.pid, flush=True)
signal.pause()
"""


class Build:
    """Names of one build that a test makes."""

    def __init__(self, engine: DockerEngine, image: str, root: Path) -> None:
        self.engine = engine
        self.image = image
        self.id = f"test-{uuid.uuid4()}"
        self.labels = {LABEL_BUILD: self.id}
        self.state = str(root / "state")
        self.folder = root / self.id
        (self.folder / "sub").mkdir(parents=True)
        (self.folder / "sub" / "file").write_text("x")

    def guardian(self, network: str) -> Guardian:
        return Guardian.start(self.id, self.engine.endpoint, self.state, network=network)

    def start_container(self, network: str) -> str:
        container = self.engine.create_container(
            ContainerSpec(
                image=self.image, cmd=("sleep", "600"), labels=self.labels, network=network
            )
        )
        self.engine.start_container(container, attach=False)
        return container

    def left(self) -> OwnedResources:
        return self.engine.list_owned(self.labels)


@pytest.fixture
def build(docker_engine: DockerEngine, busybox: str, tmp_path: Path) -> Build:
    return Build(docker_engine, busybox, tmp_path)


@pytest.fixture
def network(docker_engine: DockerEngine) -> Iterator[str]:
    name = f"buildrunner-test-{uuid.uuid4().hex[:12]}"
    yield name
    docker_engine.remove_network(name)


def network_exists(engine: DockerEngine, name: str) -> bool:
    return name in engine.list_owned({LABEL_BUILD: ""}).networks


def await_exit(pid: int) -> None:
    """Wait for the end of a process that need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    ended = poll.poll(DEADLINE_S * 1000)
    os.close(descriptor)
    assert ended, f"process {pid} still runs"


NOTHING = OwnedResources()


@pytest.mark.docker
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_killed_leaves_nothing_behind(
    build: Build, network: str, how: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, build.id, build.image, network, build.state, build.folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        guardian = int(process.stdout.readline())
        assert len(build.left().containers) == 4
        os.killpg(process.pid, how)  # as Ctrl-C does: to the whole group of processes
    await_exit(guardian)
    assert build.left() == NOTHING
    assert not network_exists(build.engine, network)
    assert not build.folder.exists()


@pytest.mark.docker
def test_finish_returns_when_all_is_gone(build: Build, network: str) -> None:
    guardian = build.guardian(network)
    guardian.note_directory(str(build.folder))
    guardian.hold_network()
    build.engine.ensure_network(network, build.labels)
    build.start_container(network)
    assert guardian.finish(wait=True) == ()
    assert guardian.finish(wait=True) == ()
    assert build.left() == NOTHING
    assert not network_exists(build.engine, network)
    assert not build.folder.exists()


@pytest.mark.docker
def test_finish_without_waiting_cleans_up_all_the_same(build: Build, network: str) -> None:
    guardian = build.guardian(network)
    guardian.hold_network()
    build.engine.ensure_network(network, build.labels)
    build.start_container(network)
    guardian.finish(wait=False)
    os.waitpid(guardian.pid, 0)
    assert build.left() == NOTHING
    assert not network_exists(build.engine, network)


@pytest.mark.docker
def test_what_is_being_made_ahead_is_cleaned_up_too(build: Build, network: str) -> None:
    guardian = build.guardian(network)
    ending = threading.Event()
    order = []

    def make_late() -> None:
        guardian.hold_network()
        assert ending.wait(30)
        build.engine.ensure_network(network, build.labels)
        order.append("made")

    def finish() -> None:
        ending.set()
        guardian.finish(wait=True)
        order.append("finished")

    guardian.run_ahead(make_late)
    end = threading.Thread(target=finish)
    end.start()
    end.join(30)
    assert order == ["made", "finished"]
    assert not network_exists(build.engine, network)


@pytest.mark.docker
def test_a_build_that_is_over_holds_no_network_any_more(build: Build, network: str) -> None:
    guardian = build.guardian(network)
    assert guardian.finish(wait=True) == ()
    guardian.hold_network()
    other = build.guardian(network)
    other.hold_network()
    build.engine.ensure_network(network, build.labels)
    other.finish(wait=True)
    assert not network_exists(build.engine, network)


@pytest.mark.docker
def test_the_last_build_takes_the_network_away(
    build: Build, network: str, docker_engine: DockerEngine, busybox: str, tmp_path: Path
) -> None:
    other = Build(docker_engine, busybox, tmp_path)
    guardians = [build.guardian(network), other.guardian(network)]
    for guardian in guardians:
        guardian.hold_network()
        docker_engine.ensure_network(network, build.labels)
    guardians[0].finish(wait=True)
    assert network_exists(docker_engine, network)
    guardians[1].finish(wait=True)
    assert not network_exists(docker_engine, network)


@pytest.mark.docker
def test_a_build_that_starts_while_another_ends_never_loses_its_network(
    docker_engine: DockerEngine, busybox: str, network: str, tmp_path: Path
) -> None:
    before: Guardian | None = None
    for _ in range(8):
        build = Build(docker_engine, busybox, tmp_path)
        guardian = build.guardian(network)
        if before is not None:
            before.finish(wait=False)  # its removal of the network races with our start
        guardian.hold_network()
        docker_engine.ensure_network(network, build.labels)
        if before is not None:
            os.waitpid(before.pid, 0)
        assert network_exists(docker_engine, network)
        before = guardian
    assert before is not None
    before.finish(wait=True)
    assert not network_exists(docker_engine, network)


@pytest.mark.docker
def test_a_network_that_others_made_or_use_stays(
    build: Build, network: str, docker_engine: DockerEngine
) -> None:
    docker_engine.ensure_network(network, {})
    guardian = build.guardian(network)
    guardian.hold_network()
    assert guardian.finish(wait=True) == ()
    assert (
        network
        in subprocess.run(
            ["docker", "network", "ls"], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.docker
def test_a_folder_with_something_mounted_in_it_stays(build: Build, network: str) -> None:
    inner = build.folder / "sub"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True)
    try:
        guardian = build.guardian(network)
        guardian.note_directory(str(build.folder))
        problems = guardian.finish(wait=True)
    finally:
        subprocess.run(["umount", inner], check=True)
    assert problems == (f"{build.folder} is left: {inner} is still mounted there",)
    assert (inner / "file").exists()
    assert Path(build.state, "guardian.log").read_text() == f"{problems[0]}\n"


def test_a_volume_that_is_still_in_use_is_reported(build: Build) -> None:
    volume = f"buildrunner-test-{build.id}"
    build.engine.create_volume(volume, build.labels)
    stranger = build.engine.create_container(
        ContainerSpec(
            image=build.image,
            labels={"buildrunner.test": build.id},
            mounts=(Mount(source=volume, target="/data"),),
        )
    )
    guardian = build.guardian("none")
    problems = guardian.finish(wait=True)
    build.engine.remove_container(stranger)
    build.engine.remove_volume(volume)
    assert len(problems) == 1
    assert f"the volume {volume} can't be removed" in problems[0]


def test_a_sweep_finds_what_dead_builds_of_this_machine_left(tmp_path: Path) -> None:
    engine = FakeEngine(["busybox"])
    living, dead = cleanup.owner_label("1:now"), cleanup.owner_label("2:then")
    for owner in (living, dead, "another-machine/2:then"):
        labels = {LABEL_BUILD: "b", LABEL_OWNER: owner}
        engine.create_container(ContainerSpec(image="busybox", labels=labels))
        engine.create_volume(f"volume of {owner}", labels)
        engine.ensure_network(f"network of {owner}", labels)
    found, problems = cleanup.sweep(
        engine, lambda process: process == "1:now", state_dir=str(tmp_path), address="fake"
    )
    assert problems == []
    assert found.volumes == (f"volume of {dead}",)
    assert found.networks == (f"network of {dead}",)
    assert len(found.containers) == 1
    assert engine.list_owned({LABEL_OWNER: dead}) == NOTHING
    assert len(engine.list_owned({LABEL_BUILD: "b"}).containers) == 2
