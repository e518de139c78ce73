"""The program that holds a namespace open, run for real."""

from __future__ import annotations

import struct
import uuid

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.fake.engine import FakeEngine
from buildrunner.containers.pause_image import PAUSE_IMAGE, ensure_pause_image, pause_program
from buildrunner.containers.types import ContainerSpec, EngineInfo
from tests.conftest import remove_image


@pytest.mark.docker
def test_it_sleeps_through_signals_and_dies_at_once_when_killed(
    docker_engine: DockerEngine, build_labels: dict[str, str]
) -> None:
    image = ensure_pause_image(docker_engine)
    assert image == PAUSE_IMAGE
    spec = ContainerSpec(image=image, network="none", labels=build_labels)
    container = docker_engine.create_container(spec)
    output = docker_engine.start_container(container, attach=True)
    for signal in ("SIGTERM", "SIGCONT", "SIGUSR1"):  # pause(2) is entered anew after each
        docker_engine.kill_container(container, signal)
    guest = docker_engine.create_container(
        ContainerSpec(image=image, network=f"container:{container}", labels=build_labels)
    )
    docker_engine.start_container(guest, attach=False)  # so the first one must be alive
    docker_engine.kill_container(container)
    assert docker_engine.wait_container(container).code == 137
    assert list(output) == []


@pytest.mark.docker
def test_it_is_made_once(docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"buildrunner-tests/pause:{uuid.uuid4().hex[:12]}"
    monkeypatch.setattr("buildrunner.containers.pause_image.PAUSE_IMAGE", name)
    assert ensure_pause_image(docker_engine) == name
    made = docker_engine.find_image(name)
    assert made is not None
    assert made.entrypoint == ("/pause",)
    assert made.size_bytes < 1000  # of containerd's image store: with manifest and config
    assert ensure_pause_image(docker_engine) == name
    assert docker_engine.find_image(name) == made
    remove_image(name)


@pytest.mark.parametrize(("architecture", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_its_header_says_what_the_kernel_needs(architecture: str, machine: int) -> None:
    elf = pause_program(architecture)
    assert elf is not None
    kind, found, _, entry, segments = struct.unpack_from("<HHIQQ", elf, 16)
    assert elf.startswith(b"\x7fELF\x02\x01\x01")
    assert (kind, found) == (2, machine)
    offset, address, _, in_file, in_memory = struct.unpack_from("<QQQQQ", elf, segments + 8)
    assert (offset, in_file, in_memory) == (0, len(elf), len(elf))
    assert address <= entry < address + len(elf)


def test_its_arm_loop_jumps_back_to_its_first_instruction() -> None:
    elf = pause_program("aarch64")
    assert elf is not None
    (branch,) = struct.unpack_from("<I", elf, len(elf) - 4)
    assert branch >> 26 == 0b000101  # b
    words_back = (1 << 26) - (branch & 0x3FFFFFF)
    assert len(elf) - 4 - 4 * words_back == 64 + 56


def test_other_architectures_do_without() -> None:
    class Exotic(FakeEngine):
        def info(self) -> EngineInfo:
            return EngineInfo(
                name="x", version="1", api_version="1", local=True, architecture="s390x"
            )

    assert pause_program("s390x") is None
    assert ensure_pause_image(Exotic()) is None
