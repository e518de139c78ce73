"""The container engine, and what looks after builds on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from buildrunner.errors import BuildrunnerError
from buildrunner.settings import lock_folder

if TYPE_CHECKING:
    from buildrunner.builders.image_factory import ImageFactory
    from buildrunner.containers.docker.engine import DockerEngine
    from buildrunner.containers.types import AddressRange
    from buildrunner.sandboxes.guardian import Guardian

NETWORK = "cloudbuild"


def container_engine(logins: Mapping[str, str] = os.environ) -> DockerEngine:
    """The engine that the ``docker`` command would use. Opens no connection yet.

    Args:
        logins: variables that say where the logins of registries are.
    """
    from buildrunner.containers.docker.endpoint import find_endpoint
    from buildrunner.containers.docker.engine import DockerEngine

    endpoint = find_endpoint(os.environ)
    return DockerEngine(endpoint, environ=logins, network_turn=_network_turn)


def _network_turn(address: str) -> AbstractContextManager[None]:
    from buildrunner.containers.cleanup import network_turn

    return network_turn(lock_folder(), address)


def image_factory() -> ImageFactory:
    """Return the factory of builder images, on the engine that the ``docker`` command would use."""
    from buildrunner.containers.docker.factory import DockerImageFactory

    return DockerImageFactory(container_engine(), os.environ)


def build_labels(build_id: str) -> dict[str, str]:
    """Labels of everything that is made for a build: whose it is, and which process owns it."""
    from buildrunner.containers.cleanup import owner_label
    from buildrunner.containers.process_owner import this_process
    from buildrunner.containers.types import LABEL_BUILD, LABEL_OWNER

    return {LABEL_BUILD: build_id, LABEL_OWNER: owner_label(this_process())}


def guardian(
    engine: DockerEngine, build_id: str, *, address_range: AddressRange | None = None
) -> Guardian:
    """The process that cleans up after a build however this one ends; holds the network for it.

    The network itself is asked for at once, in a thread: making it takes the engine 70 ms, in which
    this process can do other things.

    Raises:
        EngineError: it can't be started.
    """
    # Imported here, not in the thread: two threads that import take turns, and the request for the
    # network would be sent twice as late.
    import buildrunner.containers.docker.transport  # noqa: F401
    from buildrunner.sandboxes.guardian import Guardian

    started = Guardian.start(build_id, engine.endpoint, lock_folder())
    labels = build_labels(build_id)

    def ask_for_network() -> None:
        started.hold_network()
        with suppress(BuildrunnerError):  # the build asks again, and reports what is wrong
            engine.ensure_network(NETWORK, labels, address_range=address_range)

    started.run_ahead(ask_for_network)
    return started


def nested_guardian(engine: DockerEngine, build_id: str, folder: str) -> Guardian:
    """The process that removes a build's nested sandbox however this one ends.

    Args:
        engine: the engine that it is nested in.
        build_id: the build.
        folder: the ``data_folder`` of `sandbox`.

    Raises:
        EngineError: it can't be started.
    """
    from buildrunner.builders.catalog import ENGINE_IMAGE
    from buildrunner.sandboxes.guardian import Guardian

    started = Guardian.start(build_id, engine.endpoint, lock_folder())
    started.note_directory(os.path.join(folder, "run", build_id))
    started.note_image_cache(image_cache_folder(engine.endpoint.address), ENGINE_IMAGE, folder)
    return started


def image_cache_folder(address: str) -> str:
    """This user's folder for the image cache on the engine at an address."""
    name = "".join(letter if letter.isalnum() else "_" for letter in address)
    return os.path.join(lock_folder(), f"images-{name}")
