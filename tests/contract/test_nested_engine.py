"""The contract of container engines, on an engine in a nested sandbox."""

import uuid
from collections.abc import Iterator

import pytest

from buildrunner import wiring
from buildrunner.containers.docker import DockerEngine
from buildrunner.settings import Settings
from buildrunner.worker.sandbox import OpenSandbox
from tests.contract.test_container_engine import (
    Bench,
    TestImages,
    TestLabels,
    TestNetworks,
    TestOneContainersLife,
    TestVolumesAndFiles,
    registry_name,
)

__all__ = [
    "TestImages",
    "TestLabels",
    "TestNetworks",
    "TestOneContainersLife",
    "TestVolumesAndFiles",
    "registry_name",
]

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def place(
    docker_engine: DockerEngine, busybox: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenSandbox]:
    folder = str(tmp_path_factory.mktemp("sandboxes"))
    sandbox = wiring.sandbox("nested", data_folder=folder, labels={}, settings=Settings())
    build_id = f"contract-{uuid.uuid4()}"
    opened = sandbox.open(build_id)
    yield opened
    opened.close()
    sandbox.remove(build_id)
    sandbox.close()


@pytest.fixture
def bench(place: OpenSandbox, busybox: str, build_labels: dict[str, str]) -> Bench:
    return Bench(place.engine, busybox, build_labels)
