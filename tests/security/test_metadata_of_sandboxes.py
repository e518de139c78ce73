"""Each nested sandbox has a metadata server of its own, which no other build reaches."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerSpec
from buildrunner.metadata import MetadataServer, ProjectFacts
from buildrunner.sandboxes.nested.place import NestedPlace
from buildrunner.settings import Settings

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", autouse=True)
def engine_image(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[], NestedPlace]]:
    """Opens sandboxes, all of which exist until the test ends."""
    with ExitStack() as stack:
        sandbox = wiring.sandbox(
            "nested", data_folder=str(tmp_path), labels={}, settings=Settings()
        )
        stack.callback(sandbox.close)

        def opened() -> NestedPlace:
            build_id = f"test-{uuid.uuid4()}"
            stack.callback(sandbox.remove, build_id)
            made = sandbox.open(build_id)
            stack.callback(made.close)
            assert isinstance(made, NestedPlace)
            return made

        yield opened


def project(place: NestedPlace, image: str, host: str = "169.254.169.254") -> str:
    """What a container in the sandbox is told of its project; empty if nobody answers."""
    path = "computeMetadata/v1/project/project-id"
    ask = f"wget -q -O - --header 'Metadata-Flavor: Google' http://{host}/{path}"
    container = place.engine.create_container(ContainerSpec(image=image, cmd=("sh", "-c", ask)))
    output = b"".join(place.engine.start_container(container, attach=True))
    place.engine.wait_container(container)
    place.engine.wait_container(container)
    return output.decode() if b"wget:" not in output else ""


def address_of(place: NestedPlace) -> str:
    """The address of a sandbox on the network of the machine's engine."""
    wanted = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    argv = ["docker", "inspect", "--format", wanted, place.ready().state.id]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def serve(stack: ExitStack, place: NestedPlace, name: str) -> None:
    listener = stack.enter_context(place.metadata_listener())
    server = MetadataServer(listener, ProjectFacts(name, "1", ""), credentials=None)
    stack.callback(server.close)


def test_builds_at_the_same_time_are_answered_by_their_own_server_only(
    place: Callable[[], NestedPlace], busybox: str
) -> None:
    one, two, without = place(), place(), place()
    with ExitStack() as stack:
        serve(stack, one, "first")
        serve(stack, two, "second")
        assert [project(each, busybox) for each in (one, two, without)] == ["first", "second", ""]
        assert project(without, busybox, address_of(one)) == ""
    assert project(one, busybox) == ""


def test_a_process_that_takes_over_a_build_answers_in_place_of_the_dead_one(
    place: Callable[[], NestedPlace], busybox: str
) -> None:
    taken = place()
    with ExitStack() as stack:
        serve(stack, taken, "dead")
        serve(stack, taken, "alive")
        assert {project(taken, busybox) for _ in range(4)} == {"alive"}
