"""The host engine as the machine of nested engines."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from buildrunner.addresses import Egress
from buildrunner.builders.catalog import ENGINE_IMAGE
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.docker.images import PulledImages, copy_image
from buildrunner.containers.process_owner import file_lock
from buildrunner.containers.protocol import ContainerEngine, RegistryLogin
from buildrunner.containers.registry_auth import registry_login
from buildrunner.sandboxes.nested.daemon import NestedDaemons
from buildrunner.sandboxes.nested.image_cache import ImageCache
from buildrunner.sandboxes.protocol import SandboxLimits, fair_share
from buildrunner.workspace.volume import ensure_empty_image


class SandboxChoices(msgspec.Struct, frozen=True, kw_only=True):
    """Choices that hold for every nested sandbox of a machine.

    Attributes:
        folder: the folder of this machine's sandboxes: ``run/BUILD``, and their known modes.
        cache_folder: the folder of the image cache's catalogs.
        labels: labels of every resource on the machine's engine.
        network: the network of every build in its engine.
        egress: the networks that sandboxes may reach.
        isolation: one of `ISOLATIONS`, required for builds of forks; empty requires nothing.
        limits: limits of each sandbox; None for a fair share of the machine.
        builds: number of builds that share the machine; 0 if it is unknown or unlimited.
        disk_gib: disk limit of each sandbox; 0 sets no limit.
        environ: environment with the settings of the registry logins of builds.
        is_common: returns whether an image of the machine is for builds of every project. None:
            the builds share all images, and leave theirs to later builds.
    """

    folder: str
    cache_folder: str
    labels: Mapping[str, str]
    network: str
    egress: Egress = Egress()
    isolation: str = ""
    limits: SandboxLimits | None = None
    builds: int = 0
    disk_gib: int = 0
    environ: Mapping[str, str] = {}
    is_common: Callable[[str], bool] | None = None


class EngineImage(Protocol):
    """The image of nested engines on the machine's engine.

    Attributes:
        is_being_made: whether this object is making the missing image.
    """

    is_being_made: bool

    def obtain(self) -> str:
        """Return the image's id. A missing image is made now, which takes 20 to 60 s."""
        ...


class NestedMachine:
    """The host engine, the nested engines on it, and their shared images.

    Args:
        host: the host engine. Closed with the machine.
        image: the image of nested engines.
        choices: the choices for every sandbox.
    """

    def __init__(self, host: DockerEngine, image: EngineImage, choices: SandboxChoices) -> None:
        self.host = host
        self.image = image
        self.choices = choices
        self.daemons = NestedDaemons(host.endpoint)
        self.cache = ImageCache(self.daemons, host.endpoint, choices.cache_folder, ENGINE_IMAGE)

    def limits(self) -> SandboxLimits:
        """Return the limits of each sandbox."""
        choices = self.choices
        if choices.limits is not None:
            return choices.limits
        return fair_share(choices.builds, self.host.info().memory_bytes, choices.disk_gib)

    def ensure_images(self) -> None:
        """Ensure that the machine's engine has the images that every build needs."""
        self.cache.note_use([ensure_empty_image(self.host)])

    def prepare(self, engine: ContainerEngine, labels: Mapping[str, str]) -> None:
        """Create the resources that every build needs in a nested engine."""
        engine.ensure_network(self.choices.network, labels)

    def connect(self, socket: str) -> ContainerEngine:
        """Return the nested engine at a socket."""
        return DockerEngine(_endpoint(socket), use_logins=False)

    def pulls(self, socket: str) -> PulledImages:
        """Return an iterator over the names of images that the engine at a socket pulls."""
        return PulledImages(_endpoint(socket))

    def copy_image(
        self, image: str, socket: str, names: Iterable[str], cancel: threading.Event
    ) -> str:
        """Copy an image, by id, to the engine at a socket, under names. Returns its id there."""
        return copy_image(image, names, self.host.endpoint, _endpoint(socket), cancel)

    def pull_turn(self, name: str) -> AbstractContextManager[None]:
        """See `NestedAccess.pull_turn`."""
        folder = os.path.join(self.choices.folder, "pulls")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return file_lock(os.path.join(folder, hashlib.sha256(name.encode()).hexdigest()[:8]))

    def login_for(self, registry: str, cancel: threading.Event) -> RegistryLogin | None:
        """Return the machine's login for a registry; None if there is none."""
        return registry_login(registry, self.choices.environ, cancel)

    def close(self) -> None:
        """Close the connections to the host engine."""
        self.host.close()
        self.daemons.close()


def _endpoint(socket: str) -> Endpoint:
    return Endpoint(address=f"unix://{socket}", origin="the build's sandbox", trusted=False)
