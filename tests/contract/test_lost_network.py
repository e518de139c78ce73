"""A network that vanishes between its making and a container's start."""

import uuid

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import AddressRange, ContainerSpec
from buildrunner.errors import EngineError
from tests.contract.test_container_engine import is_podman

pytestmark = pytest.mark.docker


@pytest.fixture
def network(docker_engine, build_labels):
    name = f"test-{uuid.uuid4().hex[:12]}"
    docker_engine.ensure_network(name, build_labels)
    yield name
    docker_engine.remove_network(name)


@pytest.fixture
def removes_used_networks(docker_engine):
    if is_podman(docker_engine):
        pytest.skip("Podman removes no network that a container was made for")


def lose(network):
    """Another process removes the network behind the engine object's back."""
    other = DockerEngine()
    assert other.remove_network(network)
    other.close()


def test_one_that_vanishes_before_a_container_is_made_is_made_again(
    docker_engine, network, busybox, build_labels
):
    lose(network)
    spec = ContainerSpec(image=busybox, cmd=("echo", "hello"), network=network, labels=build_labels)
    container = docker_engine.create_container(spec)
    assert b"".join(docker_engine.start_container(container, attach=True)) == b"hello\n"
    assert docker_engine.wait_container(container).code == 0


def test_one_that_is_made_again_has_the_addresses_of_before(docker_engine, busybox, build_labels):
    name = f"test-{uuid.uuid4().hex[:12]}"
    requested = AddressRange("198.51.100.0/24", "198.51.100.254")
    docker_engine.ensure_network(name, build_labels, address_range=requested)
    docker_engine.ensure_network(name, build_labels)
    lose(name)
    spec = ContainerSpec(image=busybox, cmd=("ip", "route"), network=name, labels=build_labels)
    container = docker_engine.create_container(spec)
    route = b"".join(docker_engine.start_container(container, attach=True))
    docker_engine.remove_container(container)
    assert docker_engine.remove_network(name)
    assert b"default via 198.51.100.254" in route


@pytest.mark.usefixtures("removes_used_networks")
def test_it_is_made_again_and_no_output_is_lost(docker_engine, network, busybox, build_labels):
    spec = ContainerSpec(image=busybox, cmd=("echo", "hello"), network=network, labels=build_labels)
    container = docker_engine.create_container(spec)
    lose(network)
    output = docker_engine.start_container(container, attach=True)
    assert b"".join(output) == b"hello\n"
    assert docker_engine.wait_container(container).code == 0


@pytest.mark.usefixtures("removes_used_networks")
def test_a_network_that_nobody_ensured_is_an_error(docker_engine, network, busybox, build_labels):
    container = docker_engine.create_container(
        ContainerSpec(image=busybox, cmd=("true",), network=network, labels=build_labels)
    )
    lose(network)
    stranger = DockerEngine()
    with pytest.raises(EngineError, match="not found"):
        stranger.start_container(container, attach=True)
    stranger.close()
