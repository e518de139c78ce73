"""The contract of container engines, on an engine in a nested sandbox."""

import uuid
from collections.abc import Iterator

import pytest

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerSpec
from buildrunner.sandboxes.protocol import OpenSandbox
from buildrunner.settings import Settings
from tests.contract import test_container_engine as contract
from tests.contract.test_container_engine import (
    Bench,
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


class TestImages(contract.TestImages):
    """The same but for what the host engine says of its images."""

    def test_are_found_by_name_and_by_id(self, bench: Bench, docker_engine: DockerEngine) -> None:
        """An image is one image: it has the host engine's id and digest, copied or not."""
        on_host = docker_engine.find_image(bench.image)
        assert on_host is not None
        before = bench.engine.find_image(bench.image)
        assert before is not None
        assert (before.id, before.digest) == (on_host.id, on_host.digest)
        container = bench.engine.create_container(
            ContainerSpec(image=before.id, cmd=("true",), labels=bench.labels)
        )
        list(bench.engine.start_container(container, attach=True))
        assert bench.engine.wait_container(container).code == 0
        after = bench.engine.find_image(bench.image)
        assert after is not None
        assert (after.id, after.digest, after.layers) == (before.id, before.digest, before.layers)
        by_id = bench.engine.find_image(before.id)
        assert by_id is not None
        assert by_id.id == before.id
        assert bench.engine.find_image("buildrunner-tests/nosuch") is None
        assert bench.engine.find_image("not a valid NAME") is None
